"""Fakes of a queue, a source and a clock; contract suites compare them with the real things."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, cast
from uuid import uuid4

from control_plane.ingestion.source import Entity, Fetched, Gap, Json, Observation, TradingSession
from control_plane.model.errors import SourceError
from control_plane.model.lifecycle import Accepted, MessageFault, NotSent, Outcome, QueueFault
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message
from control_plane.platform.telemetry import Telemetry

_NO_SQS_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Clock:
    """A monotonic clock that moves only when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = Lock()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


class RecordingTelemetry(Telemetry):
    """Telemetry that keeps the sum of each metric and prints nothing."""

    def __init__(self) -> None:
        super().__init__("test")
        self.totals: Counter[str] = Counter()
        self._lock = Lock()

    def count(self, name: str, value: float) -> None:
        with self._lock:
            self.totals[name] += value  # type: ignore[assignment]  # a Counter of floats is as good

    def flush(self) -> None:
        """Does nothing, so that the totals stay."""


class FakePublisher:
    """A publisher to queues in memory, by URL; it refuses what SQS would refuse.

    ``script`` returns the outcome of a message; None accepts it. Each send takes ``seconds`` by the fake's own
    ``clock``.
    """

    send_timeout_seconds = 10.0

    def __init__(
        self,
        *urls: str,
        script: Callable[[Message], Outcome | None] = lambda _message: None,
        clock: Clock | None = None,
        seconds: float = 0,
    ) -> None:
        self.queues: dict[str, list[Message]] = {url: [] for url in urls}
        self.sends: list[tuple[float, Sequence[Message]]] = []
        """When each send started, and what it held."""
        self.message_ids: dict[int, str] = {}
        """By the identity of the message object."""
        self._script = script
        self._clock = clock or Clock()
        self._seconds = seconds
        self._lock = Lock()

    @property
    def sent(self) -> list[Message]:
        """Every message that a queue has accepted."""
        return [message for queue in self.queues.values() for message in queue]

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        if self._clock.monotonic() >= start_before:
            return [NotSent()] * len(messages)
        with self._lock:
            self.sends.append((self._clock.monotonic(), messages))
        self._clock.sleep(self._seconds)
        return [self._send(queue_url, message) for message in messages]

    def _send(self, queue_url: str, message: Message) -> Outcome:
        if queue_url not in self.queues:
            return QueueFault(f"QueueDoesNotExist: {queue_url}")
        if message.size > MAX_BATCH_BYTES:
            return MessageFault("InvalidParameterValue: too long")
        if _NO_SQS_CHARACTER.search(message.body):
            return MessageFault("InvalidMessageContents: a character that SQS does not take")
        outcome = self._script(message) or Accepted(str(uuid4()))
        if isinstance(outcome, Accepted):
            with self._lock:
                self.queues[queue_url].append(message)
                self.message_ids[id(message)] = outcome.message_id
        return outcome


class FakeSource:
    """A market in memory: bars in order of time, or the error that a symbol raises; an absent symbol is unknown."""

    name = "fake"
    event_type = "MARKET_TICK_INGESTED"
    series = "1m"

    def __init__(
        self, bars: Mapping[str, Sequence[Observation] | Exception], *, kept_from: datetime | None = None
    ) -> None:
        self.bars = dict(bars)
        self.raws: dict[str, Json] = {}
        """What a symbol's answer looked like, where that matters."""
        self.entity_type: str | None = "equity"
        self.sessions: dict[str, TradingSession] = {}
        self.asked: dict[str, datetime | None] = {}
        self.asked_at: dict[str, datetime] = {}
        self._kept_from = kept_from

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        self.asked[symbol] = since
        self.asked_at[symbol] = asked_at
        bars = self.bars.get(symbol)
        if bars is None:
            raise SourceError(symbol, "unknown_symbol", "not traded here", raw={"error": symbol})
        if isinstance(bars, Exception):
            raise bars
        if since is None:
            first = bars[-1].occurred_at - timedelta(hours=1) if bars else None
            answered = [bar for bar in bars if first is None or bar.occurred_at > first]
        else:
            answered = [bar for bar in bars if bar.occurred_at >= max(since, self._kept_from or since)]
        raw: Json = self.raws.get(symbol, {"symbol": symbol, "bars": [_bar_to_json(bar) for bar in answered]})
        if symbol in self.raws:
            return self._fetched(symbol, raw, answered, since)
        return self.read(raw, symbol=symbol, since=since, asked_at=asked_at)

    def read(self, raw: Json, *, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        if not isinstance(raw, dict) or "bars" not in raw:
            raise SourceError(symbol, "unknown_symbol", "not traded here", raw=raw)
        return self._fetched(symbol, raw, [_bar_from_json(bar) for bar in cast("list[Any]", raw["bars"])], since)

    def _fetched(self, symbol: str, raw: Json, bars: Sequence[Observation], since: datetime | None) -> Fetched:
        gap = None
        if since is not None and self._kept_from is not None and since < self._kept_from:
            gap = Gap(since, self._kept_from)
        return Fetched(symbol, raw, tuple(bars), gap, self.sessions.get(symbol))

    def describe(self, fetched: Fetched) -> Entity:
        return Entity(fetched.symbol, self.entity_type, "America/New_York")


def _bar_to_json(bar: Observation) -> Json:
    # The payload is kept as text, because it may hold values that jsonb refuses.
    says = json.dumps(dict(bar.payload))
    return {"type": bar.event_type, "at": bar.occurred_at.isoformat(), "series": bar.series, "says": says}


def _bar_from_json(bar: Any) -> Observation:
    return Observation(bar["type"], datetime.fromisoformat(bar["at"]), json.loads(bar["says"]), bar["series"])


type SqsAnswer = Callable[[list[dict[str, Any]]], tuple[int, Mapping[str, Any] | str]]
"""Returns the answer to the entries of a batch: an HTTP status, and JSON or text."""


def all_successful(entries: list[dict[str, Any]]) -> tuple[int, Mapping[str, Any]]:
    """Returns the answer of a queue that accepts everything."""
    return 200, {
        "Successful": [{"Id": entry["Id"], "MessageId": str(uuid4()), "MD5OfMessageBody": ""} for entry in entries],
        "Failed": [],
    }


def sqs_error(code: str, message: str = "said the queue", *, status: int = 400) -> tuple[int, Mapping[str, Any]]:
    """Returns a refusal of the whole request, as SQS words it in its JSON protocol."""
    return status, {"__type": f"com.amazonaws.sqs#{code}", "message": message}


@contextmanager
def sqs_endpoint(answer: SqsAnswer) -> Iterator[str]:
    """Serves an HTTP endpoint that answers each SendMessageBatch by a function; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer(request["Entries"])
            sent = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
            """Logs nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Prints nothing, because a client that was killed waits for no answer."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
