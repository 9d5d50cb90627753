"""What the detector's tests share: bars and corporate actions as events, and what became of them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from bokeh_sampledata import stocks
from psycopg import Connection

from control_plane.model.contract import Event, Payload, new_event
from domains.finance import detector
from domains.finance.events import CorporateDividend, CorporateSplit, MarketTick

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TRACE = UUID("0af76519-16cd-43dd-8448-eb211c80319c")


def event(
    payload: Payload,
    at: datetime,
    *,
    entity: str | None = "AAPL",
    source: str = "yfinance",
    series: str = "",
    revision: int = 0,
) -> Event:
    return new_event(
        payload,
        source=source,
        entity_id=entity,
        entity_type="equity",
        occurred_at=at,
        observed_at=at + MINUTE,
        ingested_at=at + MINUTE,
        trace_id=TRACE,
        series=series,
        revision=revision,
    )


def bar(
    close: float,
    minute: int = 0,
    *,
    revision: int = 0,
    entity: str | None = "AAPL",
    source: str = "yfinance",
    interval: str = "1m",
    low: float | None = None,
    high: float | None = None,
    opening: float | None = None,
) -> Event:
    """A revision of the bar that began so many minutes after noon."""
    opening = close if opening is None else opening
    payload = MarketTick(
        price=close,
        open=opening,
        high=max(close, opening) if high is None else high,
        low=min(close, opening) if low is None else low,
        volume=10,
        currency="USD",
        interval=interval,
    )
    at = NOON + minute * MINUTE
    return event(payload, at, entity=entity, source=source, series=interval, revision=revision)


def split(numerator: float, denominator: float = 1, *, minute: int = 0, revision: int = 0, **about: Any) -> Event:
    payload = CorporateSplit(numerator=numerator, denominator=denominator)
    return event(payload, NOON + minute * MINUTE, revision=revision, **about)


def dividend(amount: float, *, minute: int = 0, currency: str = "USD", revision: int = 0, **about: Any) -> Event:
    payload = CorporateDividend(amount=amount, currency=currency)
    return event(payload, NOON + minute * MINUTE, revision=revision, **about)


def quiet(count: int, *, start: int = 0, base: float = 100.0, **about: Any) -> list[Event]:
    """Bars of a market in which nothing happens: each goes up or down a little."""
    return [bar(base * (1 + 0.0004 * (n * 7 % 11 - 5)), start + n, **about) for n in range(count)]


def deliver(connection: Connection[Any], *events: Event) -> list[bool]:
    return [detector.consume(connection, one) for one in events]


@contextmanager
def emptied(connection: Connection[Any]) -> Iterator[None]:
    """A block whose writes are undone at its end."""
    with connection.transaction(force_rollback=True):
        yield


def standing(connection: Connection[Any]) -> list[tuple[Any, ...]]:
    """Every row of the detector's tables that depends on the events alone, and not on their order."""
    queries = (
        "SELECT * FROM detector_bars ORDER BY source, entity_id, bar_interval, occurred_at",
        "SELECT * FROM detector_corporate_actions ORDER BY source, entity_id, kind, occurred_at",
        """
        SELECT
            source, entity_id, series, occurred_at, kind, state, score, threshold, bar_event_id, bar_revision, details
        FROM detector_anomalies WHERE state <> 'withdrawn' ORDER BY 1, 2, 3, 4, 5
        """,
    )
    return [row for query in queries for row in connection.execute(query.encode()).fetchall()]


@dataclass(frozen=True)
class Told:
    """An ANOMALY_DETECTED, as far as tests ask."""

    entity_id: str
    occurred_at: datetime
    kind: str
    is_withdrawn: bool
    bar_event_id: str
    details: dict[str, Any]
    score: float
    revision: int

    @property
    def figure(self) -> Any:
        return self.details.get("return_ppm", self.details.get("beyond_ppm"))


def told(connection: Connection[Any]) -> list[Told]:
    """Every ANOMALY_DETECTED in the order of telling."""
    rows = connection.execute(
        "SELECT entity_id, occurred_at, payload_json, revision FROM events"
        " WHERE event_type = 'ANOMALY_DETECTED' ORDER BY seq"
    )
    return [
        Told(
            entity,
            at,
            said["kind"],
            said["is_withdrawn"],
            said["bar_event_id"],
            said["details"],
            said["score"],
            revision,
        )
        for entity, at, said, revision in rows
    ]


def stands_told(connection: Connection[Any]) -> dict[tuple[str, str, datetime, str], tuple[str, Any]]:
    """What the last event about each bar says; a bar whose last one is a withdrawal is left out."""
    rows = connection.execute(
        "SELECT DISTINCT ON (series, entity_id, occurred_at) series, entity_id, occurred_at, payload_json FROM events"
        " WHERE event_type = 'ANOMALY_DETECTED' ORDER BY series, entity_id, occurred_at, revision DESC"
    )
    return {
        (said["observed_source"], entity, at, said["kind"]): (
            said["bar_event_id"],
            said["details"].get("return_ppm", said["details"].get("beyond_ppm")),
        )
        for _, entity, at, said in rows
        if not said["is_withdrawn"]
    }


@cache
def history(symbol: str) -> dict[str, Event]:
    """bokeh_sampledata's days as daily bars as they were traded, by date."""
    days = getattr(stocks, symbol)
    return {
        date: event(
            MarketTick(price=close, open=open_, high=high, low=low, volume=int(volume), currency="USD", interval="1d"),
            opening(date),
            entity=symbol,
            series="1d",
        )
        for date, open_, high, low, close, volume in zip(
            *(days[name] for name in ("date", "open", "high", "low", "close", "volume")), strict=True
        )
    }


def opening(date: str) -> datetime:
    """When New York's exchange opens on a day, but for daylight saving time."""
    return datetime.fromisoformat(f"{date}T14:30:00Z")


def until(symbol: str, date: str, days: int = 90) -> list[Event]:
    """The bars of a symbol up to a day, that day's included."""
    return [one for day, one in history(symbol).items() if day <= date][-days:]


def found(connection: Connection[Any], date: str) -> dict[tuple[str, str], tuple[str, Any]]:
    """What is on record about a day: entity and kind, to state and score."""
    rows = connection.execute(
        "SELECT entity_id, kind, state, score FROM detector_anomalies WHERE occurred_at = %s", [opening(date)]
    )
    return {(entity, kind): (state, score) for entity, kind, state, score in rows}


def by_time(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda one: (one.occurred_at, one.event_type, one.entity_id or ""))


def revised(one: Event, **changes: Any) -> Event:
    """The next revision of a bar, with other figures."""
    payload = MarketTick.model_validate(one.payload | changes)
    return event(
        payload,
        one.occurred_at,
        entity=one.entity_id,
        source=one.source,
        series=one.series,
        revision=one.revision + 1,
    )
