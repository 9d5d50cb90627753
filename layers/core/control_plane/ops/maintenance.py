"""Deletes data beyond its retention, in small transactions; the database's own functions do the deleting."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.ops.horizon import PINNED_AFTER_SECONDS, HorizonHolder, pinned_horizon
from control_plane.ops.timeline import QUERIES
from control_plane.platform.expiry import EXPIRING, HELD, delete_expired, retention_waits_for
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
    """False if time ran out before all was deleted, or it waits for an operation; a later run continues."""
    pinned_horizon: HorizonHolder | None
    deleted_decisions: int = 0
    deleted_dead_letters: int = 0
    """Deleted resolved letters that are of no message of the outbox."""
    deleted_processed_events: int = 0
    deleted_delivery_failures: int = 0
    deleted_consume_failures: int = 0
    deleted_audit: int = 0
    deleted_kept_answers: int = 0
    """Answers that the API kept for a day, for a request that is sent again."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self)


class Maintenance:
    """Deletes what is older than its retention. A later run continues; several runs at once share the work."""

    def __init__(
        self,
        *,
        retention_days: Mapping[str, int],
        telemetry: Telemetry,
        batch_size: int = BATCH_SIZE,
        pinned_after_seconds: float = PINNED_AFTER_SECONDS,
    ) -> None:
        """``retention_days`` holds the days of each of EXPIRING that is not kept for ever."""
        self._retention_days = retention_days
        self._telemetry = telemetry
        self._batch_size = batch_size
        self._pinned_after_seconds = pinned_after_seconds

    def run(self, connection: Connection[Any], *, remaining_seconds: Callable[[], float]) -> MaintenanceReport:
        """Works batch by batch for as long as there is time. ``connection`` is in autocommit mode."""

        def in_batches(delete_batch: Callable[[], int]) -> tuple[int, bool]:
            deleted = 0
            while remaining_seconds() >= RESERVE_SECONDS:
                batch = delete_batch()
                deleted += batch
                if batch == 0:
                    return deleted, True
            return deleted, False

        def delete(what: str, days: int) -> tuple[int, bool]:
            return in_batches(lambda: delete_expired(connection, what, days=days, batch_size=self._batch_size))

        def delete_answers() -> int:
            row = connection.execute(QUERIES["delete_kept_answers"].sql, {"batch_size": self._batch_size}).fetchone()
            assert row is not None, "a function's value is a row"
            return int(row[0])

        holder = pinned_horizon(connection, seconds=self._pinned_after_seconds)
        if holder is not None:
            self._telemetry.logger.warning(str(holder), holder=asdict(holder))
        looks, finished = delete("repeated_looks", REPEATED_LOOK_RETENTION_DAYS)
        deleted = dict.fromkeys(EXPIRING, 0)
        retention_days = {"consume_failures": CONSUME_FAILURE_RETENTION_DAYS, **self._retention_days}
        waits_for = retention_waits_for(connection)
        is_held = False
        for what in EXPIRING:
            if what in retention_days and what in HELD and waits_for is not None:
                finished, is_held = False, True
                self._telemetry.logger.info("retention waits for an operation", what=what, operation_id=str(waits_for))
            elif what in retention_days:
                deleted[what], is_done = delete(what, retention_days[what])
                finished = finished and is_done
        self._telemetry.count("RetentionHeld", int(is_held))
        answers, is_done = in_batches(delete_answers)
        return MaintenanceReport(
            deleted_repeated_looks=looks,
            finished=finished and is_done,
            pinned_horizon=holder,
            deleted_kept_answers=answers,
            **{f"deleted_{what}": rows for what, rows in deleted.items()},
        )
