"""The outbox's statements: claim, settle, look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg import Connection

from control_plane.model.lifecycle import Settlement
from control_plane.model.trace import traceparent
from control_plane.outbox.publisher import Message
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
BEGINNING: Final = datetime.fromtimestamp(0, UTC)
"""Before any row was due."""


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
class Lane:
    """How much of a topic to claim, and from where on."""

    limit: int
    since: datetime = BEGINNING
    """Rows that were due before it are left out."""


@dataclass(frozen=True)
class Claim:
    """Rows taken under one token. What they hold is made of them where it is first asked for, not where they arrive."""

    token: UUID
    rows: Sequence[tuple[Any, ...]] = ()
    """As the statement returns them."""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def messages(self) -> Sequence[Message]:
        """To be published."""
        return [
            Message(
                outbox_id,
                self.token,
                event_id,
                trace_id,
                topic,
                attempt,
                body,
                {
                    "event_id": str(event_id),
                    "event_type": event_type,
                    "schema_version": str(schema_version),
                    "trace_id": str(trace_id),
                    "traceparent": traceparent(trace_id, event_id),
                },
            )
            for state, outbox_id, event_id, topic, body, attempt, *_, event_type, schema_version, trace_id in self.rows
            if state == "in_flight"
        ]

    @cached_property
    def spent(self) -> Sequence[Spent]:
        """Found with their attempts already made."""
        return [
            Spent(outbox_id, event_id, trace_id, topic, attempt, error)
            for state, outbox_id, event_id, topic, _, attempt, error, _, _, _, trace_id in self.rows
            if state != "in_flight"
        ]

    @cached_property
    def reached(self) -> Mapping[str, tuple[int, datetime]]:
        """Per topic, how many rows were taken, and when the last of them had been due."""
        reached: dict[str, tuple[int, datetime]] = {}
        for _, _, _, topic, _, _, _, due_at, _, _, _ in self.rows:
            taken, latest = reached.get(topic, (0, due_at))
            reached[topic] = (taken + 1, max(latest, due_at))
        return reached


class Settled(NamedTuple):
    """One row whose settlement took effect."""

    outbox_id: int
    disposition: str
    """A Disposition's value."""
    age_seconds: float
    """Since the row's creation, by the database's clock."""


def open_topics(connection: Connection[Any]) -> tuple[datetime, Sequence[str]]:
    """The database's time, and the topics that have open rows."""
    row = connection.execute(QUERIES["open_topics"].sql).fetchone()
    assert row is not None
    return row[0], row[1]


def claim(
    connection: Connection[Any],
    *,
    token: UUID,
    claimed_by: str,
    lanes: Mapping[str, Lane],
    max_bytes: int,
    lease_seconds: float,
    max_attempts: int,
) -> Claim:
    """Claims due rows of the topics named; committed when this returns. ``connection`` is in autocommit mode."""
    rows = connection.execute(
        QUERIES["claim"].sql,
        {
            "claim_token": token,
            "claimed_by": claimed_by,
            "topics": list(lanes),
            "since": [lane.since for lane in lanes.values()],
            "limits": [lane.limit for lane in lanes.values()],
            "claim_bytes": max_bytes,
            "lease_seconds": lease_seconds,
            "max_attempts": max_attempts,
        },
    ).fetchall()
    return Claim(token, rows)


def settle(
    connection: Connection[Any], *, claimed_by: str, settlements: Sequence[tuple[Message, Settlement]]
) -> Sequence[Settled]:
    """Records outcomes in one round trip; the answer leaves out what another claim has taken over."""
    rows = connection.execute(
        QUERIES["settle"].sql,
        {
            "claimed_by": claimed_by,
            "ids": [message.outbox_id for message, _ in settlements],
            "claim_tokens": [message.claim_token for message, _ in settlements],
            "dispositions": [settlement.disposition.value for _, settlement in settlements],
            "message_ids": [settlement.message_id for _, settlement in settlements],
            "errors": [settlement.error for _, settlement in settlements],
            "delays_seconds": [settlement.delay.total_seconds() for _, settlement in settlements],
        },
    )
    return [Settled._make(row) for row in rows]


def settled_before(connection: Connection[Any], message_ids: Mapping[int, str]) -> Sequence[Settled]:
    """Which of the messages, by outbox id, an earlier settlement recorded under the id that the queue gave them."""
    rows = connection.execute(
        QUERIES["settled_before"].sql, {"ids": list(message_ids), "message_ids": list(message_ids.values())}
    )
    return [Settled._make(row) for row in rows]


def backlog(connection: Connection[Any]) -> tuple[int, float]:
    """How many promises are open, and the age in seconds of the oldest."""
    row = connection.execute(QUERIES["backlog"].sql).fetchone()
    assert row is not None
    return row[0], row[1]


def take_over(connection: Connection[Any], *, token: UUID, name: str) -> None:
    """Makes this the one relay that lingers; whoever did so before will notice."""
    connection.execute(QUERIES["take_over"].sql, {"token": token, "name": name})


def is_on_duty(connection: Connection[Any], *, token: UUID) -> bool:
    """Whether no other relay has taken over since."""
    return connection.execute(QUERIES["is_on_duty"].sql, {"token": token}).fetchone() is not None


def leave(connection: Connection[Any], *, token: UUID) -> None:
    """Leaves the post empty, unless another relay has taken it over."""
    connection.execute(QUERIES["leave"].sql, {"token": token})
