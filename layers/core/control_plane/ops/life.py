"""What became of an event (G8): one call returns its whole life."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row, dict_row

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class EventLife:
    """JSON values as Postgres renders them: ids and RFC 3339 instants are text."""

    event: Mapping[str, Any]
    """The columns of ``events``, with ``payload``."""
    raw_payload: Mapping[str, Any] | None
    """The columns of ``raw_payloads``; None where the source said nothing."""
    promises: Sequence[Mapping[str, Any]]
    """The columns of ``outbox`` with ``state``, and ``failures``: the columns of ``delivery_failures``."""
    processing: Sequence[Mapping[str, Any]]
    """``consumer`` and ``processed_at`` of each consumer that has acted on it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def read_life(connection: Connection[Any], event_id: UUID) -> EventLife | None:
    """The life of an event, or None where there is no such event."""
    with connection.cursor(row_factory=class_row(EventLife)) as cursor:
        return cursor.execute(QUERIES["event_life"].sql, {"event_id": event_id}).fetchone()


def recent_promises(connection: Connection[Any], *, limit: int) -> Sequence[Mapping[str, Any]]:
    """The newest promises with their events and who has processed them, newest last."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(QUERIES["recent_promises"].sql, {"limit": limit}).fetchall()
