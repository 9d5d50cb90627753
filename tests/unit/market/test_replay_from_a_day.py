"""The replay that starts at a day, and what it tells of splits and dividends."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from bokeh_sampledata import stocks

from control_plane.model.errors import SourceError
from domains.finance.events import CorporateDividend, CorporateSplit, MarketTick
from domains.finance.yfinance_source import YFinanceSource
from market_replay import Replay, serve
from market_replay.chart import Question, chart
from market_replay.faults import Fault
from market_replay.prices import SEAM_MINUTES, SYMBOLS, WARM_UP_MINUTES, actions, daily_bars, listed_on, trading_days

START = datetime(2026, 3, 10, 14, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FIRST = int(START.timestamp()) // 60


def replay_from(day: str) -> Replay:
    return Replay.from_day(date.fromisoformat(day), FIRST)


def close_on(symbol: str, day: str) -> float:
    days = getattr(stocks, symbol)
    return float(days["close"][days["date"].index(day)])


@contextmanager
def source_from(day: str) -> Iterator[YFinanceSource]:
    with serve(clock=lambda: START + 5 * MINUTE, replay=replay_from(day)) as server:
        yield YFinanceSource(market_data_url=server.url)


def test_the_given_minute_has_the_day_and_the_next_the_next() -> None:
    replay = replay_from("2008-09-26")
    closes = [bar.close for minute in (-1, 0, 1) if (bar := replay.bar("AAPL", FIRST + minute))]
    assert closes == [close_on("AAPL", day) for day in ("2008-09-25", "2008-09-26", "2008-09-29")]


def test_a_day_without_trade_gives_way_to_the_next() -> None:
    assert replay_from("2008-09-27") == replay_from("2008-09-29")


@pytest.mark.parametrize("day", ["2000-02-29", "2013-03-02"])
def test_a_day_that_it_does_not_have_is_refused(day: str) -> None:
    with pytest.raises(ValueError, match="is not from 2000-03-01 to 2013-03-01"):
        replay_from(day)


@pytest.mark.parametrize(("day", "bars"), [("2008-09-29", WARM_UP_MINUTES), ("2000-03-03", 2)])
def test_the_days_before_are_served_as_its_warm_up(day: str, bars: int) -> None:
    replay = replay_from(day)
    assert [replay.bar("IBM", FIRST - minute) is not None for minute in range(1, 70)] == [
        minute <= bars for minute in range(1, 70)
    ]


def test_symbols_that_were_not_listed_are_unknown_until_they_are() -> None:
    assert listed_on(date(2004, 8, 18)) == ("AAPL", "IBM", "MSFT")
    assert listed_on(date(2004, 8, 19)) == ("AAPL", "GOOG", "IBM", "MSFT")
    with source_from("2000-09-29") as source, pytest.raises(SourceError, match="not listed yet") as refused:
        source.fetch("GOOG", None, START + 5 * MINUTE)
    assert refused.value.kind == "unknown_symbol"
    replay = replay_from("2004-08-18")
    assert [replay.bar("GOOG", FIRST + minute) is not None for minute in (-1, 0, 1)] == [False, False, True]


def test_the_seam_is_a_break_between_two_sessions() -> None:
    replay = replay_from("2013-02-28")
    traded = [minute for minute in range(70) if replay.bar("AAPL", FIRST + minute) is not None]
    assert traded == [0, 1, *range(2 + SEAM_MINUTES, 70)]
    first = replay.bar("AAPL", FIRST + 2 + SEAM_MINUTES)
    assert first == daily_bars("AAPL")[0]
    assert replay.bar("GOOG", FIRST + 2 + SEAM_MINUTES) is None


def test_within_the_seam_the_market_stands_still() -> None:
    now = START + 30 * MINUTE + timedelta(seconds=20)
    question = Question.from_query({"interval": "1m", "range": "1d"}, now)
    [result] = chart("AAPL", question, now, Fault(), replay_from("2013-02-28"))["chart"]["result"]
    assert result["timestamp"][-1] == int((START + MINUTE).timestamp())
    assert result["meta"]["regularMarketTime"] == int((START + 2 * MINUTE).timestamp())
    assert result["meta"]["regularMarketPrice"] == daily_bars("AAPL")[-1].close


# Splits and dividends


def observed(day: str, symbol: str) -> list[tuple[str, datetime, Any]]:
    with source_from(day) as source:
        fetched = source.fetch(symbol, None, START + 5 * MINUTE)
    return [
        (one.event_type, one.occurred_at, dict(one.payload))
        for one in fetched.observations
        if one.event_type != MarketTick.event_type and one.occurred_at >= START
    ]


@pytest.mark.parametrize(("symbol", "day"), [("AAPL", "2000-06-21"), ("AAPL", "2005-02-28"), ("MSFT", "2003-02-18")])
def test_a_split_comes_with_the_bar_that_it_halves(symbol: str, day: str) -> None:
    split, *_ = observed(day, symbol)
    assert split == (CorporateSplit.event_type, START, {"numerator": 2, "denominator": 1})


def test_a_dividend_is_told_to_a_few_cents() -> None:
    [(event_type, at, payload)] = observed("2004-11-15", "MSFT")
    assert (event_type, at) == (CorporateDividend.event_type, START)
    assert payload == {"amount": pytest.approx(3.08, abs=0.06), "currency": "USD"}


def test_what_is_not_asked_for_is_not_told() -> None:
    now = START + 5 * MINUTE
    for events, told in (({}, False), ({"events": "div"}, False), ({"events": "div,splits"}, True)):
        question = Question.from_query({"interval": "1m", "range": "1d"} | events, now)
        [result] = chart("AAPL", question, now, Fault(), replay_from("2005-02-28"))["chart"]["result"]
        assert ("splits" in result.get("events", {})) is told


def test_splits_and_dividends_explain_the_adjusted_closes() -> None:
    for symbol in SYMBOLS:
        days = getattr(stocks, symbol)
        for place in range(1, len(days["date"])):
            expected = days["adj_close"][place] / days["adj_close"][place - 1]
            before, ratio = days["close"][place - 1], 1.0
            for action in actions(symbol).get(place, ()):
                ratio = action.amount if action.kind == "split" else ratio
                before -= action.amount if action.kind == "dividend" else 0
            assert days["close"][place] * ratio / before == pytest.approx(expected, rel=0.004)
    assert {symbol: len(actions(symbol)) for symbol in SYMBOLS} == {
        "AAPL": 5, "FB": 0, "GOOG": 0, "IBM": 52, "MSFT": 38,
    }  # fmt: skip
    assert len(trading_days()) == 3270
