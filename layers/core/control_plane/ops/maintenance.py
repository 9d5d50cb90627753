"""Keeps the outbox small and, where asked to, forgets old events: in small transactions, as the schema's owner."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.ops.horizon import PINNED_AFTER_SECONDS, HorizonHolder, pinned_horizon
from control_plane.ops.life import QUERIES
from control_plane.platform.telemetry import Telemetry

BATCH_SIZE: Final = 1000
"""Rows per transaction: a few tens of milliseconds, so that nobody waits for long and little is lost by a crash."""

RESERVE_SECONDS: Final = 10.0
"""No batch starts with less time than this left."""


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What a run did: rows, all committed."""

    archived: int
    deleted_events: int
    deleted_raw_payloads: int
    finished: bool
    """False where time ran out; the next run goes on."""
    pinned_horizon: HorizonHolder | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Maintenance:
    """One run after the other, resumed by simply running again; several at once share the work."""

    def __init__(
        self,
        *,
        outbox_retention_days: int,
        event_retention_days: int | None,
        telemetry: Telemetry,
        batch_size: int = BATCH_SIZE,
        pinned_after_seconds: float = PINNED_AFTER_SECONDS,
    ) -> None:
        """``event_retention_days`` None: events are kept for ever."""
        self._outbox_retention_days = outbox_retention_days
        self._event_retention_days = event_retention_days
        self._telemetry = telemetry
        self._batch_size = batch_size
        self._pinned_after_seconds = pinned_after_seconds

    def run(self, connection: Connection[Any], *, remaining_seconds: Callable[[], float]) -> MaintenanceReport:
        """Works batch by batch for as long as there is time. ``connection`` is the owner's, in autocommit mode."""

        def has_time() -> bool:
            return remaining_seconds() >= RESERVE_SECONDS

        holder = pinned_horizon(connection, seconds=self._pinned_after_seconds)
        if holder is not None:
            self._telemetry.logger.warning(str(holder), holder=asdict(holder))
        archived, finished = self._archive_delivered(connection, has_time)
        events = raw_payloads = 0
        if self._event_retention_days is not None:
            events, events_finished = self._delete_in_batches(self._delete_expired_events, connection, has_time)
            raw_payloads, raw_finished = self._delete_in_batches(
                self._delete_expired_raw_payloads, connection, has_time
            )
            finished = finished and events_finished and raw_finished
        return MaintenanceReport(archived, events, raw_payloads, finished, holder)

    def _archive_delivered(self, connection: Connection[Any], has_time: Callable[[], bool]) -> tuple[int, bool]:
        archived = last_id = 0
        while has_time():
            row = connection.execute(
                QUERIES["archive_delivered"].sql,
                {"after_id": last_id, "batch_size": self._batch_size, "retention_days": self._outbox_retention_days},
            ).fetchone()
            assert row is not None
            last_id, moved, any_old = row
            archived += moved
            if not any_old:  # nor is any that was created later
                return archived, True
        return archived, False

    def _delete_in_batches(
        self,
        delete_batch: Callable[[Connection[Any], Mapping[str, Any]], int],
        connection: Connection[Any],
        has_time: Callable[[], bool],
    ) -> tuple[int, bool]:
        deleted = 0
        while has_time():
            with connection.transaction():
                connection.execute("SET LOCAL control_plane.retention = 'on'")
                batch = delete_batch(
                    connection, {"batch_size": self._batch_size, "retention_days": self._event_retention_days}
                )
            deleted += batch
            if batch == 0:
                return deleted, True
        return deleted, False

    @staticmethod
    def _delete_expired_events(connection: Connection[Any], parameters: Mapping[str, Any]) -> int:
        event_ids = [row[0] for row in connection.execute(QUERIES["expired_events"].sql, parameters)]
        if event_ids:
            # Promises before their event, the outbox's before the archive's.
            for name in ("delete_settled_promises", "delete_archived_promises", "delete_processing", "delete_events"):
                connection.execute(QUERIES[name].sql, {"event_ids": event_ids})
        return len(event_ids)

    @staticmethod
    def _delete_expired_raw_payloads(connection: Connection[Any], parameters: Mapping[str, Any]) -> int:
        return connection.execute(QUERIES["delete_expired_raw_payloads"].sql, parameters).rowcount
