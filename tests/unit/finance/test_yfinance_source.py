"""The real yfinance client against the replay server, on loopback."""

import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
from curl_cffi.requests import Session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yfinance.data import YfData

from control_plane.ingestion.source import Entity, Fetched, Gap, Source, TradingSession
from control_plane.model.errors import ConfigurationError, SourceError
from domains.finance import yahoo_session
from domains.finance import yfinance_source as module
from domains.finance.yfinance_source import YFinanceSource
from market_replay import Correction, Fault, MarketReplay, serve
from market_replay import server as replay_server
from market_replay.chart import chart
from market_replay.prices import SYMBOLS, bar_at

NEW_YORK = ZoneInfo("America/New_York")
MINUTE = timedelta(minutes=1)


class Clock:
    """Tells server and source the same time, which moves only when it is told to."""

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


@pytest.fixture(scope="module")
def running() -> Iterator[Market]:
    clock = Clock(NOW)
    requests: list[str] = []
    with serve(clock=clock, log=requests.append) as replay:
        yield Market(replay, clock, requests)


@pytest.fixture
def market(running: Market) -> Market:
    running.replay.faults.clear()
    running.requests.clear()
    running.clock.now = NOW
    return running


def minute_of(instant: datetime) -> int:
    return int(instant.timestamp()) // 60


def yahoo(
    rows: list[tuple[Any, ...]], *, closes: dict[str, int] | None = None, **meta: object
) -> dict[str, dict[str, Any]]:
    """Yahoo's answer with rows of (timestamp, open, high, low, close, volume); the last minute is over by its clock."""
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


# What is fetched


def test_every_closed_bar_since_an_instant_is_an_observation_in_order(market: Market) -> None:
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


def test_what_is_answered_is_kept_as_it_was(market: Market) -> None:
    document = yahoo([(minute_of(market.clock.now) * 60 - 120, 1.0, 2.0, 0.5, 1.5, 7)], unheard_of={"é": ["😀", 1e300]})
    market.answers(document)
    assert market.fetch("AAPL", market.clock.now - timedelta(minutes=5)).raw == document


def test_the_bar_in_progress_and_the_live_price_are_left_out_until_the_minute_is_over(market: Market) -> None:
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


def test_a_live_price_between_minutes_is_no_bar_however_old_it_is(market: Market) -> None:
    start = minute_of(market.clock.now) * 60 - 600
    market.answers(yahoo([(start, 1.0, 2.0, 0.5, 1.5, 7), (start + 37, 1.6, 1.6, 1.6, 1.6, 0)]))
    assert [bar["price"] for bar in payloads(market.fetch("AAPL", market.clock.now - timedelta(hours=1)))] == [1.5]


def test_the_closing_price_that_yahoo_adds_at_the_bell_is_no_bar(market: Market) -> None:
    bell = minute_of(market.clock.now) * 60 - 600
    rows = [(bell - 60, 1.0, 2.0, 0.5, 1.5, 7), (bell, 1.6, 1.6, 1.6, 1.6, 0)]
    market.answers(yahoo(rows, closes={"start": bell - 390 * 60, "end": bell}))
    assert [bar["price"] for bar in payloads(market.fetch("AAPL", market.clock.now - timedelta(hours=1)))] == [1.5]


def test_the_last_minute_of_a_market_that_never_closes_is_a_bar(market: Market) -> None:
    last = minute_of(market.clock.now) * 60 - 600
    rows = [(last, 1.0, 2.0, 0.5, 1.5, 7)]
    market.answers(yahoo(rows, closes={"start": last - 23 * 3600 - 59 * 60, "end": last}))  # as for BTC-USD, to 23:59
    assert len(market.fetch("AAPL", market.clock.now - timedelta(hours=1)).observations) == 1


def test_a_correction_is_seen_within_the_same_process(market: Market) -> None:
    source = market.source()
    bar = datetime(2026, 3, 10, 13, 50, tzinfo=UTC)  # yfinance keeps answers about what is 30 minutes old
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
def test_the_session_in_progress_is_the_one_the_exchange_tells_of(
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


def test_a_first_look_that_finds_no_bar_at_all_is_malformed_and_keeps_every_answer(market: Market) -> None:
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


def bars_of(starts: list[datetime], **meta: Any) -> dict[str, Any]:
    return yahoo([(int(start.timestamp()), 1.0, 2.0, 0.5, 1.5, 7) for start in starts], **meta)


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


def test_a_delayed_exchanges_newest_hour_ends_before_its_bar_in_progress(market: Market) -> None:
    market.clock.now = ASKED_AT
    market.replay.faults.put("AAPL", Fault(behind_seconds=900))
    assert starts(market.fetch("AAPL", None))[-1] == QUARTER_PAST - MINUTE


@pytest.mark.parametrize(
    ("last_trade", "is_closed"), [(59, False), (59.999, False), (60, True), (61, True), (900 + 300, True)]
)
def test_a_bar_is_closed_once_the_sources_clock_has_passed_it(
    market: Market, last_trade: float, is_closed: bool
) -> None:
    market.clock.now = ASKED_AT
    market.answers(bars_of([QUARTER_PAST], regularMarketTime=QUARTER_PAST.timestamp() + last_trade))
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == ([QUARTER_PAST] if is_closed else [])


def test_a_later_traded_bar_closes_the_one_before_it(market: Market) -> None:
    market.clock.now = ASKED_AT
    later = QUARTER_PAST + 3 * MINUTE
    market.answers(bars_of([QUARTER_PAST, later], regularMarketTime=None))
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == [QUARTER_PAST]


@pytest.mark.parametrize("last_trade", [None, 5], ids=["no clock", "a clock that stands still"])
def test_a_bar_of_half_an_hour_ago_is_closed_whatever_the_clock_says(market: Market, last_trade: int | None) -> None:
    clock = None if last_trade is None else int(QUARTER_PAST.timestamp()) + last_trade
    market.answers(bars_of([QUARTER_PAST], regularMarketTime=clock))
    market.clock.now = QUARTER_PAST + MINUTE + timedelta(minutes=30) - timedelta(microseconds=1)
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == []
    market.clock.now += timedelta(microseconds=1)
    assert starts(market.fetch("AAPL", QUARTER_PAST)) == [QUARTER_PAST]


def test_no_bar_is_closed_before_its_end_by_the_runs_clock(market: Market) -> None:
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


def test_a_later_answers_clock_closes_no_bar_of_an_earlier_one(market: Market) -> None:
    half_made = bars_of([QUARTER_PAST], regularMarketTime=int(QUARTER_PAST.timestamp()) + 30)
    later = bars_of([], regularMarketTime=int(QUARTER_PAST.timestamp()) + 60)
    read = market.source().read([half_made, later], symbol="AAPL", since=QUARTER_PAST, asked_at=ASKED_AT)
    assert read.observations == ()


# What is kept is read again


@pytest.mark.parametrize(
    "body",
    ['[{"chart": {"result": [{"meta": {}}], "error": null}}]', '{"status": 1, "content_type": null, "body": "{}"}'],
)
def test_an_answer_that_looks_like_ours_is_kept_so_that_it_reads_as_it_was(market: Market, body: str) -> None:
    market.answers(body)
    error = refused(market.source())
    with pytest.raises(SourceError) as again:
        market.source().read(error.raw, symbol="AAPL", since=None, asked_at=NOW)
    assert (again.value.kind, again.value.reason) == (error.kind, error.reason) == ("malformed", error.reason)


@pytest.mark.parametrize("status", [429, 500, 401])
def test_a_refusal_with_a_good_chart_in_it_stays_a_refusal(market: Market, status: int) -> None:
    body = json.dumps(bars_of([NOW.replace(second=0) - 2 * MINUTE]))
    market.replay.faults.put("AAPL", Fault(status=status, body=body, content_type="application/json"))
    error = refused(market.source(), since=NOW - 5 * MINUTE)
    with pytest.raises(SourceError) as again:
        market.source().read(error.raw, symbol="AAPL", since=NOW - 5 * MINUTE, asked_at=NOW)
    assert (again.value.kind, again.value.reason) == (error.kind, error.reason)


# How far back


def test_without_a_beginning_it_is_the_newest_hour(market: Market) -> None:
    fetched = market.fetch("IBM", None)
    newest = market.clock.now.replace(second=0) - MINUTE
    assert [observation.occurred_at for observation in fetched.observations] == [
        newest - (59 - n) * MINUTE for n in range(60)
    ]
    assert len(market.requests) == 1


@pytest.mark.parametrize("closed_for", [timedelta(minutes=90), timedelta(days=2), timedelta(days=9)])
def test_without_a_beginning_a_closed_market_gives_its_last_hour(
    market: Market, monkeypatch: pytest.MonkeyPatch, closed_for: timedelta
) -> None:
    bell = market.clock.now.replace(second=0) - closed_for

    def closed_since(*question: Any) -> dict[str, Any]:
        answer = chart(*question)
        result = answer["chart"]["result"][0]
        rows = [row for row in zip(*columns_of(result), strict=True) if row[0] < bell.timestamp()]
        return yahoo(rows)

    monkeypatch.setattr(replay_server, "chart", closed_since)
    fetched = market.fetch("AAPL", None)
    assert [observation.occurred_at for observation in fetched.observations] == [
        bell - (60 - n) * MINUTE for n in range(60)
    ]
    assert isinstance(fetched.raw, list)
    assert len(fetched.raw) == len(market.requests)


def columns_of(result: dict[str, Any]) -> list[list[Any]]:
    quote = result["indicators"]["quote"][0]
    return [result["timestamp"], *(quote[name] for name in module.COLUMNS)]


def test_more_than_a_week_is_fetched_in_windows_without_a_seam(market: Market) -> None:
    since = market.clock.now - timedelta(days=16)
    fetched = market.fetch("AAPL", since)
    first = since.replace(second=0) + MINUTE
    newest = market.clock.now.replace(second=0) - MINUTE
    starts = [observation.occurred_at for observation in fetched.observations]
    assert starts == [first + n * MINUTE for n in range(16 * 24 * 60 - 1)]
    assert starts[-1] == newest
    assert isinstance(fetched.raw, list)
    assert len(fetched.raw) == 3
    assert fetched.gap is None
    assert market.source().describe(fetched).entity_type == "equity"


def test_what_lies_further_back_than_yahoo_keeps_is_reported_as_a_gap(market: Market) -> None:
    since = market.clock.now - timedelta(days=45)
    fetched = market.fetch("AAPL", since)
    oldest = market.clock.now - module.HISTORY
    assert fetched.gap == Gap(since, oldest)
    assert fetched.observations[0].occurred_at == oldest.replace(second=0) + MINUTE


def test_nothing_is_asked_about_the_future(market: Market) -> None:
    fetched = market.fetch("AAPL", market.clock.now + timedelta(minutes=5))
    assert (fetched.raw, fetched.observations, market.requests) == ([], (), [])


# Time zones


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        (datetime(2026, 1, 15, 9, 32, tzinfo=NEW_YORK), datetime(2026, 1, 15, 14, 32, tzinfo=UTC)),
        (datetime(2026, 7, 15, 9, 32, tzinfo=NEW_YORK), datetime(2026, 7, 15, 13, 32, tzinfo=UTC)),
    ],
    ids=["winter", "summer"],
)
def test_half_past_nine_in_new_york_is_converted_to_utc(market: Market, local: datetime, utc: datetime) -> None:
    market.clock.now = utc + timedelta(minutes=3)
    (first, *_) = market.fetch("AAPL", local).observations
    assert first.occurred_at.isoformat() == utc.isoformat()
    assert first.occurred_at.astimezone(NEW_YORK).replace(tzinfo=None) == local.replace(tzinfo=None)


ZONES = st.sampled_from(
    [ZoneInfo(name) for name in ("America/New_York", "Europe/London", "Australia/Lord_Howe", "UTC")]
)
AROUND_CLOCK_CHANGES = st.one_of(
    st.datetimes(datetime(2026, 3, 7), datetime(2026, 3, 10)),  # noqa: DTZ001 - a zone is given to each below
    st.datetimes(datetime(2026, 10, 31), datetime(2026, 11, 3)),  # noqa: DTZ001 - likewise
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),  # noqa: DTZ001 - likewise
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(instant=AROUND_CLOCK_CHANGES, zone=ZONES, hours=st.integers(min_value=1, max_value=30))
def test_an_instant_stays_the_same_instant_whatever_the_clocks_do(
    market: Market, instant: datetime, zone: ZoneInfo, hours: int
) -> None:
    """No bar is lost, doubled or moved on the night the clocks change."""
    now = instant.replace(tzinfo=UTC)
    market.clock.now = now.astimezone(zone)
    since = (now - timedelta(hours=hours)).astimezone(zone)
    observations = market.fetch("MSFT", since).observations
    assert len(observations) in {hours * 60 - 1, hours * 60}
    minutes = [minute_of(observation.occurred_at) for observation in observations]
    assert minutes == list(range(minutes[0], minutes[0] + len(minutes)))
    assert since <= observations[0].occurred_at < since.astimezone(UTC) + MINUTE
    assert observations[-1].occurred_at + MINUTE <= now < observations[-1].occurred_at + 2 * MINUTE
    assert [bar["price"] for bar in payloads_of(observations)] == [bar_at("MSFT", minute).close for minute in minutes]


def payloads_of(observations: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [observation.payload for observation in observations]


# Who it is about


def test_replayed_prices_never_pass_for_live(market: Market) -> None:
    assert market.source().name == "yfinance-replay"
    for absent in (None, ""):
        live = market.source(market_data_url=absent)
        assert live.name == "yfinance"
        assert live._chart_url == "https://query2.finance.yahoo.com/v8/finance/chart/"


def test_an_entity_is_described_in_yahoos_words(market: Market) -> None:
    source = market.source()
    fetched = source.fetch("GOOG", None, market.clock.now)
    assert source.describe(fetched) == Entity("GOOG", "equity", "America/New_York")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ETF", "etf"),
        ("INDEX", "index"),
        ("CURRENCY", "fx"),
        ("CRYPTOCURRENCY", "crypto"),
        ("MUTUALFUND", "mutualfund"),
        (None, None),
    ],
)
def test_instrument_types_have_our_names(market: Market, said: str | None, expected: str | None) -> None:
    market.answers(yahoo([], instrumentType=said, symbol="EURUSD=X", exchangeTimezoneName="Europe/London"), "EURUSD=X")
    source = market.source()
    fetched = source.fetch("EURUSD=X", market.clock.now - timedelta(minutes=5), market.clock.now)
    assert source.describe(fetched) == Entity("EURUSD=X", expected, "Europe/London")


@pytest.mark.parametrize("symbol", ["^GSPC", "EURUSD=X", "BRK-B", "a/../b", "100%"])
def test_a_symbol_reaches_the_source_as_it_is(market: Market, symbol: str) -> None:
    market.answers(yahoo([], symbol=symbol), symbol)
    source = market.source()
    assert source.describe(source.fetch(symbol, market.clock.now - MINUTE, market.clock.now)).entity_id == symbol


def test_silence_about_an_entity_is_passed_on(market: Market) -> None:
    assert market.source().describe(Fetched("AAPL", [], ())) == Entity("AAPL", None, None)


# What goes wrong


def test_an_unknown_symbol_is_named_with_yahoos_reason(market: Market) -> None:
    error = refused(market.source(), "NOPE")
    assert error.kind == "unknown_symbol"
    assert "The replay has AAPL, FB, GOOG, IBM, MSFT" in error.reason
    assert error.raw["status"] == 404
    assert json.loads(error.raw["body"]) == {
        "chart": {
            "result": None,
            "error": {
                "code": "Not Found",
                "description": "The replay has AAPL, FB, GOOG, IBM, MSFT and no other symbol",
            },
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, "rate_limited"),
        (500, "unreachable"),
        (503, "unreachable"),
        (404, "unknown_symbol"),
        (422, "malformed"),
        (302, "malformed"),
    ],
)
def test_a_refused_request_is_sent_once_and_told_apart(market: Market, status: int, kind: str) -> None:
    market.replay.faults.put("AAPL", Fault(status=status))
    error = refused(market.source())
    assert error.kind == kind
    assert error.raw
    assert len(market.requests) == 1


def test_denied_access_is_tried_again_as_yfinance_does(market: Market) -> None:
    market.replay.faults.put("AAPL", Fault(status=401))
    error = refused(market.source())
    assert (error.kind, "HTTP 401" in error.reason) == ("unreachable", True)
    assert len(market.requests) == 2


def test_a_web_page_is_malformed_and_kept(market: Market) -> None:
    page = "<html><body>Will be right back…</body></html>"
    market.replay.faults.put("AAPL", Fault(body=page))
    error = refused(market.source())
    assert (error.kind, "text/html" in error.reason) == ("malformed", True)
    assert error.raw == {"status": 200, "content_type": "text/html", "body": page}


def row_under(timestamps: str) -> str:
    row = '{"open": [1], "high": [1], "low": [1], "close": [1], "volume": [1]}'
    result = f'{{"meta": {{}}, "timestamp": [{timestamps}], "indicators": {{"quote": [{row}]}}}}'
    return f'{{"chart": {{"result": [{result}], "error": null}}}}'


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{}",
        '"text"',
        '{"chart": null}',
        '{"chart": {"result": null, "error": null}}',
        '{"chart": {"result": [], "error": null}}',
        '{"chart": {"result": [null], "error": null}}',
        '{"chart": {"result": [{"meta": null, "timestamp": [60]}], "error": null}}',
        '{"chart": {"result": [{"meta": {}, "timestamp": [60], "indicators": {"quote": [{}]}}], "error": null}}',
        row_under('"x"'),
        row_under("60, 120"),
        row_under("6e300"),
        '{"chart": {"result": null, "error": {"code": "Bad Request", "description": "Invalid cookie"}}}',
        '{"chart": {"result": null, "error": "no"}}',
        "[" * 100_000,
    ],
    ids=range(17),
)
def test_an_answer_of_another_shape_is_malformed(market: Market, body: str) -> None:
    market.answers(body)
    error = refused(market.source())
    assert error.kind == "malformed"
    assert error.reason


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_has_not_is_passed_on_and_its_answer_kept_as_text(market: Market, literal: str) -> None:
    document = yahoo([(minute_of(market.clock.now) * 60 - 120, 1.0, 2.0, 0.5, "LITERAL", 7)])
    body = json.dumps(document).replace('"LITERAL"', literal)
    market.answers(body)
    source = market.source()
    fetched = source.fetch("AAPL", market.clock.now - timedelta(minutes=5), market.clock.now)
    assert repr(payloads(fetched)[0]["price"]) in {"nan", "inf", "-inf"}
    assert fetched.raw == {"status": 200, "content_type": "application/json", "body": body}
    assert source.describe(fetched).entity_type == "equity"


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "\\\\\\u0000"])
def test_text_that_postgres_refuses_is_kept_as_its_json_spells_it(market: Market, text: str) -> None:
    body = json.dumps(yahoo([], longName="NAME")).replace("NAME", text)
    market.answers(body)
    fetched = market.fetch("AAPL", market.clock.now - timedelta(minutes=5))
    assert fetched.raw == {"status": 200, "content_type": "application/json", "body": body}


def test_text_that_only_looks_like_a_null_character_is_left_alone(market: Market) -> None:
    document = yahoo([], longName="\\u0000")
    market.answers(document)
    assert market.fetch("AAPL", market.clock.now - timedelta(minutes=5)).raw == document


def test_null_characters_and_undecodable_bytes_are_spelled_out() -> None:
    class Answer:
        status_code = 200
        headers: dict[str, str] = {}  # noqa: RUF012 - never changed
        content = b"<p>\0caf\xe9\xed\xa0\x80</p>"

    raw = module._kept(Answer())  # type: ignore[arg-type]  # all that is read of a response
    assert raw == {"status": 200, "content_type": None, "body": r"<p>\x00caf\xe9\xed\xa0\x80</p>"}


def test_a_server_that_is_gone_is_unreachable() -> None:
    with serve() as replay:
        source = YFinanceSource(market_data_url=replay.url)
        source.fetch("AAPL", None, replay.clock())
    error = refused(source)
    assert (error.kind, error.raw) == ("unreachable", None)


def test_a_server_that_does_not_answer_in_time_is_unreachable(market: Market) -> None:
    market.replay.faults.put("AAPL", Fault(delay_seconds=60))
    error = refused(market.source(timeout=0.2))
    assert (error.kind, error.reason) == ("unreachable", "no answer within 0.2 s")


def test_whatever_yfinance_raises_becomes_a_source_error(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_a_consent_page(*_: object, **__: object) -> None:
        raise TypeError("'NoneType' object is not subscriptable")

    monkeypatch.setattr(YfData, "get", parse_a_consent_page)
    error = refused(market.source())
    assert (error.kind, "TypeError" in error.reason) == ("unreachable", True)


@pytest.mark.parametrize("url", ["finance.example", "ftp://finance.example", "http://"])
def test_a_market_data_url_of_another_kind_is_a_configuration_error(market: Market, url: str) -> None:
    with pytest.raises(ConfigurationError, match="MARKET_DATA_URL"):
        market.source(market_data_url=url)


def test_nothing_is_said_besides_the_error(
    market: Market, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    market.replay.faults.put("AAPL", Fault(status=500))
    with caplog.at_level(logging.DEBUG):
        refused(market.source())
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith("yfinance")] == []


# Who is asked


def test_only_the_market_data_url_is_ever_asked(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    request = Session.request

    def noted(self: Any, method: Any, url: str, **kwargs: Any) -> Any:
        asked.append(url)
        return request(self, method, url, **kwargs)

    monkeypatch.setattr(Session, "request", noted)
    source = market.source()
    source.fetch("AAPL", None, NOW)
    market.replay.faults.put("AAPL", Fault(status=401))
    refused(source)
    assert len(asked) == 3
    assert all(url.startswith(market.replay.url) for url in asked)


@pytest.mark.timeout(20)
def test_live_prices_are_had_even_where_cookies_never_come(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """yfinance alone would wait 30 seconds for each of two hosts."""
    monkeypatch.setattr(module, "YAHOO_URL", market.replay.url)
    monkeypatch.setattr(yahoo_session, "COOKIE_TIMEOUT", 0.2)
    source = market.source(market_data_url=None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source._session.proxies = {"https": f"http://127.0.0.1:{silent.getsockname()[1]}"}  # all but the chart
        fetched = source.fetch("AAPL", None, NOW)
    assert len(fetched.observations) == 60
    assert len(market.requests) == 1


def test_threads_never_see_each_others_answers(market: Market) -> None:
    source = market.source()
    jobs = [symbol for symbol in (*SYMBOLS, "NOPE") for _ in range(20)]

    def fetch(symbol: str) -> tuple[str, object, list[Any], list[Any]]:
        try:
            fetched = source.fetch(symbol, market.clock.now - timedelta(minutes=10), market.clock.now)
        except SourceError as error:
            return symbol, error.symbol, [], []
        closes = [bar_at(symbol, minute_of(observation.occurred_at)).close for observation in fetched.observations]
        return symbol, source.describe(fetched).entity_id, [bar["price"] for bar in payloads(fetched)], closes

    with ThreadPoolExecutor(12) as pool:
        for symbol, about, prices, closes in pool.map(fetch, jobs):
            assert about == symbol
            assert prices == closes
