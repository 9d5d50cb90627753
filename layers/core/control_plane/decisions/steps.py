"""Appending the engine's steps, under the fence of the claim that it holds a decision by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection

from control_plane.decisions import announcements
from control_plane.decisions.moves import CLOSED, Append, IntendedCall, call_id
from control_plane.decisions.record import Loaded, in_utc, sha256
from control_plane.model.deciding import Decision, Record, Step
from control_plane.platform.messages import as_json, one_as_json
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
BUDGET_SCOPE: Final = "agents"
"""All agents share one budget a day; each decision has its own besides."""
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
    gather_seconds: float = 2
    """How long an engine itself waits for evidence to be complete, before a timer has it looked at again."""
    gather_again_seconds: float = 10
    shadow_playbooks: frozenset[str] = field(default_factory=frozenset)

    def call_deadline(self, decision: Decision, call: IntendedCall, now: datetime) -> datetime:
        """Returns when an attempt that is intended now must have ended."""
        return min(decision.deadline, now + timedelta(seconds=self.call_wait_seconds + call.seconds))


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
    such a step has no events, and may leave others out that the record returned does not have. A step without events
    that is a transaction of its own may not be on disk yet. Raises psycopg.Error: is_fence_lost and has_record_grown
    tell two of them.
    """
    events = [] if seen_seq is None else announcements.announce(loaded.record, step, seen_seq + 1, loaded.now)
    body = step.body_bytes()
    awaits_disk = bool(events) or seen_seq is None
    about = {"body": body, "seen_seq": seen_seq, "events": as_json(events) if events else None}
    *row, _ = _advance(connection, "advance_decision", hold, step, about | {"awaits_disk": awaits_disk})
    return replace(_grown(hold, loaded, step, body, row), is_on_disk=awaits_disk)


def begin(connection: Connection[Any], hold: Hold, loaded: Loaded, step: Append) -> Loaded:
    """Appends a step that asks agents, and intends their attempts, in one statement; returns the record with the step.

    Where all of them are intended, nothing is left to do, and it gives the lease back, unless a message came meanwhile.
    Where a budget has no room for one of them, the record that is returned does not wait: what follows from it gives up
    on that one. Raises psycopg.Error, as append does.
    """
    body = step.body_bytes()
    about = {"body": body, "seen_seq": loaded.head_seq, **_as_columns(hold, loaded, loaded.head_seq + 1, step.calls)}
    asks_all = len(step.calls) == len(step.body["calls"])
    *row, are_intended, left = _advance(connection, "begin_round", hold, step, about | {"leaves": asks_all})
    grown = _grown(hold, loaded, step, body, row)
    return replace(grown, waits=bool(are_intended) and asks_all, is_left=left == "left")


def _as_columns(hold: Hold, loaded: Loaded, calls_seq: int, calls: Sequence[IntendedCall]) -> Mapping[str, Any]:
    """Returns attempts as begin_round takes them: each parameter has one value for each."""
    record, now = loaded.record, loaded.now
    messages = [announcements.call_requested(record, calls_seq, call, now) for call in calls]
    return {
        "call_ids": [call_id(record, calls_seq, call) for call in calls],
        "agents": [call.agent for call in calls],
        "agent_versions": [call.agent_version for call in calls],
        "attempts": [call.attempt for call in calls],
        "requests": [call.request_sha256 for call in calls],
        "micros": [call.micros for call in calls],
        "deadlines": [hold.policy.call_deadline(record.decision, call, now) for call in calls],
        "messages": [one_as_json(message) for message in messages],
        "budget_scope": BUDGET_SCOPE,
        "day_limit": hold.policy.daily_budget_micros,
    }


def _advance(
    connection: Connection[Any], query: str, hold: Hold, step: Append, about: Mapping[str, Any]
) -> tuple[Any, ...]:
    made = [*step.artifacts, *([] if step.output is None else [(step.output_kind, step.output)])]
    contents = {sha256(content): content for _, content in made}
    row = connection.execute(
        QUERIES[query].sql,
        {
            "hashes": [sha256(content) for _, content in made],
            "kinds": [kind for kind, _ in made],
            "contents": [content for _, content in made],
            "decision_id": hold.decision_id,
            "fence": hold.fence,
            "kind": step.kind,
            "parent": step.parent,
            "output_sha256": None if step.output is None else sha256(step.output),
            "state": step.state,
            "lease_seconds": hold.policy.lease_seconds,
            **about,
        },
    ).fetchone()
    assert row is not None
    hold.stored.update(contents)
    return tuple(row)


def _grown(hold: Hold, loaded: Loaded, step: Append, body: bytes, row: Sequence[Any]) -> Loaded:
    """Returns the record with a step that was appended to it, as whoever reads it next gets it: from its bytes."""
    seq, at, wake_seq, now, switched_off, _, new_hash = row
    output_sha256 = None if step.output is None else sha256(step.output)
    stored = Step(seq, step.parent, step.kind, "engine", in_utc(at), json.loads(body), output_sha256=output_sha256)
    return Loaded(
        record=Record(
            loaded.record.decision if step.state is None else replace(loaded.record.decision, state=step.state),
            (*loaded.record.steps, stored),
            {**loaded.record.artifacts, **hold.stored},
        ),
        wake_seq=wake_seq,
        now=in_utc(now),
        is_closed=step.state in CLOSED if step.state is not None else loaded.is_closed,
        bodies=(*loaded.bodies, body),
        switched_off=frozenset(switched_off),
        head_hash=bytes(new_hash),
    )
