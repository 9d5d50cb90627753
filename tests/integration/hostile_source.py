"""A hostile source: a server of Yahoo's chart API with one misbehaviour per symbol.

A symbol without a misbehaviour gets a good answer. `BEHAVIOURS` lists what the source does, and what must become of
each symbol.
"""

import base64
import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final
from urllib.parse import unquote, urlsplit

CHART_PATH = "/v8/finance/chart/"
BARS = 10
MEGABYTE = 1 << 20

BROTLI_BOMB: Final = base64.b64decode(
    "y///PwAkQOKxQHLv//j//weABEAcFoDu/R////8AkACIwwLQvf/j//8fABIAcVgAuvd//P//A0ACIA4LQPf+j///fwBIAMRhAeje//H//w8A"
    "CYA4LADd+z/+//8BIAEQhwWge/83"
)
"""64 MiB of spaces."""


def zstd_bomb(megabytes: int) -> bytes:
    """Returns a Zstandard frame of run-length blocks: four bytes for each 128 KiB."""
    blocks = megabytes * 8
    header = (0xFD2FB528).to_bytes(4, "little") + bytes([0x00, 0x38])  # without a size, window of 128 KiB
    block = (0b010 | (128 << 10) << 3).to_bytes(3, "little") + b" "
    last = (0b011 | (128 << 10) << 3).to_bytes(3, "little") + b" "
    return header + block * (blocks - 1) + last


def gzip_bomb(megabytes: int) -> bytes:
    """Returns so many mebibytes of spaces as gzip, which takes a thousandth of that."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*(packer.compress(b" " * MEGABYTE) for _ in range(megabytes)), packer.flush()])


def chart(symbol: str, **changes: Any) -> dict[str, Any]:
    """Returns a good answer with ten closed bars.

    ``changes`` replace parts of it: fields of the meta, a column, or the rest.
    """
    newest = int(time.time()) // 60 * 60 - 60
    starts = [newest - 60 * minute for minute in reversed(range(BARS))]
    columns: dict[str, Any] = {name: [100.0 + row for row in range(BARS)] for name in ("open", "high", "low", "close")}
    columns["volume"] = [1000] * BARS
    meta: dict[str, Any] = {
        "symbol": symbol,
        "currency": "USD",
        "instrumentType": "EQUITY",
        "exchangeTimezoneName": "America/New_York",
        "regularMarketTime": newest + 60,
        "tradingPeriods": [[{"start": starts[0] - 3600, "end": newest + 3600}]],
    }
    result: dict[str, Any] = {"meta": meta, "timestamp": starts, "indicators": {"quote": [columns]}, "events": {}}
    for name, value in changes.items():
        target = columns if name in columns else result if name in result else meta
        target[name] = value
    return {"chart": {"result": [result], "error": None}}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the source does when it is asked about a symbol, and what must become of that symbol.

    ``outcome`` is ``stored`` (bars), ``split``, ``dividend``, ``rejected`` (SIGNAL_REJECTED), several of these with
    ``and`` between them, or the kind of a SOURCE_FETCH_FAILED.
    """

    answer: "Callable[[Handler, str], None]"
    outcome: str
    bars: int | None = None


class Handler(BaseHTTPRequestHandler):
    """Answers by the symbol's behaviour."""

    protocol_version = "HTTP/1.1"
    elsewhere: str = ""
    """The address of a server that must never be asked."""
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        symbol = unquote(urlsplit(self.path).path.removeprefix(CHART_PATH))
        behaviour = BEHAVIOURS.get(symbol)
        self.close_connection = True
        if behaviour is None:
            self.send(chart(symbol))
        else:
            behaviour.answer(self, symbol)

    def send(self, body: object, status: int = 200, /, **headers: str) -> None:
        """Sends an answer: bytes unchanged, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        length = {"Content-Length": str(len(content)), "Content-Type": "application/json", "Connection": "close"}
        for name, value in (length | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Logs nothing."""


def sends(body: object, outcome: str, *, status: int = 200, **headers: str) -> Behaviour:
    """Returns a behaviour with one fixed answer; ``body`` is made once, bombs included."""
    return Behaviour(lambda handler, _: handler.send(body, status, **headers), outcome)


def charts(outcome: str, **changes: Any) -> Behaviour:
    """Returns a behaviour that answers with a chart that is odd in some way."""
    return Behaviour(lambda handler, symbol: handler.send(chart(symbol, **changes)), outcome)


def events(outcome: str, *, seconds: int = -300, **told: list[dict[str, Any]]) -> Behaviour:
    """Returns a behaviour that tells of splits and dividends, each a second before the other."""

    def answer(handler: Handler, symbol: str) -> None:
        first = int(time.time()) + seconds
        each = {
            name: {str(first - place): {"date": first - place} | entry for place, entry in enumerate(entries)}
            for name, entries in told.items()
        }
        handler.send(chart(symbol, events=each))

    return Behaviour(answer, outcome)


def texts(outcome: str, edit: Callable[[str], str | bytes], **headers: str) -> Behaviour:
    """Returns a behaviour that answers with a chart whose text was edited."""

    def answer(handler: Handler, symbol: str) -> None:
        edited = edit(json.dumps(chart(symbol)))
        handler.send(edited if isinstance(edited, bytes) else edited.encode(), **headers)

    return Behaviour(answer, outcome)


def periods(told: "Callable[[dict[str, int]], dict[str, Any]]") -> Behaviour:
    """Returns a behaviour that tells in some shape of a session which ends as the newest bar begins.

    At a closing time stands no bar but Yahoo's live price, so nine are stored, and ten where the shape is not read.
    """

    def answer(handler: Handler, symbol: str) -> None:
        starts = chart(symbol)["chart"]["result"][0]["timestamp"]
        handler.send(chart(symbol, **told({"start": starts[0] - 3600, "end": starts[-1]})))

    return Behaviour(answer, "stored", bars=BARS - 1)


def redirects(status: int) -> Behaviour:
    """Returns a behaviour that sends the client to another host, where a chart would await it."""

    def answer(handler: Handler, symbol: str) -> None:
        handler.send({}, status, Location=f"{handler.elsewhere}{CHART_PATH}{symbol}")

    return Behaviour(answer, "malformed")


def _redirect_to_itself(handler: Handler, _symbol: str) -> None:
    handler.send({}, 302, Location=handler.path)


def _endless(handler: Handler, _symbol: str) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(4096):
        handler.wfile.write(b" " * (64 << 10))


def _drips(handler: Handler, _symbol: str) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def _silent(_handler: Handler, _symbol: str) -> None:
    time.sleep(8)


def _hangs_up(handler: Handler, _symbol: str) -> None:
    handler.wfile.flush()


def _talks_nonsense(handler: Handler, _symbol: str) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def _cuts_a_chunk_short(handler: Handler, _symbol: str) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'ff\r\n{"chart"')


def _promises_more(handler: Handler, symbol: str) -> None:
    content = json.dumps(chart(symbol)).encode()
    handler.send(content, Content_Length=str(len(content) + 100))


def _promises_less(handler: Handler, symbol: str) -> None:
    handler.send(chart(symbol), Content_Length="20")


def _floods_headers(handler: Handler, symbol: str) -> None:
    handler.send(chart(symbol), **{f"X-Flood-{number}": "x" * 8000 for number in range(100)})


def _sets_many_cookies(handler: Handler, symbol: str) -> None:
    handler.send(chart(symbol), **{"Set-Cookie": "; ".join(f"c{number}={'x' * 50}" for number in range(50))})


def _compresses_well(handler: Handler, symbol: str) -> None:
    handler.send(gzip.compress(json.dumps(chart(symbol)).encode()), Content_Encoding="gzip")


def _says_gzip(handler: Handler, symbol: str) -> None:
    handler.send(chart(symbol), Content_Encoding="gzip")


NEVER = 2**40
HOSTILE_TEXT = "U\x1b]0;owned\x07\n[/foo]\u202e"

BEHAVIOURS: Final[dict[str, Behaviour]] = {
    # sizes
    "GZIP-BOMB": sends(gzip_bomb(700), "malformed", Content_Encoding="gzip"),
    "DEFLATE-BOMB": sends(zlib.compress(b" " * (64 * MEGABYTE), 9), "malformed", Content_Encoding="deflate"),
    "BROTLI-BOMB": sends(BROTLI_BOMB, "malformed", Content_Encoding="br"),
    "ZSTD-BOMB": sends(zstd_bomb(2000), "malformed", Content_Encoding="zstd"),
    "GZIP-IN-GZIP": sends(gzip.compress(gzip_bomb(64)), "malformed", Content_Encoding="gzip, gzip"),
    "LARGE-PLAIN": sends(b" " * (64 * MEGABYTE), "malformed"),
    "ENDLESS": Behaviour(_endless, "malformed"),
    "MANY-LISTS": sends(b"[" + b"[]," * 600_000 + b"[]]", "malformed"),
    "MANY-OBJECTS": sends(b"[" + b"{}," * 600_000 + b"{}]", "malformed"),
    "DEEP": sends(b"[" * MEGABYTE, "malformed"),
    "DEEP-IN-BOUNDS": sends(b"[" * 900 + b"]" * 900, "malformed"),
    "LONG-NUMBERS": texts(
        "malformed", lambda text: text.replace('"error": null', f'"error": null, "e": [{"1e308," * 150_000}0]')
    ),
    "LONG-INTEGER": texts("malformed", lambda text: text.replace("1000", "9" * 100_000, 1)),
    "FULL-OF-EXTRAS": charts("stored", extra="x" * MEGABYTE),
    "LARGE-REFUSAL": sends(b"x" * MEGABYTE, "unreachable", status=503),
    # time
    "DRIPS": Behaviour(_drips, "unreachable"),
    "SILENT": Behaviour(_silent, "unreachable"),
    # connections
    "HANGS-UP": Behaviour(_hangs_up, "unreachable"),
    "NONSENSE": Behaviour(_talks_nonsense, "unreachable"),
    "CHUNK-CUT": Behaviour(_cuts_a_chunk_short, "unreachable"),
    "PROMISES-MORE": Behaviour(_promises_more, "unreachable"),
    "PROMISES-LESS": Behaviour(_promises_less, "malformed"),
    "HEADER-FLOOD": Behaviour(_floods_headers, "unreachable"),
    "COOKIES": Behaviour(_sets_many_cookies, "stored"),
    # redirects
    **{f"REDIRECT-{status}": redirects(status) for status in (301, 302, 303, 307, 308)},
    "REDIRECT-LOOP": Behaviour(_redirect_to_itself, "malformed"),
    "REDIRECT-FILE": sends({}, "malformed", status=302, Location="file:///etc/passwd"),
    "REDIRECT-NOWHERE": sends({}, "malformed", status=302),
    # status codes
    "STATUS-204": sends(b"", "malformed", status=204),
    "STATUS-400": sends({}, "malformed", status=400),
    "STATUS-401": sends({}, "unreachable", status=401),
    "STATUS-404": sends({}, "unknown_symbol", status=404),
    "STATUS-418": sends({}, "malformed", status=418),
    "STATUS-429": sends({}, "rate_limited", status=429),
    "STATUS-500": sends({}, "unreachable", status=500),
    # encodings
    "GZIP": Behaviour(_compresses_well, "stored"),
    "NO-GZIP": Behaviour(_says_gzip, "unreachable"),
    "UTF-16": texts("stored", lambda text: text.encode("utf-16")),
    "LATIN-1": texts("malformed", lambda text: text.replace("USD", "US\u00d0").encode("latin-1")),
    "NUL": texts("malformed", lambda text: text.replace("USD", "US\0")),
    "LONE-SURROGATE": texts("stored", lambda text: text.replace('"error": null', '"error": null, "x": "\\ud800"')),
    "HTML": sends(b"<html>Please log in</html>", "malformed", Content_Type="text/html"),
    "EMPTY": sends(b"", "malformed"),
    # shapes
    "LIST": sends([], "malformed"),
    "NULL": sends(None, "malformed"),
    "NO-RESULT": sends({"chart": {"result": [], "error": None}}, "malformed"),
    "NO-META": charts("rejected", meta=None),
    "META-LIST": charts("rejected", meta=[]),
    "NO-BARS": charts("malformed", timestamp=[], open=[], high=[], low=[], close=[], volume=[]),
    "SHORT-COLUMN": charts("malformed", close=[1.0]),
    "NULL-COLUMN": charts("malformed", close=None),
    "NO-QUOTE": charts("malformed", indicators={}),
    "MANY-VALUES": texts(
        "malformed", lambda text: text.replace('"error": null', f'"error": null, "e": [{"0," * 220_000}0]')
    ),
    "FEWER-VALUES": texts(
        "stored", lambda text: text.replace('"error": null', f'"error": null, "e": [{"0," * 180_000}0]')
    ),
    "PERIODS-EMPTY": charts("stored", tradingPeriods={"pre": [], "post": []}),
    "PERIODS-LISTS": periods(lambda session: {"tradingPeriods": [[session]]}),
    "PERIODS-OBJECT": periods(lambda session: {"tradingPeriods": {"regular": [[session]]}}),
    "PERIODS-FLAT": periods(lambda session: {"tradingPeriods": [session]}),
    "PERIODS-TODAY": periods(lambda session: {"tradingPeriods": None, "currentTradingPeriod": {"regular": session}}),
    "PERIODS-TEXT": charts("stored", tradingPeriods="none", currentTradingPeriod="none"),
    "PERIODS-TEXT-TODAY": periods(lambda session: {"tradingPeriods": [[session]], "currentTradingPeriod": "none"}),
    "PERIODS-ODD": charts("stored", tradingPeriods=[[{"start": "a", "end": None}, 7, None], None, 3.5]),
    "PERIODS-HUGE": periods(lambda session: {"tradingPeriods": [[{"start": -(10**30), "end": 10**30}, session]]}),
    "PERIODS-ENDLESS": texts(
        "stored", lambda text: text.replace('[[{"start": ', '[[{"start": 0, "end": 1e999}, {"start": ')
    ),
    "PERIODS-YES": charts("stored", tradingPeriods=[[{"start": False, "end": True}]]),
    # values
    "NULL-BAR": charts(
        "stored", volume=[0, *[1] * 9], **{name: [None, *[5.0] * 9] for name in ("open", "high", "low", "close")}
    ),
    "NULL-CLOSE": charts("stored and rejected", close=[None, *[5.0] * 9]),
    "TEXT-CLOSE": charts("stored and rejected", close=["5.0", *[5.0] * 9]),
    "NAN": charts("stored and rejected", close=[float("nan"), *[5.0] * 9]),
    "INFINITY": charts("stored and rejected", close=[float("inf"), *[5.0] * 9]),
    "HUGE-PRICE": texts("stored and rejected", lambda text: text.replace('"close": [100.0', '"close": [1e999')),
    "NEGATIVE-PRICE": charts("stored", close=[-37.63] * 10),
    "NEGATIVE-VOLUME": charts("stored and rejected", volume=[-1, *[1] * 9]),
    "ZERO-BAR": charts("stored", **{name: [*[5.0] * 9, 0] for name in ("open", "high", "low", "close")}),
    "ZERO-CLOSE": charts("stored and rejected", close=[*[5.0] * 9, 0.0]),
    "ONLY-ZERO": charts("malformed", **{name: [0] * 10 for name in ("open", "high", "low", "close")}),
    # splits and dividends
    "ACTIONS": events(
        "stored and split and dividend",
        splits=[{"numerator": 2, "denominator": 1, "splitRatio": "2:1"}],
        dividends=[{"amount": 0.25}],
    ),
    "EVENTS-NULL": charts("stored", events=None),
    "EVENTS-LIST": charts("stored", events=[{"splits": 1}]),
    "EVENTS-TEXT": charts("stored", events=HOSTILE_TEXT),
    "EVENTS-ODD": charts("stored", events={"splits": "2:1", "dividends": [None, 7, [], {}, {"date": None}]}),
    "SPLIT-OF-NOTHING": events("stored and rejected", splits=[{"numerator": 2, "denominator": 0}]),
    "SPLIT-TEXT": events("stored and rejected", splits=[{"numerator": HOSTILE_TEXT, "denominator": []}]),
    "SPLIT-NAN": events("stored and rejected", splits=[{"numerator": float("nan"), "denominator": 1}]),
    "SPLIT-HUGE": events("stored and rejected", splits=[{"numerator": 10**300, "denominator": 1}]),
    "SPLIT-AT-NO-TIME": charts(
        "stored",
        events={
            "splits": {str(at): {"date": at, "numerator": 2, "denominator": 1} for at in (NEVER, 10**400, -(10**20))}
        },
    ),
    "SPLIT-TIME-TEXT": charts("stored", events={"splits": {"0": {"date": "now", "numerator": 2, "denominator": 1}}}),
    "SPLIT-TO-COME": events("stored", seconds=3600, splits=[{"numerator": 2, "denominator": 1}]),
    "SPLITS-WITHOUT-END": events("stored and split", splits=[{"numerator": 2, "denominator": 1}] * 10_000),
    "DIVIDEND-NEGATIVE": events("stored and rejected", dividends=[{"amount": -1}]),
    "DIVIDEND-NULL": events("stored and rejected", dividends=[{"amount": None}]),
    # texts
    "CURRENCY-TEXT": charts("rejected", currency=HOSTILE_TEXT),
    "CURRENCY-LONG": charts("rejected", currency="U" * 100_000),
    "CURRENCY-NUMBER": charts("rejected", currency=7),
    "ANOTHER-CURRENCY": charts("stored", currency="GBp"),
    "TYPE-TEXT": charts("malformed", instrumentType=HOSTILE_TEXT),
    "ZONE-TEXT": charts("stored", exchangeTimezoneName=HOSTILE_TEXT),
    "ERROR-TEXT": sends({"chart": {"error": {"code": HOSTILE_TEXT, "description": HOSTILE_TEXT}}}, "malformed"),
    "ANOTHER-SYMBOL": Behaviour(lambda handler, _: handler.send(chart("MSFT")), "malformed"),
    # clocks
    "NO-CLOCK": charts("stored", regularMarketTime=None),
    "CLOCK-TEXT": charts("stored", regularMarketTime="now"),
    "CLOCK-HUGE": charts("stored", regularMarketTime=NEVER),
    "CLOCK-NAN": charts("stored", regularMarketTime=float("nan")),
    "CLOCK-NEGATIVE": charts("stored", regularMarketTime=-(10**20)),
    "CLOCK-AHEAD": charts("stored", regularMarketTime=int(time.time()) + 86_400),
    "GAPS": Behaviour(
        lambda handler, symbol: handler.send(
            chart(symbol, timestamp=[int(time.time()) // 60 * 60 - 600 * row for row in range(10, 0, -1)])
        ),
        "stored",
    ),
    "BACKWARDS": Behaviour(
        lambda handler, symbol: handler.send(
            chart(symbol, timestamp=[int(time.time()) // 60 * 60 - 60 * row for row in range(1, 11)])
        ),
        "stored",
    ),
    "FUTURE": charts("malformed", timestamp=[NEVER // 60 * 60 // 100 + 60 * row for row in range(10)]),
    "BEYOND-TIME": charts("malformed", timestamp=[10**18] * 10),
    "TIME-TEXT": charts("malformed", timestamp=["now"] * 10),
    "TIME-NULL": charts("malformed", timestamp=[None] * 10),
    "BEFORE-1970": charts("malformed", timestamp=[-60 * row for row in range(1, 11)]),
    "SAME-TIME-TWICE": Behaviour(
        lambda handler, symbol: handler.send(
            chart(symbol, timestamp=[chart(symbol)["chart"]["result"][0]["timestamp"][0]] * 10)
        ),
        "stored",
    ),
}


class _Elsewhere(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = json.dumps(chart(self.path.rpartition("/")[2])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Logs nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: a client that hung up on an answer did right."""


@dataclass(frozen=True, slots=True)
class HostileSource:
    """The running server."""

    url: str
    asked_elsewhere: list[str]
    """The paths that were asked of the server that no redirect may lead to."""


@contextmanager
def serve() -> Iterator[HostileSource]:
    """Serves from threads for as long as the block lasts."""
    asked_elsewhere: list[str] = []
    elsewhere = _Server(("127.0.0.1", 0), type("Elsewhere", (_Elsewhere,), {"asked": asked_elsewhere}))
    handler = type("Hostile", (Handler,), {"asked": [], "elsewhere": f"http://127.0.0.1:{elsewhere.server_address[1]}"})
    server = _Server(("127.0.0.1", 0), handler)
    threads = [Thread(target=each.serve_forever, kwargs={"poll_interval": 0.05}) for each in (server, elsewhere)]
    for thread in threads:
        thread.start()
    try:
        yield HostileSource(f"http://127.0.0.1:{server.server_address[1]}", asked_elsewhere)
    finally:
        for each, thread in zip((server, elsewhere), threads, strict=True):
            each.shutdown()
            thread.join()
            each.server_close()
