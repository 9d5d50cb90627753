"""Forgets what is old, where asked to: in small transactions, as the schema's owner."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.ops.horizon import PINNED_AFTER_SECONDS, HorizonHolder, pinned_horizon
from control_plane.ops.timeline import QUERIES
from control_plane.platform.telemetry import Telemetry

BATCH_SIZE: Final = 1000
"""Rows per transaction: a few tens of milliseconds, so that nobody waits for long and little is lost by a crash."""

RESERVE_SECONDS: Final = 10.0
"""No batch starts when less time than this is left."""

REPEATED_LOOK_RETENTION_DAYS: Final = 31
"""How long repeated looks are kept. No source lets an older instant be fetched again, so nothing asks for them."""


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What a run did, in rows; all of it is committed."""

    deleted_events: int
    """Deleted events; their messages, deliveries and processed_events rows are deleted with them."""
    deleted_raw_payloads: int
    deleted_repeated_looks: int
    finished: bool
    """False if time ran out; the next run continues."""
    pinned_horizon: HorizonHolder | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self)


class Maintenance:
    """Deletes what is older than its retention. A later run continues; several runs at once share the work."""

    def __init__(
        self,
        *,
        event_retention_days: int | None,
        telemetry: Telemetry,
        batch_size: int = BATCH_SIZE,
        pinned_after_seconds: float = PINNED_AFTER_SECONDS,
    ) -> None:
        """If ``event_retention_days`` is None, events are kept for ever."""
        self._event_retention_days = event_retention_days
        self._telemetry = telemetry
        self._batch_size = batch_size
        self._pinned_after_seconds = pinned_after_seconds

    def run(self, connection: Connection[Any], *, remaining_seconds: Callable[[], float]) -> MaintenanceReport:
        """Works batch by batch for as long as there is time. ``connection`` is the owner's, in autocommit mode."""

        def delete(
            delete_batch: Callable[[Connection[Any], Mapping[str, Any]], int], retention_days: int
        ) -> tuple[int, bool]:
            deleted = 0
            while remaining_seconds() >= RESERVE_SECONDS:
                with connection.transaction():
                    connection.execute("SET LOCAL control_plane.retention = 'on'")
                    batch = delete_batch(connection, {"batch_size": self._batch_size, "retention_days": retention_days})
                deleted += batch
                if batch == 0:
                    return deleted, True
            return deleted, False

        holder = pinned_horizon(connection, seconds=self._pinned_after_seconds)
        if holder is not None:
            self._telemetry.logger.warning(str(holder), holder=asdict(holder))
        looks, finished = delete(_delete_repeated_looks, REPEATED_LOOK_RETENTION_DAYS)
        events = raw_payloads = 0
        if self._event_retention_days is not None:
            events, events_finished = delete(_delete_expired_events, self._event_retention_days)
            raw_payloads, raw_finished = delete(_delete_expired_raw_payloads, self._event_retention_days)
            finished = finished and events_finished and raw_finished
        return MaintenanceReport(events, raw_payloads, looks, finished, holder)


def _delete_expired_events(connection: Connection[Any], parameters: Mapping[str, Any]) -> int:
    event_ids = [row[0] for row in connection.execute(QUERIES["expired_events"].sql, parameters)]
    if not event_ids:
        return 0
    connection.execute(QUERIES["delete_expired_messages"].sql, {"event_ids": event_ids})
    row = connection.execute(QUERIES["delete_expired_events"].sql, {"event_ids": event_ids}).fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0])


def _delete_expired_raw_payloads(connection: Connection[Any], parameters: Mapping[str, Any]) -> int:
    return connection.execute(QUERIES["delete_expired_raw_payloads"].sql, parameters).rowcount


def _delete_repeated_looks(connection: Connection[Any], parameters: Mapping[str, Any]) -> int:
    return connection.execute(QUERIES["delete_repeated_looks"].sql, parameters).rowcount
