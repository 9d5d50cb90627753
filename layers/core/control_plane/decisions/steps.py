"""Appending the engine's steps, under the fence of the claim that it holds a decision by."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection

from control_plane.decisions import announcements
from control_plane.decisions.moves import CLOSED, Append
from control_plane.decisions.record import Loaded, in_utc, sha256
from control_plane.model.deciding import Record, Step
from control_plane.platform.messages import as_json
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
FENCE_LOST: Final = "AC001"
RECORD_GREW: Final = "AC003"


@dataclass(frozen=True, slots=True)
class EnginePolicy:
    """How the engine works; durations are in seconds."""

    lease_seconds: float = 60
    daily_budget_micros: int = 0
    call_wait_seconds: float = 90
    """How long a call may wait for its agent before its own time begins."""
    observe_seconds: float = 60
    """The shortest time between two looks whether a horizon is over."""
    ask_again_seconds: float = 30
    """How long a verdict is awaited before a look at the decision asks for it again."""
    shadow_playbooks: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Hold:
    """A claim: nobody else advances the decision while its fence is the latest."""

    decision_id: UUID
    fence: int
    policy: EnginePolicy
    stored: dict[bytes, bytes] = field(default_factory=dict)
    """Artifacts that were stored under it: they need not be read back."""


def is_fence_lost(error: psycopg.Error) -> bool:
    """Whether another has claimed the decision meanwhile."""
    return error.sqlstate == FENCE_LOST


def has_record_grown(error: psycopg.Error) -> bool:
    """Whether somebody added to the record what the move did not know of."""
    return error.sqlstate == RECORD_GREW


def append(connection: Connection[Any], hold: Hold, loaded: Loaded, step: Append, *, seen_seq: int | None) -> Loaded:
    """Appends a step with its artifacts and its events, in one statement, and returns the record with it.

    ``seen_seq`` is the end of the record that the step was decided on; None within a transaction that has checked it:
    such a step has no events, and may leave others out that the record returned does not have. Raises psycopg.Error:
    is_fence_lost and has_record_grown tell two of them.
    """
    made = [*step.artifacts, *([] if step.output is None else [(step.output_kind, step.output)])]
    contents = {sha256(content): content for _, content in made}
    events = [] if seen_seq is None else announcements.announce(loaded.record, step, seen_seq + 1, loaded.now)
    body, output_sha256 = step.body_bytes(), None if step.output is None else sha256(step.output)
    row = connection.execute(
        QUERIES["advance_decision"].sql,
        {
            "hashes": [sha256(content) for _, content in made],
            "kinds": [kind for kind, _ in made],
            "contents": [content for _, content in made],
            "decision_id": hold.decision_id,
            "fence": hold.fence,
            "kind": step.kind,
            "parent": step.parent,
            "body": body,
            "output_sha256": output_sha256,
            "state": step.state,
            "lease_seconds": hold.policy.lease_seconds,
            "seen_seq": seen_seq,
            "events": as_json(events) if events else None,
        },
    ).fetchone()
    assert row is not None
    hold.stored.update(contents)
    seq, at, wake_seq, now, switched_off, _ = row
    # From its bytes, as whoever reads the record next gets it.
    stored = Step(seq, step.parent, step.kind, "engine", in_utc(at), json.loads(body), output_sha256=output_sha256)
    return Loaded(
        record=Record(
            loaded.record.decision if step.state is None else replace(loaded.record.decision, state=step.state),
            (*loaded.record.steps, stored),
            {**loaded.record.artifacts, **contents},
        ),
        wake_seq=wake_seq,
        now=in_utc(now),
        is_closed=step.state in CLOSED if step.state is not None else loaded.is_closed,
        bodies=(*loaded.bodies, body),
        switched_off=frozenset(switched_off),
    )
