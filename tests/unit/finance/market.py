"""A market for the real yfinance client: the replay server on loopback, at a time that tests choose."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control_plane.ingestion.source import Fetched
from control_plane.model.errors import SourceError
from domains.finance import yfinance_source as module
from domains.finance.yfinance_source import YFinanceSource
from market_replay import Fault, MarketReplay

MINUTE = timedelta(minutes=1)


class Clock:
    """A clock that gives server and source the same time, and moves only when it is told to."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class Market:
    def __init__(self, replay: MarketReplay, clock: Clock, requests: list[str]) -> None:
        self.replay, self.clock, self.requests = replay, clock, requests

    def source(self, **changes: Any) -> YFinanceSource:
        options: dict[str, Any] = {"market_data_url": self.replay.url, "timeout": 5.0}
        return YFinanceSource(**options | changes)

    def fetch(self, symbol: str, since: datetime | None, **changes: Any) -> Fetched:
        return self.source(**changes).fetch(symbol, since, self.clock.now)

    def answers(self, document: object, symbol: str = "AAPL") -> None:
        body = document if isinstance(document, str) else json.dumps(document)
        self.replay.faults.put(symbol, Fault(body=body, content_type="application/json"))


NOW = datetime(2026, 3, 10, 14, 30, 20, tzinfo=UTC)


def minute_of(instant: datetime) -> int:
    return int(instant.timestamp()) // 60


def yahoo(
    rows: list[tuple[Any, ...]], *, closes: dict[str, int] | None = None, **meta: object
) -> dict[str, dict[str, Any]]:
    """Returns Yahoo's answer with rows of (timestamp, open, high, low, close, volume).

    By its clock, the last minute is over.
    """
    columns = {name: [row[place] for row in rows] for place, name in enumerate(module.COLUMNS, start=1)}
    clock = {"regularMarketTime": rows[-1][0] + 60} if rows else {}
    result: dict[str, Any] = {
        "meta": {"symbol": "AAPL", "instrumentType": "EQUITY", "currency": "USD"} | clock | meta,
        "timestamp": [row[0] for row in rows],
        "indicators": {"quote": [columns]},
    }
    if closes:
        result["meta"]["tradingPeriods"] = [[closes]]
    return {"chart": {"result": [result], "error": None}}


def refused(source: YFinanceSource, symbol: str = "AAPL", since: datetime | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        source.fetch(symbol, since, NOW)
    assert caught.value.symbol == symbol
    return caught.value


def payloads(fetched: Fetched) -> list[dict[str, Any]]:
    return [dict(observation.payload) for observation in fetched.observations]


def bars_of(starts: list[datetime], **meta: Any) -> dict[str, Any]:
    return yahoo([(int(start.timestamp()), 1.0, 2.0, 0.5, 1.5, 7) for start in starts], **meta)
