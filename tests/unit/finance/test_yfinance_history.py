"""The past, as a backfill asks for it: windows of any interval, and an answer that says which one it has."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.finance.market import NOW, Market, yahoo

from domains.finance.yahoo_reach import HISTORY, REACHES, YAHOO
from domains.finance.yfinance_source import INTERVALS

DAY = timedelta(days=1)


def test_each_interval_that_can_be_asked_for_has_a_length() -> None:
    assert YAHOO.reaches.keys() == INTERVALS.keys()


def test_days_are_fetched_with_their_own_series_and_instants(market: Market) -> None:
    since, until = NOW - 10 * DAY, NOW - 3 * DAY
    fetched = market.source().fetch_window("IBM", since, until, "1d", NOW)
    bars = [one for one in fetched.observations if one.event_type == "MARKET_TICK_INGESTED"]
    assert [bar.occurred_at for bar in bars] == [
        datetime(2026, 3, day, hour, tzinfo=UTC)
        for day, hour in ((1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (6, 5), (7, 5))
    ], "midnight in New York"
    assert {(bar.series, bar.payload["interval"]) for bar in bars} == {("1d", "1d")}
    assert fetched.gap is None


def test_minutes_of_a_window_end_where_it_does(market: Market) -> None:
    since = NOW.replace(second=0) - 2 * DAY
    fetched = market.source().fetch_window("IBM", since, since + timedelta(hours=1), "1m", NOW)
    bars = [one.occurred_at for one in fetched.observations if one.series == "1m"]
    assert bars == [since + timedelta(minutes=minute) for minute in range(60)]
    assert len(market.requests) == 1


def test_a_window_longer_than_yahoo_allows_is_asked_for_in_parts(market: Market) -> None:
    market.source().fetch_window("IBM", NOW - 20 * DAY, NOW - DAY, "1m", NOW)
    assert len(market.requests) == 3


def test_what_has_become_too_old_meanwhile_is_not_asked_for(market: Market) -> None:
    fetched = market.source().fetch_window("IBM", NOW - HISTORY - DAY, NOW - HISTORY + DAY, "1m", NOW)
    assert fetched.gap is not None
    assert min(one.occurred_at for one in fetched.observations) >= NOW - HISTORY


def test_a_kept_answer_of_days_is_read_as_days_again(market: Market) -> None:
    source, since = market.source(), NOW - 10 * DAY
    fetched = source.fetch_window("IBM", since, NOW, "1d", NOW)
    assert source.read(fetched.raw, symbol="IBM", since=since, asked_at=NOW) == fetched


@pytest.mark.parametrize("interval", ["1h", "1d"])
def test_the_live_price_is_no_bar(market: Market, interval: str) -> None:
    start = NOW.replace(minute=0, second=0) - 3 * DAY
    length = INTERVALS[interval]
    live = start + 2 * length - timedelta(minutes=7)
    rows: list[tuple[Any, ...]] = [
        (int(at.timestamp()), 1.0, 2.0, 0.5, 1.5, 10) for at in (start, start + length, live)
    ]
    market.answers(yahoo(rows, dataGranularity=interval, regularMarketTime=int(live.timestamp())))
    fetched = market.source().fetch_window("AAPL", start, NOW, interval, NOW)
    assert [one.occurred_at for one in fetched.observations] == [start, start + length]


def test_a_day_that_is_not_over_is_no_bar_yet(market: Market) -> None:
    today = NOW.replace(hour=4, minute=0, second=0)
    rows: list[tuple[Any, ...]] = [(int(at.timestamp()), 1.0, 2.0, 0.5, 1.5, 10) for at in (today - DAY, today)]
    market.answers(yahoo(rows, dataGranularity="1d", regularMarketTime=int(NOW.timestamp())))
    fetched = market.source().fetch_window("AAPL", today - 5 * DAY, NOW, "1d", NOW)
    assert [one.occurred_at for one in fetched.observations] == [today - DAY]


def test_a_window_of_days_holds_no_more_dividends_than_are_read() -> None:
    assert REACHES["1d"].window <= 5 * 366 * DAY, "60 of a fund that pays monthly, and a few splits"
