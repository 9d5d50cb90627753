"""What was asked for by a message that may be lost: anomalies that nobody took up, and calls that no agent took."""

from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from control_plane.decisions.emit import emit, message
from control_plane.model.contract import Event, parse_payload
from control_plane.model.decision_events import AgentCallRequested, AnomalyOverlooked
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.messages import NewMessage
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
MOST_TOLD: Final = 500
"""Of each, in one run."""


def tell_again(connection: Connection[Any], *, idle_seconds: float) -> int:
    """Asks again for what nobody has begun within a while; returns how often. Raises psycopg.Error.

    Both are hints: an anomaly that a decision knows of by now, and a call that was taken by now, change nothing.
    """
    return retry_conflicts(lambda: _tell_again(connection, {"idle_seconds": idle_seconds, "most": MOST_TOLD}))


def read_anomaly(connection: Connection[Any], hint: Event) -> Event | None:
    """Returns the anomaly that a hint is about; None where it is not stored any more. Raises psycopg.Error."""
    told = parse_payload(AnomalyOverlooked, hint.payload)
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(QUERIES["stored_event"].sql, {"event_id": UUID(told.anomaly_event_id)}).fetchone()
    return None if row is None else Event.model_validate(row)


def dismiss(connection: Connection[Any], anomaly: Event) -> None:
    """Says that no decision follows from an anomaly, so that nobody asks again. Raises psycopg.Error."""
    connection.execute(QUERIES["dismiss_anomaly"].sql, {"event_id": anomaly.event_id})


def _tell_again(connection: Connection[Any], values: dict[str, float]) -> int:
    with connection.transaction():
        anomalies = connection.execute(QUERIES["overlooked_anomalies"].sql, values).fetchall()
        calls = connection.execute(QUERIES["untaken_calls"].sql, values).fetchall()
        hints = [*(_anomaly(*row) for row in anomalies), *(_call(*row) for row in calls)]
        emit(connection, *hints)
    return len(hints)


def _anomaly(event_id: UUID, trace_id: UUID, entity_id: str, now: Any) -> NewMessage:
    said = AnomalyOverlooked(anomaly_event_id=str(event_id))
    return message(said, entity_id=entity_id, series=f"overlooked:{event_id}", at=now, trace_id=trace_id)


def _call(payload: dict[str, Any], series: str, trace_id: UUID, entity_id: str, now: Any) -> NewMessage:
    said = parse_payload(AgentCallRequested, payload)
    return message(said, entity_id=entity_id, series=f"{series}:again", at=now, trace_id=trace_id)
