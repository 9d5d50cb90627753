"""Deletes data beyond its retention, in small transactions; the database's own functions do the deleting."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.ops.horizon import PINNED_AFTER_SECONDS, HorizonHolder, pinned_horizon
from control_plane.ops.timeline import QUERIES
from control_plane.platform.telemetry import Telemetry

BATCH_SIZE: Final = 1000
"""Rows per transaction: this takes some ten milliseconds, so nobody waits for long and a crash loses little."""

RESERVE_SECONDS: Final = 10.0
"""No batch starts when less time than this is left."""

CONSUME_FAILURE_RETENTION_DAYS: Final = 31
"""For how many days failures of consumers are kept. SQS forgets a message, and with it any dead letter, earlier."""

REPEATED_LOOK_RETENTION_DAYS: Final = 31
"""For how many days repeated looks are kept. No source serves older instants, so older notes are never needed."""


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """What a run deleted, in rows; all of it is committed."""

    deleted_events: int
    """Deleted events; their messages, deliveries and processed_events rows are deleted with them."""
    deleted_raw_payloads: int
    deleted_repeated_looks: int
    finished: bool
    """False if time ran out before all was deleted; the next run continues."""
    pinned_horizon: HorizonHolder | None
    deleted_kept_answers: int = 0
    """Answers that the API kept for a day, for a request that is sent again."""
    deleted_consume_failures: int = 0

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
        """Works batch by batch for as long as there is time. ``connection`` is in autocommit mode."""

        def delete(query: str, retention_days: int) -> tuple[int, bool]:
            deleted = 0
            while remaining_seconds() >= RESERVE_SECONDS:
                row = connection.execute(
                    QUERIES[query].sql, {"batch_size": self._batch_size, "retention_days": retention_days}
                ).fetchone()
                assert row is not None, "a function's value is a row"
                deleted += row[0]
                if row[0] == 0:
                    return deleted, True
            return deleted, False

        holder = pinned_horizon(connection, seconds=self._pinned_after_seconds)
        if holder is not None:
            self._telemetry.logger.warning(str(holder), holder=asdict(holder))
        looks, finished = delete("delete_repeated_looks", REPEATED_LOOK_RETENTION_DAYS)
        events = raw_payloads = 0
        if self._event_retention_days is not None:
            events, events_finished = delete("delete_expired_events", self._event_retention_days)
            raw_payloads, raw_finished = delete("delete_expired_raw_payloads", self._event_retention_days)
            finished = finished and events_finished and raw_finished
        answers, answers_finished = delete("delete_kept_answers", 1)
        failures, failures_finished = delete("delete_consume_failures", CONSUME_FAILURE_RETENTION_DAYS)
        finished = finished and answers_finished and failures_finished
        return MaintenanceReport(events, raw_payloads, looks, finished, holder, answers, failures)
