"""The pipeline's status: the counts and ages that the metrics would show, and what a person has to deal with."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.ops.dead_letters import DeadLetter, read_dead_letters
from control_plane.ops.horizon import PINNED_AFTER_SECONDS, HorizonHolder, pinned_horizon
from control_plane.ops.timeline import QUERIES
from control_plane.platform.breakers import Breaker, read_breakers

OPEN_STATES: Final = frozenset({"pending", "in_flight", "retrying"})
NEWEST_DEAD_LETTERS: Final = 5
"""How many dead letters the status names; `acp dead-letters` lists all."""
NEWEST_MESSAGES: Final = 10_000
"""How many of the newest messages are searched for deliveries that no consumer has processed."""


@dataclass(frozen=True, slots=True)
class DeliveryCount:
    """How many deliveries of one subscription are in one state."""

    subscription: str
    topic: str | None
    """None if the table ``subscriptions`` does not have the subscription."""
    state: str
    """``pending``, ``in_flight``, ``retrying``, ``delivered``, ``dead_lettered``, ``redriven``, ``discarded``."""
    count: int
    oldest_age_seconds: float | None
    """The age of the oldest live one since it was promised; None where there is none, and for ``delivered``."""


@dataclass(frozen=True, slots=True)
class StrandedDeliveries:
    """Pending deliveries of a subscription that is not active: no relay delivers them."""

    subscription: str
    count: int
    was_removed: bool
    """True if the subscription was removed; False if the table never had it."""

    def __str__(self) -> str:
        why = "was removed" if self.was_removed else "is not in the table of subscriptions"
        return (
            f"{self.count} pending for {self.subscription}, which {why}: deploy a template that has it, and run "
            "MigrationFunction"
        )


@dataclass(frozen=True, slots=True)
class ConsumerLag:
    """Deliveries that a subscription's consumer has not processed, among those of the newest messages."""

    subscription: str
    count: int
    oldest_age_seconds: float
    """The seconds since the oldest of them was delivered."""
    oldest_event_id: UUID


@dataclass(frozen=True, slots=True)
class EventCount:
    """How many events of one source and type are stored."""

    source: str
    event_type: str
    count: int
    newest_ingested_at: datetime


@dataclass(frozen=True, slots=True)
class ConsumerCount:
    """How many events one consumer has processed."""

    consumer: str
    count: int
    newest_processed_at: datetime


@dataclass(frozen=True, slots=True)
class LingeringRelay:
    """A lingering relay; ``name`` is what claims and failures call it: its log stream."""

    name: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ActiveOperation:
    """An operation that is planning, running or paused, or failed within a day."""

    operation_id: UUID
    kind: str
    subscription: str
    state: str
    total: int
    done: int
    skipped: int
    error: str | None
    is_stalled: bool
    """Whether it should be at work and has made no step for five minutes."""

    @property
    def problem(self) -> str | None:
        """One sentence on what a person has to deal with, with the remedy; None for no problem."""
        name = f"{self.kind} {self.operation_id}"
        if self.is_stalled:
            return f"{name} has made no step for five minutes: is OperationsFunction running? Its log says why not"
        if self.state == "failed":
            return f"{name} failed: {self.error}. Mend the cause, then resume it or cancel it"
        return None


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """Everything that Postgres knows about the pipeline at one moment."""

    deliveries: Sequence[DeliveryCount]
    events: Sequence[EventCount]
    consumers: Sequence[ConsumerCount]
    consumer_lag: Sequence[ConsumerLag] = ()
    """One entry for each subscription whose consumer keeps a record and has unprocessed deliveries."""
    stranded: Sequence[StrandedDeliveries] = ()
    dead_letters: Sequence[DeadLetter] = ()
    """The newest open dead letters."""
    pinned_horizon: HorizonHolder | None = None
    breakers: Sequence[Breaker] = ()
    """The breakers that ever failed or were held; most are closed again, and some are no longer in use."""
    lingering_relay: LingeringRelay | None = None
    """The relay that lingers; None if relays only drain the outbox, or between two lingering relays."""
    operations: Sequence[ActiveOperation] = ()
    """The operations under way, and those that failed within a day."""

    @property
    def pending(self) -> int:
        """How many deliveries are open; the metric OutboxPending reports the same number."""
        return sum(row.count for row in self.deliveries if row.state in OPEN_STATES)

    @property
    def oldest_pending_age_seconds(self) -> float:
        """The age of the oldest open live delivery, 0 if there is none; so the metric OldestPendingAge reports it."""
        return max((row.oldest_age_seconds or 0.0 for row in self.deliveries if row.state in OPEN_STATES), default=0.0)

    @property
    def open_breakers(self) -> Sequence[Breaker]:
        """The breakers that are in use and not closed."""
        return [breaker for breaker in self.breakers if breaker.is_guarded and not breaker.is_closed]

    def count(self, state: str, subscription: str | None = None) -> int:
        """Returns how many deliveries are in a state, of one subscription or of all."""
        return sum(
            row.count for row in self.deliveries if row.state == state and subscription in {None, row.subscription}
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the status as JSON values, except instants and ids, which are datetimes and UUIDs."""
        return asdict(self) | {
            "pending": self.pending,
            "oldest_pending_age_seconds": self.oldest_pending_age_seconds,
        }


def read_consumer_lag(connection: Connection[Any], *, newest: int = NEWEST_MESSAGES) -> list[ConsumerLag]:
    """Reads which deliveries of the newest messages their consumers have not processed."""
    with connection.cursor(row_factory=lambda _cursor: lambda values: ConsumerLag(*values)) as cursor:
        return cursor.execute(QUERIES["unprocessed_deliveries"].sql, {"limit": newest}).fetchall()


def read_status(connection: Connection[Any], *, pinned_after_seconds: float = PINNED_AFTER_SECONDS) -> PipelineStatus:
    """Reads the status in one consistent snapshot. ``connection`` is in autocommit mode."""

    def read[R](row: type[R], name: str) -> list[R]:
        with connection.cursor(row_factory=lambda _cursor: lambda values: row(*values)) as cursor:
            return cursor.execute(QUERIES[name].sql).fetchall()

    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return PipelineStatus(
            deliveries=read(DeliveryCount, "deliveries_by_state"),
            events=read(EventCount, "events_by_type"),
            consumers=read(ConsumerCount, "processed_by_consumer"),
            consumer_lag=read_consumer_lag(connection),
            stranded=read(StrandedDeliveries, "stranded_deliveries"),
            dead_letters=read_dead_letters(connection, limit=NEWEST_DEAD_LETTERS),
            pinned_horizon=pinned_horizon(connection, seconds=pinned_after_seconds),
            breakers=read_breakers(connection),
            lingering_relay=next(iter(read(LingeringRelay, "lingering_relay")), None),
            operations=read(ActiveOperation, "active_operations"),
        )
