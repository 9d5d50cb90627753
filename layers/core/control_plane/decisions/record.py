"""A decision's record: read whole, or what was added since; and artifacts, stored once by the hash of their bytes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.model.deciding import Decision, Record, Step
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
_COLUMNS: Final = len(Decision.__slots__) + 5
"""Of the query decision: those of the decision, before those of a step."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A record as it was read at one moment, with what the engine needs beside it."""

    record: Record
    wake_seq: int
    now: datetime
    """The database's time, which leases and deadlines are counted in."""
    is_closed: bool
    bodies: Sequence[bytes] = ()
    """Of the steps, as they are stored and hashed."""
    switched_off: frozenset[str] = frozenset()
    """Every scope that is switched off."""
    waits: bool = False
    """Whether all that it waits for was asked for just now: the attempts' own steps are not read yet."""
    head_hash: bytes | None = None
    """The hash of the newest step that was read, which covers all steps before it."""
    is_on_disk: bool = True
    """Whether the newest step that its holder appended has been written there, or what was committed after it."""
    is_left: bool = False
    """Whether the lease was given back with the newest step."""

    @property
    def head_seq(self) -> int:
        """The number of the newest step that was read."""
        return self.record.steps[-1].seq if self.record.steps else -1


def sha256(content: bytes) -> bytes:
    """The name of an artifact."""
    return hashlib.sha256(content).digest()


def store_artifact(connection: Connection[Any], kind: str, content: bytes) -> bytes:
    """Stores bytes once, in the caller's transaction, and returns their SHA-256. Raises psycopg.Error."""
    (name,) = store_artifacts(connection, [(kind, content)])
    return name


def store_artifacts(connection: Connection[Any], artifacts: Iterable[tuple[str, bytes]]) -> Mapping[bytes, bytes]:
    """Stores bytes with their kinds, each once, and returns them by their SHA-256. Raises psycopg.Error."""
    kinds = {sha256(content): (kind, content) for kind, content in artifacts}
    if kinds:
        values = {
            "hashes": list(kinds),
            "kinds": [kind for kind, _ in kinds.values()],
            "contents": [content for _, content in kinds.values()],
        }
        connection.execute(QUERIES["store_artifacts"].sql, values)
    return {name: content for name, (_, content) in kinds.items()}


def load_record(connection: Connection[Any], decision_id: UUID) -> Record | None:
    """Returns a decision with all its steps, and the artifacts that they name; None where there is no such decision."""
    loaded = load(connection, decision_id)
    return None if loaded is None else loaded.record


def load(
    connection: Connection[Any],
    decision_id: UUID,
    known: Loaded | None = None,
    stored: Mapping[bytes, bytes] = MappingProxyType({}),
) -> Loaded | None:
    """Reads a decision; of the steps and artifacts of ``known``, which never change, none is read again.

    ``known`` may be from any time before: where the hash of its newest step is not the stored one, all is read.
    ``stored`` are artifacts that the caller has at hand, whether the record names them or not.
    """
    steps = list(known.record.steps) if known is not None else []
    about = {"decision_id": decision_id, "after_seq": steps[-1].seq if steps else -1}
    rows = connection.execute(QUERIES["decision"].sql, about).fetchall()
    if not rows:
        return None
    *columns, closed_at, wake_seq, now, switched_off, known_hash = rows[0][:_COLUMNS]
    if known is not None and _bytes(known_hash) != known.head_hash:
        return (
            replace(read, is_on_disk=known.is_on_disk)
            if (read := load(connection, decision_id, None, stored))
            else None
        )
    new = [row[_COLUMNS:] for row in rows if row[_COLUMNS] is not None]
    new_steps = [_step(found) for found in new]
    artifacts = dict(known.record.artifacts) if known is not None else {}
    # A step's output may be its body's own bytes, as evidence is: these are at hand.
    at_hand = {sha256(row[5]): bytes(row[5]) for row in new if row[7] is not None}
    at_hand |= {bytes(row[7]): bytes(row[10]) for row in new if row[10] is not None}
    artifacts |= _artifacts(connection, new_steps, artifacts, {**stored, **at_hand})
    return Loaded(
        record=Record(Decision(*map(in_utc, columns)), (*steps, *new_steps), artifacts),
        wake_seq=wake_seq,
        now=in_utc(now),
        is_closed=closed_at is not None,
        bodies=(*(known.bodies if known is not None else ()), *(bytes(found[5]) for found in new)),
        switched_off=frozenset(switched_off),
        head_hash=_bytes(new[-1][9] if new else known_hash),
        is_on_disk=known is None or known.is_on_disk,
    )


def _step(row: Sequence[Any]) -> Step:
    seq, parent, kind, author, at, body, input_sha256, output_sha256, cost_micros, *_ = row
    return Step(
        seq,
        parent,
        kind,
        author,
        in_utc(at),
        json.loads(body),
        _bytes(input_sha256),
        _bytes(output_sha256),
        cost_micros,
    )


def _artifacts(
    connection: Connection[Any], steps: Iterable[Step], known: Mapping[bytes, bytes], stored: Mapping[bytes, bytes]
) -> dict[bytes, bytes]:
    """Returns the artifacts that steps name and that are not known yet."""
    named = {name for step in steps for name in (step.input_sha256, step.output_sha256) if name is not None}
    # A request is named before anybody is asked: its agent may be switched off meanwhile.
    rounds = (step.body["calls"] for step in steps if step.kind == "calls")
    named |= {bytes.fromhex(call["request_sha256"]) for calls in rounds for call in calls}
    found = {name: stored[name] for name in named & stored.keys()}
    missing = sorted(named - known.keys() - found.keys())
    if missing:
        rows = connection.execute(QUERIES["artifacts"].sql, {"hashes": missing})
        found |= {bytes(name): bytes(content) for name, content in rows}
    return found


def in_utc(value: Any) -> Any:
    """Returns a column's value as the model has it: instants in UTC, and bytes."""
    if isinstance(value, memoryview):
        return bytes(value)
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)
