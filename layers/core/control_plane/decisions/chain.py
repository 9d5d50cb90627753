"""The hash chain of a decision's steps, and the anchors of all chains' heads, computed again outside the database."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

_HEAD: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) (\d{1,9}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class StoredStep:
    """A row of decision_steps, with the bytes that were hashed."""

    decision_id: UUID
    seq: int
    parent: int | None
    kind: str
    author: str
    at: datetime
    input_sha256: bytes | None
    output_sha256: bytes | None
    cost_micros: int
    body: bytes
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Anchor:
    """The heads of the chains that grew, as the table or a line of the log has them."""

    anchor_id: int
    prev_root: bytes
    heads: str
    root: bytes

    @classmethod
    def from_log(cls, line: Mapping[str, Any]) -> "Anchor":
        """From the fields of a log line ``anchored``. Raises KeyError, ValueError for another line."""
        return cls(
            int(line["anchor_id"]),
            bytes.fromhex(line["prev_root"]),
            "\n".join(line["heads"]),
            bytes.fromhex(line["root"]),
        )


def step_hash(step: StoredStep, prev_hash: bytes) -> bytes:
    """Returns what db/migrations/0005_deciding.sql does: the hash of the hash before, every column, and the body."""
    columns = "|".join(
        (
            str(step.decision_id),
            str(step.seq),
            "-" if step.parent is None else str(step.parent),
            step.kind,
            step.author,
            f"{step.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z",
            "-" if step.input_sha256 is None else step.input_sha256.hex(),
            "-" if step.output_sha256 is None else step.output_sha256.hex(),
            str(step.cost_micros),
        )
    )
    return _sha256(prev_hash + _sha256(columns.encode()) + _sha256(step.body))


def check_chain(steps: Sequence[StoredStep], head_seq: int, head_hash: bytes) -> Iterator[str]:
    """Yields what is wrong with one decision's steps, which are in the order of seq."""
    prev_hash = b""
    for place, step in enumerate(steps):
        if step.seq != place:
            yield f"step {place} is missing"
            return
        if step.prev_hash != prev_hash:
            yield f"step {step.seq} does not follow from the one before it"
        if step.hash != step_hash(step, step.prev_hash):
            yield f"step {step.seq} is not what was hashed"
        prev_hash = step.hash
    if head_seq != len(steps) - 1 or head_hash != prev_hash:
        yield f"its chain has {len(steps)} steps, and its head is step {head_seq} of another hash or number"


def check_anchors(anchors: Sequence[Anchor], logged: Iterable[Anchor]) -> Iterator[str]:
    """Yields what is wrong with the anchors of the table: within themselves, and held against those of the log.

    One that the log lacks is no finding, for a function may die between the two: the next line's prev_root covers it.
    """
    prev_root = b""
    for anchor in anchors:
        if anchor.prev_root != prev_root:
            yield f"anchor {anchor.anchor_id} does not follow from the one before it"
        if anchor.root != _sha256(anchor.prev_root + anchor.heads.encode()):
            yield f"anchor {anchor.anchor_id} is not what was hashed"
        prev_root = anchor.root
    stored = {anchor.anchor_id: anchor for anchor in anchors}
    for line in logged:
        if stored.get(line.anchor_id) != line:
            yield f"anchor {line.anchor_id} is not what the log says, or is gone"


def anchored_heads(anchors: Iterable[Anchor]) -> dict[tuple[UUID, int], bytes]:
    """Returns the hash of every step that was ever a head. A line that is none is left out: its root gives it away."""
    heads: dict[tuple[UUID, int], bytes] = {}
    for anchor in anchors:
        for line in anchor.heads.splitlines():
            if (found := _HEAD.fullmatch(line)) is not None:
                heads[UUID(found[1]), int(found[2])] = bytes.fromhex(found[3])
    return heads


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
