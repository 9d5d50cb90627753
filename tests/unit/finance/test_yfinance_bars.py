"""Which bars the source makes of Yahoo's answers, and when a bar is closed."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from tests.unit.finance.market import MINUTE, NOW, Market, bars_of, minute_of, payloads, refused, yahoo

from control_plane.ingestion.source import Fetched, Source, TradingSession
from market_replay import Correction, Fault
from market_replay.prices import bar_at

# What is fetched


def test_every_closed_bar_since_an_instant_is_an_observation(market: Market) -> None:
    source: Source = market.source()
    since = datetime(2026, 3, 10, 14, 20, tzinfo=UTC)
    fetched = source.fetch("AAPL", since, market.clock.now)
    assert [observation.occurred_at for observation in fetched.observations] == [since + n * MINUTE for n in range(10)]
    assert {observation.event_type for observation in fetched.observations} == {"MARKET_TICK_INGESTED"}
    assert fetched.gap is None
    for observation in fetched.observations:
        real = bar_at("AAPL", minute_of(observation.occurred_at))
        assert observation.payload == {
            "price": real.close,
            "open": real.open,
            "high": real.high,
            "low": real.low,
            "volume": real.volume,
            "currency": "USD",
            "interval": "1m",
        }
        assert observation.occurred_at.tzinfo is UTC


def test_numbers_are_plain_python_numbers(market: Market) -> None:
    market.answers(yahoo([(minute_of(market.clock.now) * 60 - 120, 1, 2.5, 0.5, 2.0, 1200.0)]))
    (payload,) = payloads(market.fetch("AAPL", market.clock.now - timedelta(minutes=5)))
    assert type(payload["volume"]) is int
    assert type(payload["high"]) is float


def test_an_answer_is_kept_unchanged(market: Market) -> None:
    document = yahoo([(minute_of(market.clock.now) * 60 - 120, 1.0, 2.0, 0.5, 1.5, 7)], unheard_of={"é": ["😀", 1e300]})
    market.answers(document)
    assert market.fetch("AAPL", market.clock.now - timedelta(minutes=5)).raw == document


def test_a_bar_in_progress_is_left_out_until_it_ends(market: Market) -> None:
    source = market.source()
    since = market.clock.now - timedelta(minutes=5)
    in_progress = market.clock.now.replace(second=0)
    fetched = source.fetch("AAPL", since, market.clock.now)
    served = cast("Any", fetched.raw)["chart"]["result"][0]["timestamp"]
    assert served[-2:] == [in_progress.timestamp(), market.clock.now.timestamp()]
    assert fetched.observations[-1].occurred_at == in_progress - MINUTE

    market.clock.now = in_progress + MINUTE - timedelta(microseconds=1)
    assert source.fetch("AAPL", since, market.clock.now).observations[-1].occurred_at == in_progress - MINUTE
    market.clock.now = in_progress + MINUTE
    newest = source.fetch("AAPL", since, market.clock.now).observations[-1]
    assert newest.occurred_at == in_progress
    assert newest.payload["price"] == bar_at("AAPL", minute_of(in_progress)).close


def test_a_live_price_between_minutes_is_never_a_bar(market: Market) -> None:
    start = minute_of(market.clock.now) * 60 - 600
    market.answers(yahoo([(start, 1.0, 2.0, 0.5, 1.5, 7), (start + 37, 1.6, 1.6, 1.6, 1.6, 0)]))
    assert [bar["price"] for bar in payloads(market.fetch("AAPL", market.clock.now - timedelta(hours=1)))] == [1.5]


def test_the_closing_price_added_at_the_bell_is_no_bar(market: Market) -> None:
    bell = minute_of(market.clock.now) * 60 - 600
    rows = [(bell - 60, 1.0, 2.0, 0.5, 1.5, 7), (bell, 1.6, 1.6, 1.6, 1.6, 0)]
    market.answers(yahoo(rows, closes={"start": bell - 390 * 60, "end": bell}))
    assert [bar["price"] for bar in payloads(market.fetch("AAPL", market.clock.now - timedelta(hours=1)))] == [1.5]


def test_a_market_that_never_closes_keeps_its_last_minute(market: Market) -> None:
    last = minute_of(market.clock.now) * 60 - 600
    rows = [(last, 1.0, 2.0, 0.5, 1.5, 7)]
    market.answers(yahoo(rows, closes={"start": last - 23 * 3600 - 59 * 60, "end": last}))  # as for BTC-USD, to 23:59
    assert len(market.fetch("AAPL", market.clock.now - timedelta(hours=1)).observations) == 1


def test_a_correction_is_seen_within_the_same_process(market: Market) -> None:
    source = market.source()
    bar = datetime(2026, 3, 10, 13, 50, tzinfo=UTC)  # yfinance caches answers about what is 30 minutes old
    before = source.fetch("AAPL", bar, market.clock.now).observations[0]
    market.replay.faults.put("AAPL", Fault(correct=Correction(minute_of(bar), 1234.5)))
    after = source.fetch("AAPL", bar, market.clock.now).observations[0]
    assert before.occurred_at == after.occurred_at == bar
    assert before.payload["price"] != after.payload["price"] == 1234.5


def test_a_minute_without_a_trade_is_left_out(market: Market) -> None:
    market.replay.faults.put("AAPL", Fault(null_bar=True))
    fetched = market.fetch("AAPL", market.clock.now - timedelta(minutes=5))
    assert fetched.observations[-1].occurred_at == market.clock.now.replace(second=0) - 2 * MINUTE


def test_an_incomplete_bar_is_passed_on_as_it_is(market: Market) -> None:
    market.replay.faults.put("AAPL", Fault(nan=True))
    newest = market.fetch("AAPL", market.clock.now - timedelta(minutes=5)).observations[-1]
    assert newest.occurred_at == market.clock.now.replace(second=0) - MINUTE
    assert newest.payload["price"] is None
    assert newest.payload["open"] is not None


def test_a_missing_volume_stays_missing(market: Market) -> None:
    market.answers(yahoo([(minute_of(market.clock.now) * 60 - 120, 1.0, 2.0, 0.5, 1.5, None)]))
    (payload,) = payloads(market.fetch("AAPL", market.clock.now - timedelta(minutes=5)))
    assert payload["volume"] is None


@pytest.mark.parametrize("form", [{"timestamp": []}, {}], ids=["no timestamps", "none at all"])
def test_a_closed_market_is_no_error(market: Market, form: dict[str, Any]) -> None:
    document = yahoo([])
    result = document["chart"]["result"][0]
    del result["timestamp"]
    result |= form | {"indicators": {"quote": [{}]}}
    market.answers(document)
    assert market.fetch("AAPL", market.clock.now - timedelta(minutes=5)).observations == ()


def session(start: datetime, end: datetime) -> dict[str, Any]:
    return {"timezone": "EDT", "start": int(start.timestamp()), "end": int(end.timestamp()), "gmtoffset": -14400}


OPENS, CLOSES = datetime(2026, 3, 10, 13, 30, tzinfo=UTC), datetime(2026, 3, 10, 20, tzinfo=UTC)


@pytest.mark.parametrize("told_by", ["tradingPeriods", "currentTradingPeriod"])
@pytest.mark.parametrize(
    ("now", "is_open"),
    [
        (OPENS - MINUTE, False),
        (OPENS, True),
        (NOW, True),
        (CLOSES, False),
        (NOW + timedelta(hours=12), False),
        (NOW + timedelta(days=4), False),  # a Saturday
    ],
)
def test_the_session_in_progress_is_the_exchanges_own(
    market: Market, told_by: str, now: datetime, is_open: bool
) -> None:
    day = session(OPENS, CLOSES)
    meta = {"tradingPeriods": [[day]], "currentTradingPeriod": {"pre": day, "regular": day, "post": day}}[told_by]
    market.clock.now = now
    market.answers(yahoo([], closes=None, **{told_by: meta}))
    fetched = market.fetch("AAPL", now - timedelta(minutes=5))
    assert fetched.session == (TradingSession(OPENS, CLOSES) if is_open else None)


@pytest.mark.parametrize(
    "current", [None, "open", {}, {"regular": None}, {"regular": {"start": "soon", "end": 1e300}}, {"regular": []}]
)
def test_a_session_told_in_another_shape_costs_no_bar(market: Market, current: object) -> None:
    rows = [(minute_of(market.clock.now) * 60 - 120, 1.0, 2.0, 0.5, 1.5, 1)]
    market.answers(yahoo(rows, currentTradingPeriod=current))
    fetched = market.fetch("AAPL", market.clock.now - timedelta(minutes=5))
    assert (len(fetched.observations), fetched.session) == (1, None)


def test_a_first_look_without_any_bar_is_malformed_and_kept(market: Market) -> None:
    market.replay.faults.put("AAPL", Fault(empty=True))
    error = refused(market.source())
    assert (error.kind, error.reason) == ("malformed", "the chart is empty: not one bar in 29 days")
    assert len(error.raw) == len(market.requests) > 1
    assert all(answer["chart"]["result"] for answer in error.raw)


def test_a_window_before_a_symbols_first_bar_is_empty(market: Market) -> None:
    error = {"code": "Bad Request", "description": "Data doesn't exist for startDate = 1, endDate = 2"}
    body = json.dumps({"chart": {"result": None, "error": error}})
    market.replay.faults.put("AAPL", Fault(status=400, body=body, content_type="application/json"))
    assert market.fetch("AAPL", market.clock.now - timedelta(minutes=5)).observations == ()


# When a bar is closed


def starts(fetched: Fetched) -> list[datetime]:
    return [observation.occurred_at for observation in fetched.observations]


ASKED_AT = datetime(2026, 3, 10, 15, 30, 30, tzinfo=UTC)
QUARTER_PAST = datetime(2026, 3, 10, 15, 15, tzinfo=UTC)


def test_a_delayed_exchanges_bar_in_progress_is_left_out(market: Market) -> None:
    market.clock.now = ASKED_AT
    market.replay.faults.put("AAPL", Fault(behind_seconds=900))
    fetched = market.fetch("AAPL", ASKED_AT - timedelta(minutes=20))
    (answer,) = cast("Any", fetched.raw)["chart"]["result"]
    assert answer["meta"]["regularMarketTime"] == (QUARTER_PAST + timedelta(seconds=30)).timestamp()
    assert starts(fetched)[-1] == QUARTER_PAST - MINUTE

    market.clock.now = ASKED_AT + timedelta(seconds=30)
    newest = market.fetch("AAPL", ASKED_AT - timedelta(minutes=20)).observations[-1]
    assert newest.occurred_at == QUARTER_PAST
    assert newest.payload["price"] == bar_at("AAPL", minute_of(QUARTER_PAST)).close


def test_a_delayed_exchanges_newest_hour_excludes_the_bar_in_progress(market: Market) -> None:
    market.clock.now = ASKED_AT
    market.replay.faults.put("AAPL", Fault(behind_seconds=900))
    assert starts(market.fetch("AAPL", None))[-1] == QUARTER_PAST - MINUTE


@pytest.mark.parametrize(
    ("last_trade", "is_closed"), [(59, False), (59.999, False), (60, True), (61, True), (900 + 300, True)]
)
def test_a_bar_closes_once_the_sources_clock_passes_it(market: Market, last_trade: float, is_closed: bool) -> None:
    market.clock.now = ASKED_AT
    market.answers(bars_of([QUARTER_PAST], regularMarketTime=QUARTER_PAST.timestamp() + last_trade))
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == ([QUARTER_PAST] if is_closed else [])


def test_a_later_traded_bar_closes_the_one_before_it(market: Market) -> None:
    market.clock.now = ASKED_AT
    later = QUARTER_PAST + 3 * MINUTE
    market.answers(bars_of([QUARTER_PAST, later], regularMarketTime=None))
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == [QUARTER_PAST]


@pytest.mark.parametrize("last_trade", [None, 5], ids=["no clock", "a clock that stands still"])
def test_a_bar_half_an_hour_old_is_always_closed(market: Market, last_trade: int | None) -> None:
    clock = None if last_trade is None else int(QUARTER_PAST.timestamp()) + last_trade
    market.answers(bars_of([QUARTER_PAST], regularMarketTime=clock))
    market.clock.now = QUARTER_PAST + MINUTE + timedelta(minutes=30) - timedelta(microseconds=1)
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == []
    market.clock.now += timedelta(microseconds=1)
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == [QUARTER_PAST]


def test_no_bar_closes_before_its_end_by_our_clock(market: Market) -> None:
    market.clock.now = QUARTER_PAST + timedelta(seconds=59)
    ahead = int(QUARTER_PAST.timestamp()) + 90
    market.answers(bars_of([QUARTER_PAST, QUARTER_PAST + MINUTE], regularMarketTime=ahead))
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == []


@pytest.mark.parametrize(
    "clock",
    [
        *[True, "1773155800", "soon", [], {}, -1, 0, 1e300, 10**400],
        1773155800000,  # milliseconds
        int(ASKED_AT.timestamp()) + 301,
    ],
    ids=repr,
)
def test_a_clock_that_is_no_sane_number_is_ignored(market: Market, clock: object) -> None:
    market.clock.now = ASKED_AT
    market.answers(bars_of([QUARTER_PAST, QUARTER_PAST + MINUTE], regularMarketTime=clock))
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == [QUARTER_PAST]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_clock_that_is_not_finite_is_ignored(market: Market, literal: str) -> None:
    market.clock.now = ASKED_AT
    document = bars_of([QUARTER_PAST, QUARTER_PAST + MINUTE], regularMarketTime="LITERAL")
    market.answers(json.dumps(document).replace('"LITERAL"', literal))
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == [QUARTER_PAST]


def test_a_later_answers_clock_closes_no_earlier_bar(market: Market) -> None:
    half_made = bars_of([QUARTER_PAST], regularMarketTime=int(QUARTER_PAST.timestamp()) + 30)
    later = bars_of([], regularMarketTime=int(QUARTER_PAST.timestamp()) + 60)
    read = market.source().read([half_made, later], symbol="AAPL", since=QUARTER_PAST, asked_at=ASKED_AT)
    assert read.observations == ()
