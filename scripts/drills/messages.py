"""A drill's outbox messages: it stores them, reads their state, and says what happened to them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from psycopg.rows import class_row

from control_plane.ingestion.store import Look, RawPayload, store_events
from control_plane.platform.queries import load_queries
from domains.finance.events import MARKET_TICKS, MarketTick

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from psycopg import Connection

    from control_plane.model.contract import Event
    from control_plane.platform.breakers import Breaker

QUERIES: Final = load_queries("drills")
SOURCE: Final = "drill"
"""The source of a drill's own events, so that their prices cannot be mistaken for the market's."""
ENTITY: Final = "DRILL"
TOPIC: Final = MARKET_TICKS
SUBSCRIPTION: Final = "signal_lab"
"""The subscription whose deliveries the drills make fail, and whose consumer acts on each message once."""
SUBSCRIPTIONS: Final = (SUBSCRIPTION, "system_events")
"""The subscriptions whose deliveries the drills observe: not the detector's, nor those that a user has added."""
KEEPERS: Final = (SUBSCRIPTION, "detector")
"""The subscriptions whose consumers keep a drill's ticks, so that mending has something to remove."""
_SERIES = "1m"
_AT_ONCE_SECONDS = 0.1
_CURRENCY = "XTS"
"""ISO 4217 reserves this code for testing."""


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """An outbox message and its latest delivery to one subscription, at one moment."""

    id: int
    event_id: UUID
    event_type: str
    entity_id: str | None
    topic: str
    subscription: str
    state: str
    attempts: int
    due_in_seconds: float
    """Seconds until the next attempt; for a message in flight, until its lease ends."""
    claimed_by: str | None
    last_error: str | None
    message_id: str | None
    created_at: datetime
    delivered_at: datetime | None
    dead_lettered_at: datetime | None
    failed_at: Sequence[datetime]
    """When each failed attempt was recorded."""
    is_consumed: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Ticks of a drill's own, made as ingestion makes them, not stored yet."""

    raw: RawPayload
    looks: Sequence[Look]

    @classmethod
    def make(cls, *, drill: str, trace_id: UUID, count: int, now: datetime) -> Batch:
        """Makes ``count`` ticks, a microsecond apart from `now` on, with prices 1, 2, 3 …"""
        prices = [float(number) for number in range(1, count + 1)]
        raw = RawPayload(
            uuid4(),
            SOURCE,
            ENTITY,
            observed_at=now,
            window_since=None,
            fetched_at=now,
            trace_id=trace_id,
            payload={"drill": drill, "prices": list(prices)},
        )
        looks = [
            Look(
                MarketTick(
                    price=price, open=price, high=price, low=price, volume=0, currency=_CURRENCY, interval=_SERIES
                ),
                source=SOURCE,
                entity_id=ENTITY,
                entity_type=None,
                occurred_at=now + timedelta(microseconds=index),
                observed_at=now,
                trace_id=trace_id,
                series=_SERIES,
                raw_payload_id=raw.id,
            )
            for index, price in enumerate(prices)
        ]
        return cls(raw, looks)

    @property
    def events(self) -> list[Event]:
        """The events that the looks become, all of revision 0, since only the drill stores events at these instants."""
        return [look.to_event(revision=0, ingested_at=self.raw.fetched_at) for look in self.looks]

    @property
    def ids(self) -> list[UUID]:
        """The events' ids, which are known before they are stored."""
        return [event.event_id for event in self.events]

    def store(self, connection: Connection[Any]) -> None:
        """Stores the events and their outbox messages, in one transaction."""
        with connection.transaction():
            store_events(connection, [self.raw], self.looks)


def read(connection: Connection[Any], trace_ids: Iterable[UUID]) -> list[OutboxMessage]:
    """Returns the outbox messages of these runs' events, with their deliveries to the drills' subscriptions."""
    with connection.cursor(row_factory=class_row(OutboxMessage)) as cursor:
        return cursor.execute(
            QUERIES["messages_of_runs"].sql,
            {"trace_ids": list(trace_ids), "subscriptions": list(SUBSCRIPTIONS)},
        ).fetchall()


class Story:
    """Turns one look after another into lines that say what has changed between them."""

    def __init__(self) -> None:
        self._messages: dict[int, OutboxMessage] = {}
        self._breaker: tuple[str, str | None] | None = None
        self._retry_in_seconds = 0.0

    def tell(self, messages: Sequence[OutboxMessage], breaker: Breaker) -> list[str]:
        """Returns a line for each kind of change since the last look, with how many messages it happened to."""
        news: dict[str, list[float]] = {}
        consumed = Counter[bool]()
        for message in messages:
            before = self._messages.get(message.id)
            if (what := _change(before, message)) is not None:
                news.setdefault(what, []).append(message.due_in_seconds)
            consumed[message.is_consumed and not (before is not None and before.is_consumed)] += 1
            self._messages[message.id] = message
        lines = [f"{len(waits)} {what.replace('{wait}', _span(waits))}" for what, waits in news.items()]
        if consumed[True]:
            lines.append(f"{consumed[True]} consumed")
        return lines + self._tell_of(breaker)

    def _tell_of(self, breaker: Breaker) -> list[str]:
        now = (breaker.state, breaker.last_error)
        wait = breaker.retry_in_seconds or 0.0
        # A cool-down that only counts down is not reported; a new cool-down is.
        is_news = breaker.state != (self._breaker or ("closed",))[0] or wait > self._retry_in_seconds + 0.5
        self._breaker, self._retry_in_seconds = now, wait
        return [f"breaker {breaker_state(breaker)}"] if is_news else []


def breaker_state(breaker: Breaker) -> str:
    """The state of a breaker in a few words."""
    match breaker.state:
        case "open":
            wait = max(breaker.retry_in_seconds or 0.0, 0.0)
            return f"open after {breaker.consecutive_failures} failures, next probe in {wait:.1f} s"
        case "half_open":
            return "half-open: one probe is on its way"
        case _:
            return "closed"


def counts(messages: Sequence[OutboxMessage]) -> Mapping[str, int]:
    """Returns how many messages are in each state; a consumed message counts as that."""
    return Counter(
        "consumed" if message.is_consumed else message.state.replace("dead_lettered", "dead-lettered").replace("_", " ")
        for message in messages
    )


def _change(before: OutboxMessage | None, now: OutboxMessage) -> str | None:
    """Returns what happened to a message, or None; `{wait}` stands for the seconds until it is due."""
    failures = 0 if before is None else len(before.failed_at)
    if before is not None and (before.state, before.attempts, failures) == (
        now.state,
        now.attempts,
        len(now.failed_at),
    ):
        return None
    match now.state:
        case "delivered":
            what = f"delivered at attempt {now.attempts}"
        case "dead_lettered":
            what = f"dead-lettered: {now.last_error}"
        case "in_flight":
            what = f"claimed, attempt {now.attempts}; the lease ends in {{wait}}"
        case "retrying" if len(now.failed_at) > failures:
            what = f"failed attempt {now.attempts}: {now.last_error}; next try in {{wait}}"
        case "retrying":
            when = "due when the breaker lets it" if now.due_in_seconds < _AT_ONCE_SECONDS else "due in {wait}"
            what = f"given back, attempts spent: {now.attempts}; {now.last_error}; {when}"
        case _ if now.claimed_by is not None:
            what = "left by a relay that is gone: the lease has run out"
        case _:
            what = "pending" if before is None else "pending again"
    if len(now.failed_at) > failures and now.state in {"in_flight", "delivered"}:
        what += f" (attempt {len(now.failed_at)} is recorded as failed)"
    return what


def _span(waits: Sequence[float]) -> str:
    low, high = (max(wait, 0.0) for wait in (min(waits), max(waits)))
    return f"{high:.1f} s" if high - low < 0.1 else f"{low:.1f} to {high:.1f} s"
