"""The replay server as its clients see it."""

import http.client
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
import yfinance
from bokeh_sampledata import stocks
from hypothesis import given
from hypothesis import strategies as st

from domains.finance.yfinance_source import YFinanceSource
from market_replay import Correction, Fault, MarketReplay, serve
from market_replay.prices import SYMBOLS, Bar, bar_at, bar_so_far

NOW = datetime(2026, 3, 10, 14, 30, 20, tzinfo=UTC)


class Client:
    """One kept-alive connection."""

    def __init__(self, replay: MarketReplay) -> None:
        self._connection = http.client.HTTPConnection(replay.host, replay.port, timeout=5)

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None

    def chart(self, symbol: str = "AAPL", **query: object) -> Any:
        status, document = self.ask("GET", f"/v8/finance/chart/{symbol}?{urlencode({'interval': '1m'} | query)}")
        assert status == 200, document
        return document["chart"]["result"][0]

    def refusal(self, symbol: str = "AAPL", **query: object) -> tuple[int, str, str]:
        status, document = self.ask("GET", f"/v8/finance/chart/{symbol}?{urlencode({'interval': '1m'} | query)}")
        assert document["chart"]["result"] is None
        return status, document["chart"]["error"]["code"], document["chart"]["error"]["description"]

    def close(self) -> None:
        self._connection.close()


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def replay(clock: Clock) -> Iterator[MarketReplay]:
    with serve(clock=clock) as replay:
        yield replay


@pytest.fixture
def client(replay: MarketReplay) -> Iterator[Client]:
    client = Client(replay)
    yield client
    client.close()


def second(instant: datetime) -> int:
    return int(instant.timestamp())


def bars_of(result: Any) -> dict[int, tuple[Any, ...]]:
    quote = result["indicators"]["quote"][0]
    columns = [quote[name] for name in ("open", "high", "low", "close", "volume")]
    return dict(zip(result["timestamp"], zip(*columns, strict=True), strict=True))


# Prices


@given(minute=st.integers(min_value=0, max_value=10**8), symbol=st.sampled_from(sorted(SYMBOLS)))
def test_consecutive_minutes_replay_consecutive_trading_days(minute: int, symbol: str) -> None:
    days = getattr(stocks, symbol)
    closes = days["close"]
    bar, following = bar_at(symbol, minute), bar_at(symbol, minute + 1)
    assert bar == bar_at(symbol, minute)
    steps = set(pairwise([*closes, closes[0]]))
    if (minute + 1) % len(stocks.AAPL["date"]):
        assert (bar.close, following.close) in steps
    else:
        assert bar.close == closes[-1]  # Every series ends on the same day, and all start again together.


@given(
    minute=st.integers(min_value=0, max_value=10**8),
    symbol=st.sampled_from(sorted(SYMBOLS)),
    elapsed=st.floats(min_value=0, max_value=1),
)
def test_a_bar_in_progress_lies_within_the_bar_it_becomes(minute: int, symbol: str, elapsed: float) -> None:
    whole = bar_at(symbol, minute)
    seen = bar_so_far(whole, elapsed)
    assert whole.low <= seen.low <= seen.close <= seen.high <= whole.high
    assert 0 <= seen.volume <= whole.volume
    assert bar_so_far(whole, 0.0) == Bar(whole.open, whole.open, whole.open, whole.open, 0)


# Charts


def test_a_period_has_a_bar_for_every_minute_within(client: Client) -> None:
    start = NOW - timedelta(hours=2)
    bars = bars_of(client.chart(period1=second(start), period2=second(NOW - timedelta(hours=1))))
    first = second(start) // 60 + 1
    assert list(bars) == [minute * 60 for minute in range(first, first + 60)]
    for timestamp, row in bars.items():
        real = bar_at("AAPL", timestamp // 60)
        assert row == (real.open, real.high, real.low, real.close, real.volume)


def test_the_bar_in_progress_and_live_price_keep_changing(client: Client, clock: Clock) -> None:
    period: dict[str, Any] = {"period1": second(NOW - timedelta(minutes=3)), "period2": second(NOW + timedelta(days=1))}
    early = bars_of(client.chart(**period))
    clock.now += timedelta(seconds=25)
    late = bars_of(client.chart(**period))
    in_progress = second(NOW) // 60 * 60
    assert list(early) == [in_progress - 120, in_progress - 60, in_progress, second(NOW)]
    assert early[in_progress] != late[in_progress]
    assert early[second(NOW)] == (early[in_progress][3],) * 4 + (0,)
    assert early[in_progress - 60] == late[in_progress - 60]


@pytest.mark.parametrize(
    ("span", "minutes"), [("1d", 10 * 60 + 30), ("5d", 4 * 24 * 60 - 60 + 10 * 60 + 30)], ids=["1d", "5d"]
)
def test_a_range_begins_at_a_midnight_of_the_exchange(client: Client, span: str, minutes: int) -> None:
    """Clocks changed on 8 March, so five days back is an hour less."""
    result = client.chart(range=span)
    assert len([timestamp for timestamp in result["timestamp"] if timestamp % 60 == 0]) == minutes + 1
    assert result["meta"]["range"] == span
    periods = [period for (period,) in result["meta"]["tradingPeriods"]]
    assert periods[0]["start"] == result["timestamp"][0]
    assert [day["end"] for day in periods[:-1]] == [day["start"] for day in periods[1:]]
    assert periods[-1]["start"] <= result["timestamp"][-1] < periods[-1]["end"]


@pytest.mark.parametrize(
    ("now", "offset", "zone"),
    [(NOW.replace(month=1), -18000, "EST"), (NOW.replace(month=7), -14400, "EDT")],
    ids=["winter", "summer"],
)
def test_the_metadata_is_of_the_date(client: Client, clock: Clock, now: datetime, offset: int, zone: str) -> None:
    clock.now = now
    meta = client.chart("IBM")["meta"]
    assert (meta["gmtoffset"], meta["timezone"], meta["exchangeTimezoneName"]) == (offset, zone, "America/New_York")
    assert (meta["symbol"], meta["currency"], meta["instrumentType"]) == ("IBM", "USD", "EQUITY")
    assert (meta["regularMarketTime"], meta["dataGranularity"]) == (second(now), "1m")


def test_daily_bars_add_the_minutes_up(client: Client) -> None:
    bars = bars_of(client.chart(interval="1d", range="2d"))
    yesterday, _ = bars
    minutes = [bar_at("AAPL", yesterday // 60 + n) for n in range(24 * 60)]
    assert bars[yesterday] == (
        minutes[0].open,
        max(bar.high for bar in minutes),
        min(bar.low for bar in minutes),
        minutes[-1].close,
        sum(bar.volume for bar in minutes),
    )


def test_an_unknown_symbol_is_not_found(client: Client) -> None:
    assert client.refusal("NOPE") == (
        404,
        "Not Found",
        "The replay has AAPL, FB, GOOG, IBM, MSFT and no other symbol",
    )


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        (
            {"period1": second(NOW - timedelta(days=8, seconds=1)), "period2": second(NOW)},
            422,
            "Only 8 days worth of 1m",
        ),
        ({"range": "1mo"}, 422, "Only 8 days worth of 1m"),
        (
            {"period1": second(NOW - timedelta(days=31)), "period2": second(NOW - timedelta(days=29))},
            422,
            "must be within the last 30 days",
        ),
        ({"period1": second(NOW), "period2": second(NOW) - 60}, 400, "start date cannot be after end date"),
        (
            {"interval": "1d", "period1": 0, "period2": 86400},
            400,
            "Data doesn't exist for startDate = 0, endDate = 86400",
        ),
        ({"interval": "7m"}, 422, "interval=7m is not supported"),
        ({"range": "soon"}, 422, "range=soon is not supported"),
        ({"period1": "yesterday"}, 400, "period1=yesterday"),
        ({"period1": "9" * 30}, 400, "period1="),
    ],
    ids=range(9),
)
def test_the_replay_refuses_what_yahoo_refuses(client: Client, query: dict[str, Any], status: int, words: str) -> None:
    refused_with, _, description = client.refusal(**query)
    assert refused_with == status
    assert words in description


def test_eight_days_within_thirty_are_served(client: Client) -> None:
    start = NOW - timedelta(days=29)
    result = client.chart(period1=second(start), period2=second(start + timedelta(days=8)))
    assert len(result["timestamp"]) == 8 * 24 * 60


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # yfinance 1.7.0 under pandas 3.1
def test_plain_yfinance_can_read_the_replay(
    replay: MarketReplay, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own frames, as a user's script would see them."""
    clock.now = datetime.now(UTC)
    confined = YFinanceSource(market_data_url=replay.url)._session
    monkeypatch.setattr(yfinance.base, "_BASE_URL_", replay.url)
    monkeypatch.setattr(yfinance.scrapers.history, "_BASE_URL_", replay.url)
    ticker = yfinance.Ticker("MSFT", session=confined)
    for arguments in ({"period": "1d"}, {"period": "5d", "prepost": True}, {"start": clock.now - timedelta(hours=3)}):
        frame = ticker.history(interval="1m", auto_adjust=False, **arguments)
        assert len(frame) > 1
        closed = frame.index[-2]
        assert closed.tzinfo.key == "America/New_York"
        assert frame["Close"].iloc[-2] == bar_at("MSFT", second(closed) // 60).close
    assert len(ticker.history(interval="1d", period="5d")) == 5


# Everything else


def test_health_answers(client: Client, replay: MarketReplay) -> None:
    replay.faults.put("AAPL", Fault(status=500))
    assert client.ask("GET", "/health") == (200, {"status": "ok", "faults": 1})


@pytest.mark.parametrize("path", ["/", "/v8/finance/quote/AAPL", "/v1/test/getcrumb", "/faults"])
def test_any_other_path_is_not_found(client: Client, path: str) -> None:
    assert client.ask("GET", path)[0] == 404


def test_each_request_is_one_line_of_log() -> None:
    lines: list[str] = []
    with serve(log=lines.append) as replay:
        client = Client(replay)
        client.ask("GET", "/health")
        client.ask("GET", "/nowhere")
        client.close()
    assert [line.split()[1:4] for line in lines] == [["GET", "'/health'", "200"], ["GET", "'/nowhere'", "404"]]


def test_a_request_is_logged_before_its_answer_can_be_read() -> None:
    """Whoever reads the answer may end the server at once, and the line must be there nevertheless."""
    lines: list[str] = []

    def log(line: str) -> None:
        time.sleep(0.2)
        lines.append(line)

    with serve(log=log) as replay:
        connection = http.client.HTTPConnection(replay.host, replay.port, timeout=10)
        connection.request("GET", "/v8/finance/chart/AAPL?range=5d&interval=1m")
        assert connection.getresponse().status == 200
        assert len(lines) == 1
        connection.close()


# Faults


def test_faults_come_and_go_at_run_time(client: Client) -> None:
    assert client.ask("PUT", "/faults/AAPL", '{"status": 429}') == (204, None)
    assert client.refusal("AAPL")[0] == 429
    assert client.chart("IBM")
    assert client.ask("PUT", "/faults/*", '{"status": 503}') == (204, None)
    assert (client.refusal("AAPL")[0], client.refusal("IBM")[0]) == (429, 503)
    assert client.ask("DELETE", "/faults/AAPL") == (204, None)
    assert client.refusal("AAPL")[0] == 503
    assert client.ask("DELETE", "/faults") == (204, None)
    assert client.chart("AAPL")


def test_a_body_replaces_the_answer(replay: MarketReplay) -> None:
    replay.faults.put("AAPL", Fault.from_json({"body": "<html>…", "content_type": "text/html"}))
    connection = http.client.HTTPConnection(replay.host, replay.port, timeout=5)
    connection.request("GET", "/v8/finance/chart/AAPL")
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Type"]) == (200, "text/html")
    assert response.read().decode() == "<html>…"
    connection.close()


def test_an_empty_chart_has_metadata_and_no_bars(client: Client) -> None:
    client.ask("PUT", "/faults/AAPL", '{"empty": true}')
    result = client.chart("AAPL")
    assert result["meta"]["symbol"] == "AAPL"
    assert "timestamp" not in result
    assert result["indicators"] == {"quote": [{}]}


@pytest.mark.parametrize(("fault", "missing"), [("null_bar", {0, 1, 2, 3, 4}), ("nan", {3})])
def test_the_newest_closed_bar_can_lack_values(client: Client, fault: str, missing: set[int]) -> None:
    client.ask("PUT", "/faults/AAPL", json.dumps({fault: True}))
    newest_closed = second(NOW) // 60 * 60 - 60
    for timestamp, row in bars_of(client.chart("AAPL")).items():
        assert {place for place, value in enumerate(row) if value is None} == (
            missing if timestamp == newest_closed else set()
        )


def test_a_bar_can_be_corrected(client: Client) -> None:
    minute = NOW.replace(second=0) - timedelta(minutes=20)
    client.ask("PUT", "/faults/AAPL", json.dumps({"correct": {"minute": minute.isoformat(), "close": 5000}}))
    bars = bars_of(client.chart("AAPL"))
    real = bar_at("AAPL", second(minute) // 60)
    assert bars[second(minute)] == (real.open, 5000.0, real.low, 5000.0, real.volume)
    assert [timestamp for timestamp, row in bars.items() if row[3] == 5000.0] == [second(minute)]


def test_a_delayed_exchange_shows_the_market_as_it_was(client: Client, clock: Clock) -> None:
    period: dict[str, Any] = {"period1": second(NOW - timedelta(minutes=30)), "period2": second(NOW)}
    client.ask("PUT", "/faults/AAPL", '{"behind_seconds": 900}')
    delayed = client.chart(**period)
    client.ask("DELETE", "/faults")
    clock.now = NOW - timedelta(seconds=900)
    assert delayed == client.chart(**period)
    assert delayed["meta"]["regularMarketTime"] == delayed["timestamp"][-1] == second(NOW) - 900


def test_an_answer_can_be_late(client: Client) -> None:
    client.ask("PUT", "/faults/AAPL", '{"delay_seconds": 0.2}')
    started = time.perf_counter()
    client.chart("AAPL")
    assert time.perf_counter() - started >= 0.2


def test_a_late_answer_does_not_hold_up_the_end() -> None:
    """Otherwise the test's own time limit would end it."""
    with serve() as replay:
        replay.faults.put("*", Fault(delay_seconds=3600))
        connection = http.client.HTTPConnection(replay.host, replay.port, timeout=5)
        connection.request("GET", "/v8/finance/chart/AAPL")
    connection.close()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("", "Expecting value"),
        ("[]", "JSON object"),
        ("{}", "at least one"),
        ('{"statsu": 500}', "statsu"),
        ('{"status": "500"}', "status"),
        ('{"status": true}', "status"),
        ('{"status": 99}', "status"),
        ('{"empty": 1}', "empty"),
        ('{"delay_seconds": "1"}', "delay_seconds"),
        ('{"behind_seconds": -1}', "behind_seconds"),
        ('{"delay_seconds": 1e999}', "delay_seconds"),
        ('{"correct": {}}', "correct"),
        ('{"correct": {"minute": "2026-03-10T14:00:00", "close": 1}}', "time zone"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_by_name(
    client: Client, replay: MarketReplay, body: str, named: str
) -> None:
    status, answer = client.ask("PUT", "/faults/AAPL", body)
    assert status == 400
    assert named in answer["error"]
    assert len(replay.faults) == 0


@pytest.mark.parametrize(("method", "path"), [("PUT", "/faults"), ("PUT", "/faults/"), ("DELETE", "/faultless")])
def test_only_a_symbols_fault_can_be_put(client: Client, method: str, path: str) -> None:
    assert client.ask(method, path, '{"status": 500}')[0] == 404


def test_faults_are_for_this_machine_alone(
    client: Client, replay: MarketReplay, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the server's own name counts, because the guard before it also reads addresses.
    monkeypatch.setattr("market_replay.server.ipaddress", SimpleNamespace(ip_address=lambda _: AnotherMachine))
    assert client.ask("PUT", "/faults/AAPL", '{"status": 500}')[0] == 404
    assert len(replay.faults) == 0


class AnotherMachine:
    is_loopback = False


def test_a_correction_is_read_in_any_time_zone() -> None:
    fault = Fault.from_json({"correct": {"minute": "2026-03-10T10:30:59-04:00", "close": 1}})
    assert fault == Fault(correct=Correction(second(NOW) // 60, 1.0))
