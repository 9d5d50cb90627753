"""OTLP receivers for tests: one whose answers a test chooses, and a real one, OtelTap."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings


@dataclass(frozen=True)
class Answer:
    """One answer of a receiver."""

    status: int = 200
    body: bytes = b""
    seconds: float = 0
    """How long it lets the client wait."""
    most_spans: int | None = None
    """The most spans of a request that it is given to; a larger request is refused by 413."""


def rejecting(spans: int, reason: str) -> Answer:
    """Returns the answer of a receiver that does not keep so many of the spans."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = spans
    answer.partial_success.error_message = reason
    return Answer(body=answer.SerializeToString())


@dataclass
class FakeReceiver:
    """A receiver that gives the next of these answers to each request, and at last the usual one."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    usual: Answer = field(default_factory=Answer)
    requests: list[tuple[dict[str, str], list[Span]]] = field(default_factory=list)
    """The headers and the spans of each request."""
    accepted: list[Span] = field(default_factory=list)
    """The spans of the requests that were answered 200, in order."""

    def receive(self, headers: dict[str, str], body: bytes) -> Answer:
        request = ExportTraceServiceRequest.FromString(body)
        spans = [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
        self.requests.append((headers, spans))
        answer = self.answers.pop(0) if self.answers else self.usual
        if answer.most_spans is not None and len(spans) > answer.most_spans:
            answer = Answer(413)
        if answer.status == 200:
            self.accepted += spans
        return answer


@contextmanager
def receiving() -> Iterator[FakeReceiver]:
    """Runs a receiver whose answers the test chooses."""
    receiver = FakeReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = receiver.receive({name.lower(): value for name, value in self.headers.items()}, body)
            time.sleep(answer.seconds)
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        receiver.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        yield receiver
        server.shutdown()


class Tap:
    """A real receiver, OtelTap, in a thread of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1/traces"
        self._spans: list[Span] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._receiver = OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=self._port))
        asyncio.run_coroutine_threadsafe(self._receiver.start(), self._loop).result(30)
        self._reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)

    async def _read(self) -> None:
        async for span in self._receiver.stream_traces():
            self._spans.append(span)

    def spans(self, at_least: int, *, seconds: float = 60) -> Sequence[Span]:
        """Returns the spans that it received, once there are so many and no more come."""
        ends = time.monotonic() + seconds
        while len(self._spans) < at_least:
            assert time.monotonic() < ends, f"{len(self._spans)} spans of {at_least} after {seconds} s"
            time.sleep(0.05)
        return list(self._spans)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._receiver.stop(), self._loop).result(30)
        self._reading.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def tapping() -> Iterator[Tap]:
    """Runs a real receiver."""
    tap = Tap()
    try:
        yield tap
    finally:
        tap.close()
