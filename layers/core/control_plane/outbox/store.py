"""The outbox's statements: claim, settle, look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.domain.lifecycle import Disposition, Settlement
from control_plane.domain.trace import traceparent
from control_plane.outbox.publisher import Message
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class Spent:
    """A row found with its attempts already made, and dead-lettered for it."""

    outbox_id: int
    event_id: UUID
    trace_id: UUID
    topic: str
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows taken under one token: those to publish, and those whose attempts were found spent."""

    token: UUID
    messages: Sequence[Message]
    spent: Sequence[Spent]

    def __len__(self) -> int:
        return len(self.messages) + len(self.spent)


@dataclass(frozen=True, slots=True)
class Settled:
    """One row whose settlement took effect."""

    disposition: Disposition
    age_seconds: float
    """Since the row's creation, by the database's clock."""


def claim(
    connection: Connection[Any],
    *,
    token: UUID,
    claimed_by: str,
    size: int,
    max_bytes: int,
    lease_seconds: float,
    max_attempts: int,
    paused_topics: Sequence[str] = (),
) -> Claim:
    """Claims due rows; committed when this returns. ``connection`` is in autocommit mode."""
    rows = connection.execute(
        QUERIES["claim"].sql,
        {
            "claim_token": token,
            "claimed_by": claimed_by,
            "claim_size": size,
            "claim_bytes": max_bytes,
            "lease_seconds": lease_seconds,
            "max_attempts": max_attempts,
            "paused_topics": list(paused_topics),
        },
    ).fetchall()
    messages = []
    spent = []
    for state, outbox_id, event_id, topic, body, attempt, error, event_type, schema_version, trace_id in rows:
        if state == "in_flight":
            attributes = {
                "event_id": str(event_id),
                "event_type": event_type,
                "schema_version": str(schema_version),
                "trace_id": str(trace_id),
                "traceparent": traceparent(trace_id, event_id),
            }
            messages.append(Message(outbox_id, event_id, trace_id, topic, attempt, body, attributes))
        else:
            spent.append(Spent(outbox_id, event_id, trace_id, topic, attempt, error))
    return Claim(token, messages, spent)


def settle(
    connection: Connection[Any], *, token: UUID, claimed_by: str, settlements: Mapping[int, Settlement]
) -> Mapping[int, Settled]:
    """Records a claim's outcomes in one round trip; the answer leaves out what another claim has taken over."""
    rows = connection.execute(
        QUERIES["settle"].sql,
        {
            "claim_token": token,
            "claimed_by": claimed_by,
            "ids": list(settlements),
            "dispositions": [settlement.disposition.value for settlement in settlements.values()],
            "message_ids": [settlement.message_id for settlement in settlements.values()],
            "errors": [settlement.error for settlement in settlements.values()],
            "delays_seconds": [settlement.delay.total_seconds() for settlement in settlements.values()],
        },
    )
    return {outbox_id: Settled(Disposition(disposition), age) for outbox_id, disposition, age in rows}


def backlog(connection: Connection[Any]) -> tuple[int, float]:
    """How many promises are open, and the age in seconds of the oldest."""
    row = connection.execute(QUERIES["backlog"].sql).fetchone()
    assert row is not None
    return row[0], row[1]
