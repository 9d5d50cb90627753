"""What the source says of an entity, of a failure, and which hosts it asks."""

import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from curl_cffi.requests import Session
from tests.unit.finance.market import MINUTE, NOW, Market, bars_of, minute_of, payloads, refused, yahoo
from yfinance.data import YfData

from control_plane.ingestion.source import Entity, Fetched
from control_plane.model.errors import ConfigurationError, SourceError
from domains.finance import yahoo_session
from domains.finance import yfinance_source as module
from domains.finance.events import MarketTick
from domains.finance.yfinance_source import YFinanceSource
from market_replay import Fault, serve
from market_replay.prices import SYMBOLS, bar_at

# A kept answer can be read again


@pytest.mark.parametrize(
    "body",
    ['[{"chart": {"result": [{"meta": {}}], "error": null}}]', '{"status": 1, "content_type": null, "body": "{}"}'],
)
def test_an_answer_shaped_like_a_kept_one_reads_the_same(market: Market, body: str) -> None:
    market.answers(body)
    error = refused(market.source())
    with pytest.raises(SourceError) as again:
        market.source().read(error.raw, symbol="AAPL", since=None, asked_at=NOW)
    assert (again.value.kind, again.value.reason) == (error.kind, error.reason) == ("malformed", error.reason)


@pytest.mark.parametrize("status", [429, 500, 401])
def test_a_refusal_that_holds_a_chart_stays_a_refusal(market: Market, status: int) -> None:
    body = json.dumps(bars_of([NOW.replace(second=0) - 2 * MINUTE]))
    market.replay.faults.put("AAPL", Fault(status=status, body=body, content_type="application/json"))
    error = refused(market.source(), since=NOW - 5 * MINUTE)
    with pytest.raises(SourceError) as again:
        market.source().read(error.raw, symbol="AAPL", since=NOW - 5 * MINUTE, asked_at=NOW)
    assert (again.value.kind, again.value.reason) == (error.kind, error.reason)


# The entity


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
def test_a_number_unknown_to_json_keeps_its_answer_as_text(market: Market, literal: str) -> None:
    document = yahoo([(minute_of(market.clock.now) * 60 - 120, 1.0, 2.0, 0.5, "LITERAL", 7)])
    body = json.dumps(document).replace('"LITERAL"', literal)
    market.answers(body)
    source = market.source()
    fetched = source.fetch("AAPL", market.clock.now - timedelta(minutes=5), market.clock.now)
    assert repr(payloads(fetched)[0]["price"]) in {"nan", "inf", "-inf"}
    assert fetched.raw == {"status": 200, "content_type": "application/json", "body": body}
    assert source.describe(fetched).entity_type == "equity"


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "\\\\\\u0000"])
def test_text_unfit_for_postgres_is_kept_as_json_spells_it(market: Market, text: str) -> None:
    body = json.dumps(yahoo([], longName="NAME")).replace("NAME", text)
    market.answers(body)
    fetched = market.fetch("AAPL", market.clock.now - timedelta(minutes=5))
    assert fetched.raw == {"status": 200, "content_type": "application/json", "body": body}


def test_text_that_resembles_a_null_character_is_left_alone(market: Market) -> None:
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
def test_an_unusable_market_data_url_is_a_configuration_error(market: Market, url: str) -> None:
    with pytest.raises(ConfigurationError, match="MARKET_DATA_URL"):
        market.source(market_data_url=url)


def test_yfinance_logs_nothing_besides_the_error(
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
    """Without our session, yfinance would wait 30 seconds for each of two hosts."""
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
        bars = [one for one in fetched.observations if one.event_type == MarketTick.event_type]
        closes = [bar_at(symbol, minute_of(bar.occurred_at)).close for bar in bars]
        return symbol, source.describe(fetched).entity_id, [bar.payload["price"] for bar in bars], closes

    with ThreadPoolExecutor(12) as pool:
        for symbol, about, prices, closes in pool.map(fetch, jobs):
            assert about == symbol
            assert prices == closes
