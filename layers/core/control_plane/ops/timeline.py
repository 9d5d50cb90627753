"""Reads what became of an event (the guarantee *readable*): one call returns its whole timeline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row, dict_row

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

LARGEST_SHOWN_PAYLOAD: Final = 1 << 20
"""The size in bytes, as JSON text, beyond which a timeline omits a raw payload: Lambda's answers have at most 6 MB."""


@dataclass(frozen=True, slots=True)
class EventTimeline:
    """An event's timeline as JSON values, as Postgres renders them: ids and RFC 3339 instants are text."""

    event: Mapping[str, Any]
    """The columns of ``events``, with ``payload`` in the place of ``payload_json``."""
    raw_payload: Mapping[str, Any] | None
    """The columns of ``raw_payloads``; None for an event without a raw payload. Where the payload is larger than
    LARGEST_SHOWN_PAYLOAD, ``payload_json`` is None and ``omitted`` says so."""
    deliveries: Sequence[Mapping[str, Any]]
    """The columns of ``outbox_states``, one object per message, subscription and operation, oldest promise first. Each
    object also has ``failures``, its failed attempts (``attempt``, ``failed_at``, ``claimed_by``, ``error``), and some
    fields that are null except for dead letters: ``dead_letter_id`` and, once the letter is resolved, ``resolution``,
    ``resolved_at``, ``resolved_by`` and ``redriven_by``. The last is the ``operation_id`` of the delivery that replaces
    it."""
    processing: Sequence[Mapping[str, Any]]
    """``consumer`` and ``processed_at`` of each consumer that has acted on it."""
    consumer_dead_letters: Sequence[Mapping[str, Any]] = ()
    """Its messages that a consumer gave up on, as rows of ``dead_letters`` without their bodies; ``is_redrivable`` is
    false for a message that only says that it is of this event."""
    consume_failures: Sequence[Mapping[str, Any]] = ()
    """The newest failures of consumers on it: ``subscription``, ``message_id``, ``attempt``, ``failed_at``,
    ``error``."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the timeline as JSON."""
        return asdict(self)


def read_timeline(connection: Connection[Any], event_id: UUID) -> EventTimeline | None:
    """Returns the timeline of an event, or None if there is no such event."""
    with connection.cursor(row_factory=class_row(EventTimeline)) as cursor:
        return cursor.execute(
            QUERIES["event_timeline"].sql,
            {"event_id": event_id, "largest_payload": LARGEST_SHOWN_PAYLOAD},
        ).fetchone()


def recent_messages(connection: Connection[Any], *, limit: int) -> Sequence[Mapping[str, Any]]:
    """Returns the newest messages, newest last, each with its event, its deliveries and who has processed it."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(QUERIES["recent_messages"].sql, {"limit": limit}).fetchall()
