"""Serves the chart API over HTTP, with a control for faults."""

import ipaddress
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, override
from urllib.parse import parse_qsl, unquote, urlsplit

from loopback_guard import refusal_of_message
from market_replay.chart import Question, Refusal, chart
from market_replay.faults import Fault, Faults
from market_replay.prices import ROUND, Replay

CHART_PATH = "/v8/finance/chart/"
FAULTS_PATH = "/faults"
LARGEST_BODY = 1 << 20


def utc_now() -> datetime:
    """Returns the present: the clock by which bars are served, unless another is given."""
    return datetime.now(UTC)


class MarketReplay:
    """A running server's address, clock and faults.

    ``port`` 0 takes a free one. ``log`` is called with one line per request: client, method, path, status,
    milliseconds.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], datetime] = utc_now,
        log: Callable[[str], None] | None = None,
        replay: Replay = ROUND,
    ) -> None:
        self.replay = replay
        self.faults = Faults()
        self.clock = clock
        self.log = log
        self.stopping = Event()
        self._server = _Server((host, port), partial(_Handler, self))
        self.host, self.port = host, int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The value for MARKET_DATA_URL."""
        return f"http://{self.host}:{self.port}"

    def run(self) -> None:
        """Serves until ``stop``."""
        with self._server:
            self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        """Ends ``run``, which must be in progress on another thread; answers that a fault holds up end at once."""
        self.stopping.set()
        self._server.shutdown()


@contextmanager
def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    clock: Callable[[], datetime] = utc_now,
    log: Callable[[str], None] | None = None,
    replay: Replay = ROUND,
) -> Iterator[MarketReplay]:
    """Serves from a thread for as long as the block lasts."""
    server = MarketReplay(host=host, port=port, clock=clock, log=log, replay=replay)
    thread = Thread(target=server.run, name="market-replay")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: a client that did not wait for its answer is not the server's error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body leave in one write; otherwise Nagle's algorithm holds the second back until the first is
    # acknowledged.
    wbufsize = -1
    disable_nagle_algorithm = True

    def __init__(self, replay: MarketReplay, *args: Any) -> None:
        self._replay = replay
        super().__init__(*args)

    @override
    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if reason := refusal_of_message(self.headers):
            self.close_connection = True
            self._answer(403, {"error": reason})
            self.wfile.flush()
            return False
        return True

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_PUT(self) -> None:
        self._serve(self._put)

    def do_DELETE(self) -> None:
        self._serve(self._delete)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Prints nothing here: a request is logged with its status, just before its answer is sent."""

    def _serve(self, answer: Callable[[str], None]) -> None:
        if self._replay.stopping.is_set():  # A kept-alive connection outlives the listening socket.
            self.close_connection = True
            return
        self._started = time.perf_counter()
        answer(urlsplit(self.path).path)

    def _get(self, path: str) -> None:
        if path.startswith(CHART_PATH):
            self._chart(unquote(path.removeprefix(CHART_PATH)))
        elif path == "/health":
            self._answer(200, {"status": "ok", "faults": len(self._replay.faults)})
        else:
            self._answer(404, {"error": f"there is no {path}"})

    def _put(self, path: str) -> None:
        body = self._body()
        symbol = self._faulty_symbol(path)
        if not symbol:
            self._answer(404, {"error": "PUT /faults/<symbol>, or /faults/* for all"})
            return
        try:
            fault = Fault.from_json(json.loads(body))
        except ValueError as error:
            self._answer(400, {"error": str(error)})
            return
        self._replay.faults.put(symbol, fault)
        self._answer(204)

    def _delete(self, path: str) -> None:
        self._body()
        symbol = self._faulty_symbol(path)
        if symbol is None:
            self._answer(404, {"error": "DELETE /faults or /faults/<symbol>"})
            return
        self._replay.faults.clear(symbol or None)
        self._answer(204)

    def _faulty_symbol(self, path: str) -> str | None:
        """Returns the symbol in the path; empty if none is named.

        Returns None if the path is another, or if the client is not on this machine.
        """
        on_this_machine = ipaddress.ip_address(self.client_address[0]).is_loopback
        if not on_this_machine or not (path == FAULTS_PATH or path.startswith(FAULTS_PATH + "/")):
            return None
        return unquote(path.removeprefix(FAULTS_PATH)[1:])

    def _chart(self, symbol: str) -> None:
        fault = self._replay.faults.of(symbol)
        if fault.delay_seconds:
            self._replay.stopping.wait(fault.delay_seconds)
        if fault.body is not None:
            self._send(fault.status or 200, fault.body.encode(), fault.content_type)
        elif fault.status is not None:
            self._answer(fault.status, Refusal(fault.status, "Fault", "put there on purpose").body)
        else:
            now = self._replay.clock().astimezone(UTC)  # local arithmetic is off by an hour where clocks change
            query = dict(parse_qsl(urlsplit(self.path).query))
            try:
                question = Question.from_query(query, now)
                seen = now - timedelta(seconds=fault.behind_seconds)
                self._answer(200, chart(symbol, question, seen, fault, self._replay.replay))
            except Refusal as refusal:
                self._answer(refusal.status, refusal.body)

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if length > LARGEST_BODY:
            self.close_connection = True
            return b""
        return self.rfile.read(length)

    def _answer(self, status: int, value: dict[str, Any] | None = None) -> None:
        body = b"" if value is None else json.dumps(value, separators=(",", ":")).encode()
        self._send(status, body, "application/json;charset=utf-8")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        # The line is logged before the answer, because whoever reads the answer may end this process at once.
        if self._replay.log:
            milliseconds = (time.perf_counter() - self._started) * 1000
            self._replay.log(f"{self.client_address[0]} {self.command} {self.path!r} {status} {milliseconds:.1f} ms")
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
