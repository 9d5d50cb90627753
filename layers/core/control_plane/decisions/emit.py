"""Makes events of deciding into messages, with ids that a second run derives again."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.model.contract import Payload, new_event
from control_plane.model.decision_events import DECISIONS_SOURCE
from control_plane.platform.messages import NewMessage, as_json
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


def message(
    payload: Payload,
    *,
    entity_id: str | None,
    series: str,
    at: datetime,
    trace_id: UUID,
    entity_type: str | None = None,
    revision: int = 0,
) -> NewMessage:
    """Returns an event of deciding as a message. ``series`` tells two events of one type, entity and instant apart.

    Raises ContractViolation.
    """
    event = new_event(
        payload,
        source=DECISIONS_SOURCE,
        entity_id=entity_id,
        entity_type=entity_type,
        occurred_at=at,
        observed_at=at,
        ingested_at=at,
        trace_id=trace_id,
        series=series,
        revision=revision,
    )
    return NewMessage(payload.topic, event.to_message(), payload.also_topics)


def emit(connection: Connection[Any], *messages: NewMessage) -> None:
    """Stores events of deciding with their outbox messages, in the caller's transaction. Raises psycopg.Error."""
    if messages:
        connection.execute(QUERIES["insert_decision_events"].sql, {"events": as_json(messages)})
