"""The Lambda Runtime API for one function process, on a loopback port of its own.

Source: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

import contextlib
import json
import queue
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import override

from loopback_guard import refusal_of_message

_API = "/2018-06-01/runtime"


@dataclass(frozen=True, slots=True)
class Invocation:
    """One event for the function.

    `payload` is JSON; `deadline_ms` is in milliseconds since 1970; `client_context` is JSON.
    """

    request_id: str
    payload: bytes
    function_arn: str
    deadline_ms: int
    trace_id: str = ""
    client_context: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The process has finished its init phase: it asks for its first invocation."""


@dataclass(frozen=True, slots=True)
class InitFailed:
    """The process has reported that its init phase failed; `error` is Lambda's JSON."""

    error: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What the function answered to the invocation under way; `body` is Lambda's error JSON if `is_error`."""

    body: bytes
    is_error: bool


class RuntimeApi:
    """Hands invocations to one function process and reports what it says.

    Ready, InitFailed and Reply objects are put on `events`. One invocation is under way at a time; an answer to any
    other is refused, as Lambda does.
    """

    def __init__(self, events: queue.SimpleQueue[object]) -> None:
        self._events = events
        self._invocations: queue.SimpleQueue[Invocation | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ready = False
        self._current: str | None = None
        self._closing = False
        self._server = _Server(self)
        threading.Thread(target=self._serve, name="lambda-runtime-api", daemon=True).start()

    @property
    def address(self) -> str:
        """`host:port`, the value of AWS_LAMBDA_RUNTIME_API."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def hand_over(self, invocation: Invocation) -> None:
        """Gives the process its next invocation, at once or when it asks."""
        with self._lock:
            self._current = invocation.request_id
        self._invocations.put(invocation)

    def close(self) -> None:
        """Stops serving; a request that waits for an invocation ends without an answer."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._invocations.put(None)
        # The server waits for a connection, and only a connection ends that wait on every platform. The server may be
        # gone by then.
        with contextlib.suppress(OSError):
            socket.create_connection(self._server.server_address[:2]).close()  # type: ignore[arg-type] # (str, int) for AF_INET

    def _serve(self) -> None:
        with self._server:
            while not self._closing:
                self._server.handle_request()

    def next_invocation(self) -> Invocation | None:
        """Returns the next invocation, however long that takes; None once the API is closed."""
        with self._lock:
            first, self._ready = not self._ready, True
        if first:
            self._events.put(Ready())
        invocation = self._invocations.get()
        if invocation is None:
            self._invocations.put(None)  # This wakes any other request that waits.
        return invocation

    def settle(self, request_id: str, reply: Reply) -> bool:
        """Ends the invocation under way if the reply was to it; returns whether that was so."""
        with self._lock:
            if request_id != self._current:
                return False
            self._current = None
        self._events.put(reply)
        return True

    def init_failed(self, error: bytes) -> bool:
        """Reports a failed init phase; returns False if the process had already asked for an invocation."""
        with self._lock:
            if self._ready:
                return False
        self._events.put(InitFailed(error))
        return True


class _Server(ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, api: RuntimeApi) -> None:
        self.api = api
        super().__init__(("127.0.0.1", 0), _Handler)

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: a function process that dies breaks its connection, and its supervisor reports that."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    @override
    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        # A web page that asked for the next invocation would take it from the function.
        if reason := refusal_of_message(self.headers):
            self.close_connection = True
            self._answer(403, {"errorType": "Forbidden", "errorMessage": reason})
            return False
        return True

    def do_GET(self) -> None:
        if self.path != f"{_API}/invocation/next":
            return self._answer(404, {"errorType": "NotFound"})
        invocation = self.server.api.next_invocation()
        if invocation is None:
            self.close_connection = True
            return None
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
            "Lambda-Runtime-Trace-Id": invocation.trace_id,
        }
        if invocation.client_context is not None:
            # The JSON is written again with escapes, because a header is ASCII.
            headers["Lambda-Runtime-Client-Context"] = json.dumps(json.loads(invocation.client_context))
        return self._send(200, invocation.payload, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.path.removeprefix(_API).split("/"):
            case ["", "init", "error"]:
                if not self.server.api.init_failed(body):
                    return self._answer(403, {"errorType": "InvalidStateTransition"})
            case ["", "invocation", request_id, "response" | "error" as kind]:
                if not self.server.api.settle(request_id, Reply(body, is_error=kind == "error")):
                    return self._answer(400, {"errorType": "InvalidRequestID"})
            case _:
                return self._answer(404, {"errorType": "NotFound"})
        return self._answer(202, {"status": "OK"})

    def _answer(self, status: int, body: dict[str, str]) -> None:
        self._send(status, json.dumps(body).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Keeps the server's access log out of LocalStack's output."""
