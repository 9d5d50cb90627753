"""A decision's record: read whole, or what was added since; and artifacts, stored once by the hash of their bytes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.model.deciding import Decision, Record, Step
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


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

    @property
    def head_seq(self) -> int:
        """The number of the newest step that was read."""
        return self.record.steps[-1].seq if self.record.steps else -1


def sha256(content: bytes) -> bytes:
    """The name of an artifact."""
    return hashlib.sha256(content).digest()


def store_artifact(connection: Connection[Any], kind: str, content: bytes) -> bytes:
    """Stores bytes once, in the caller's transaction, and returns their SHA-256. Raises psycopg.Error."""
    name = sha256(content)
    connection.execute(QUERIES["store_artifact"].sql, {"sha256": name, "kind": kind, "bytes": content})
    return name


def load_record(connection: Connection[Any], decision_id: UUID) -> Record | None:
    """Returns a decision with all its steps, and the artifacts that they name; None where there is no such decision."""
    loaded = load(connection, decision_id)
    return None if loaded is None else loaded.record


def load(connection: Connection[Any], decision_id: UUID, known: Loaded | None = None) -> Loaded | None:
    """Reads a decision; of the steps and artifacts of ``known``, which never change, none is read again."""
    row = connection.execute(QUERIES["decision"].sql, {"decision_id": decision_id}).fetchone()
    if row is None:
        return None
    *columns, closed_at, wake_seq, now = row
    steps = list(known.record.steps) if known is not None else []
    after_seq = steps[-1].seq if steps else -1
    new = connection.execute(QUERIES["steps"].sql, {"decision_id": decision_id, "after_seq": after_seq}).fetchall()
    steps += [_step(found) for found in new]
    artifacts = dict(known.record.artifacts) if known is not None else {}
    artifacts |= _artifacts(connection, steps, artifacts)
    return Loaded(
        record=Record(Decision(*map(_in_utc, columns)), tuple(steps), artifacts),
        wake_seq=wake_seq,
        now=_in_utc(now),
        is_closed=closed_at is not None,
        bodies=(*(known.bodies if known is not None else ()), *(bytes(found[5]) for found in new)),
    )


def _step(row: Sequence[Any]) -> Step:
    seq, parent, kind, author, at, body, input_sha256, output_sha256, cost_micros = row
    return Step(
        seq,
        parent,
        kind,
        author,
        _in_utc(at),
        json.loads(body),
        _bytes(input_sha256),
        _bytes(output_sha256),
        cost_micros,
    )


def _artifacts(connection: Connection[Any], steps: Iterable[Step], known: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    named = {name for step in steps for name in (step.input_sha256, step.output_sha256) if name is not None}
    # A request is named before anybody is asked: its agent may be switched off meanwhile.
    rounds = (step.body["calls"] for step in steps if step.kind == "calls")
    named |= {bytes.fromhex(call["request_sha256"]) for calls in rounds for call in calls}
    missing = sorted(named - known.keys())
    if not missing:
        return {}
    found = connection.execute(QUERIES["artifacts"].sql, {"hashes": missing})
    return {bytes(name): bytes(content) for name, content in found}


def _in_utc(value: Any) -> Any:
    if isinstance(value, memoryview):
        return bytes(value)
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)
