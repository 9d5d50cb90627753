"""How the pipeline is: the counts and ages that the metrics would show."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from control_plane.ops.horizon import PINNED_AFTER_SECONDS, HorizonHolder, pinned_horizon
from control_plane.ops.life import QUERIES
from control_plane.platform.breakers import Breaker, read_breakers

OPEN_STATES = frozenset({"pending", "in_flight", "retrying"})


@dataclass(frozen=True, slots=True)
class PromiseCount:
    """Outbox rows of one topic in one state."""

    topic: str
    state: str
    """``pending``, ``in_flight``, ``retrying``, ``delivered``, ``dead_lettered``."""
    count: int
    oldest_age_seconds: float


@dataclass(frozen=True, slots=True)
class EventCount:
    """Stored events of one source and type."""

    source: str
    event_type: str
    count: int
    newest_ingested_at: datetime


@dataclass(frozen=True, slots=True)
class ConsumerCount:
    """Events one consumer has processed."""

    consumer: str
    count: int
    newest_processed_at: datetime


@dataclass(frozen=True, slots=True)
class RelayOnDuty:
    """A lingering relay, by its name in claims and failures: its log stream."""

    name: str
    since: datetime


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """Everything Postgres knows of the pipeline's state at one moment."""

    promises: Sequence[PromiseCount]
    events: Sequence[EventCount]
    consumers: Sequence[ConsumerCount]
    pinned_horizon: HorizonHolder | None = None
    breakers: Sequence[Breaker] = ()
    """Those that ever failed or were held; most are closed again."""
    relay_on_duty: RelayOnDuty | None = None
    """The one that lingers; None where relays only drain, or between two of them."""

    @property
    def pending(self) -> int:
        """Open promises: what OutboxPending would show."""
        return sum(row.count for row in self.promises if row.state in OPEN_STATES)

    @property
    def oldest_pending_age_seconds(self) -> float:
        """The age of the oldest open promise, 0 where there is none: what OldestPendingAge would show."""
        return max((row.oldest_age_seconds for row in self.promises if row.state in OPEN_STATES), default=0.0)

    def count(self, state: str, topic: str | None = None) -> int:
        """Promises in a state, of one topic or of all."""
        return sum(row.count for row in self.promises if row.state == state and topic in {None, row.topic})

    def to_dict(self) -> dict[str, Any]:
        """As JSON, but for the instants, which are datetimes."""
        return asdict(self) | {
            "pending": self.pending,
            "oldest_pending_age_seconds": self.oldest_pending_age_seconds,
        }


def read_status(connection: Connection[Any], *, pinned_after_seconds: float = PINNED_AFTER_SECONDS) -> PipelineStatus:
    """One consistent look."""

    def read[R](row: type[R], name: str) -> list[R]:
        with connection.cursor(row_factory=lambda _cursor: lambda values: row(*values)) as cursor:
            return cursor.execute(QUERIES[name].sql).fetchall()

    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return PipelineStatus(
            promises=read(PromiseCount, "promises_by_state"),
            events=read(EventCount, "events_by_type"),
            consumers=read(ConsumerCount, "processed_by_consumer"),
            pinned_horizon=pinned_horizon(connection, seconds=pinned_after_seconds),
            breakers=read_breakers(connection),
            relay_on_duty=next(iter(read(RelayOnDuty, "relay_on_duty")), None),
        )
