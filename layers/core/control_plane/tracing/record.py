"""Reads what is recorded of events and decisions, as their spans are made of it; any role that may read them can."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

type Row = Mapping[str, Any]
"""A row as JSON: instants are text."""


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """What is recorded of one event."""

    event_id: str
    trace_id: str
    event_type: str
    source: str
    entity_id: str | None
    revision: int
    observed_at: datetime
    ingested_at: datetime
    read_at: datetime
    """When all this was so, by the database's clock."""
    deliveries: Sequence[Row]
    """Rows of ``outbox_states``, each with its ``failures`` and its operation's ``operation_kind``."""
    processing: Sequence[Row]
    letters: Sequence[Row]
    """Its messages that a consumer gave up on."""
    failures: Sequence[Row]
    """The newest failures of consumers."""


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """What is recorded of one decision."""

    decision_id: str
    trace_id: str
    trigger_event_id: str
    domain: str
    playbook: str
    playbook_version: str
    entity_id: str
    state: str
    is_shadow: bool
    opened_at: datetime
    closed_at: datetime | None
    read_at: datetime
    pins: bytes | None
    """What was pinned when it opened, as JSON; it names the agents' models."""
    steps: Sequence[Row]
    """The steps in order; ``body`` is JSON text."""
    calls: Sequence[Row]
    """The attempts at agents' calls."""


def read_events(connection: Connection[Any], event_ids: Sequence[UUID]) -> Sequence[RecordedEvent]:
    """Returns what is recorded of these events, as far as they are there, in any order."""
    with connection.cursor(row_factory=class_row(RecordedEvent)) as cursor:
        return cursor.execute(QUERIES["traced_events"].sql, {"event_ids": list(event_ids)}).fetchall()


def read_decisions(connection: Connection[Any], decision_ids: Sequence[UUID]) -> Sequence[RecordedDecision]:
    """Returns what is recorded of these decisions, as far as they are there, in any order."""
    with connection.cursor(row_factory=class_row(RecordedDecision)) as cursor:
        return cursor.execute(QUERIES["traced_decisions"].sql, {"decision_ids": list(decision_ids)}).fetchall()
