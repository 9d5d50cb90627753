"""Deletes what is beyond its retention, batch by batch; the scheduled retention and a planned one share it.

The database decides what may expire at all (db/migrations/0013_rebuild.sql): nothing younger than 30 days, and nothing
that is open or that something open needs.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
EXPIRING: Final = (
    "decisions", "events", "dead_letters", "raw_payloads", "processed_events", "delivery_failures", "consume_failures",
    "audit",
)  # fmt: skip
"""What has a retention, in the order in which it is deleted: raw payloads go after the events made of them.

Dead letters are those that are resolved and whose body is no message of the outbox; others go with their event."""

HELD: Final = ("events", "processed_events")
"""What the scheduled retention leaves alone while a replay or a rebuild is under way."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a call of count_expiring found."""

    rows: int
    last_at: datetime | None
    last_id: str | None
    """Where the next call goes on; None where nothing was found."""
    first_at: datetime | None
    sample: tuple[str, ...]


def delete_expired(
    connection: Connection[Any],
    what: str,
    *,
    batch_size: int,
    days: int | None = None,
    before: datetime | None = None,
    operation_id: UUID | None = None,
) -> int:
    """Deletes one batch of rows older than so many days, or than an instant; returns how many. Raises psycopg.Error."""
    row = connection.execute(
        QUERIES["delete_expired"].sql,
        {"what": what, "before": before, "days": days, "batch_size": batch_size, "operation_id": operation_id},
    ).fetchone()
    assert row is not None, "a function's value is a row"
    return int(row[0])


def retention_waits_for(connection: Connection[Any]) -> UUID | None:
    """Returns the operation for whose end the scheduled retention of HELD waits. Raises psycopg.Error."""
    row = connection.execute(QUERIES["retention_waits_for"].sql).fetchone()
    assert row is not None, "a function's value is a row"
    operation_id: UUID | None = row[0]
    return operation_id


def count_expiring(
    connection: Connection[Any],
    what: str,
    *,
    before: datetime,
    after_at: datetime | str = "-infinity",
    after_id: str = "",
    most: int,
) -> Counted:
    """Counts the next ``most`` rows older than an instant, after a place in the order of age. Raises psycopg.Error."""
    row = connection.execute(
        QUERIES["count_expiring"].sql,
        {"what": what, "before": before, "after_at": after_at, "after_id": after_id, "most": most},
    ).fetchone()
    assert row is not None, "an aggregate's value is a row"
    rows, last_at, last_id, first_at, sample = row
    return Counted(rows, last_at, last_id, first_at, tuple(sample or ()))


def days_ago(connection: Connection[Any], days: int) -> datetime:
    """Returns the instant that is so many days ago, by the database's clock."""
    row = connection.execute(QUERIES["days_ago"].sql, {"days": days}).fetchone()
    assert row is not None
    instant: datetime = row[0]
    return instant
