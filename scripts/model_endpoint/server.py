"""The server: a thread per connection, one request each."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock
from typing import Any, Final

from loopback_guard import refusal_of_message
from model_endpoint.behaviour import UNCHARGED, Behaviour
from model_endpoint.protocols import Asked, Told, read, write, write_error
from model_endpoint.values import fitting, replaced

_ERRORS: Final = {
    "throttled": (429, "ThrottlingException", "rate_limit_exceeded", "Too many requests, please wait."),
    "error": (500, "InternalServerException", "server_error", "The server had an error."),
    "unavailable": (503, "ServiceUnavailableException", "server_overloaded", "The model is overloaded."),
    "denied": (403, "AccessDeniedException", "invalid_api_key", "The key {key} may not."),
}
"""By kind: the status, Bedrock's and OpenAI's code, the text."""
_HUGE_BYTES: Final = 10_000_000
_LONG_CHARACTERS: Final = 100_000
_MOST_REQUEST_BYTES: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One request: what it was, and what a provider would charge for it, told or not."""

    number: int
    protocol: str
    model: str
    behaviour: str
    request_bytes: int
    input_tokens: int
    output_tokens: int
    cost_micros: int
    at: float
    key_sha256: str | None
    body: str


class Desk:
    """What all connections share: how to behave, and the ledger."""

    def __init__(self, *, input_micros: int, output_micros: int) -> None:
        self._micros = input_micros, output_micros
        self._lock = Lock()
        self.stopped = Event()
        self.reset()

    def reset(self) -> None:
        """Forgets all behaviours and requests."""
        with self._lock:
            self._usual = Behaviour()
            self._by_number: dict[int, Behaviour] = {}
            self._ledger: list[LedgerEntry] = []

    def behave(self, usual: Behaviour | None, by_number: Mapping[int, Behaviour]) -> None:
        """Sets how requests are answered from now on; ``by_number`` counts from 1, since the last reset."""
        with self._lock:
            self._usual = usual or self._usual
            self._by_number |= by_number

    def enter(self, asked: Asked, body: bytes, authorization: str | None) -> tuple[Behaviour, LedgerEntry]:
        """Returns how a request is to be answered, and its entry in the ledger."""
        with self._lock:
            number = len(self._ledger) + 1
            behaviour = self._by_number.get(number, self._usual)
            tokens = _charged(behaviour, asked, len(body))
            entry = LedgerEntry(
                number=number,
                protocol=asked.protocol,
                model=asked.model,
                behaviour=behaviour.kind,
                request_bytes=len(body),
                input_tokens=tokens[0],
                output_tokens=tokens[1],
                cost_micros=-(-(tokens[0] * self._micros[0] + tokens[1] * self._micros[1]) // 1000),
                at=time.monotonic(),
                key_sha256=None if authorization is None else hashlib.sha256(authorization.encode()).hexdigest(),
                body=body.decode("utf-8", "replace"),
            )
            self._ledger.append(entry)
            return behaviour, entry

    def ledger(self) -> list[dict[str, Any]]:
        """Returns every request, in order."""
        with self._lock:
            return [asdict(entry) for entry in self._ledger]


def _charged(behaviour: Behaviour, asked: Asked, size: int) -> tuple[int, int]:
    """Returns the tokens that a request costs: a token for three bytes, and all that it may write if nobody waits."""
    if behaviour.kind in UNCHARGED:
        return 0, 0
    read = size // 3 + 300
    if behaviour.kind in {"hang", "drip", "cut_off", "close", "error", "out_of_tokens", "huge"}:
        return read, asked.most_tokens
    if behaviour.kind == "much_usage":
        return read * 1000, asked.most_tokens * 1000
    return read, min(asked.most_tokens, 80)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "model_endpoint"
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Logs nothing: tests read the ledger."""

    def do_GET(self) -> None:
        """Shows the ledger."""
        if self._is_refused():
            return
        if self.path == "/ledger":
            self._answer(200, json.dumps(self.server.desk.ledger()).encode())
        else:
            self._answer(404, b"{}")

    def do_POST(self) -> None:
        """Answers a model's request, or takes a control."""
        if self._is_refused():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MOST_REQUEST_BYTES:
            self._answer(413, b"{}")
            return
        body = self.rfile.read(int(length))
        try:
            if self.path == "/reset":
                self.server.desk.reset()
                self._answer(200, b"{}")
            elif self.path == "/behave":
                self._behave(json.loads(body))
            elif (asked := read(self.path, body)) is not None:
                self._ask(asked, body)
            else:
                self._answer(404, write_error("chat", "not_found", "There is no such route.")[0])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._answer(400, json.dumps({"error": {"message": f"{type(error).__name__}: {error}"}}).encode())
        except OSError:
            self.close_connection = True  # the client went away

    def _is_refused(self) -> bool:
        reason = refusal_of_message(self.headers)
        if reason is not None:
            self._answer(403, json.dumps({"error": {"message": reason}}).encode())
        return reason is not None

    def _behave(self, said: Any) -> None:
        usual = None if said.get("usual") is None else Behaviour.parse(said["usual"])
        numbered = {int(number): Behaviour.parse(one) for number, one in said.get("by_number", {}).items()}
        self.server.desk.behave(usual, numbered)
        self._answer(200, b"{}")

    def _ask(self, asked: Asked, body: bytes) -> None:
        behaviour, entry = self.server.desk.enter(asked, body, self.headers.get("Authorization"))
        if behaviour.latency_ms:
            time.sleep(behaviour.latency_ms / 1000)
        if error := _ERRORS.get(behaviour.kind):
            status, converse_code, chat_code, text = error
            code = chat_code if asked.protocol == "chat" else converse_code
            text = text.format(key=self.headers.get("Authorization"))
            self._answer(status, *write_error(asked.protocol, code, text))
            return
        match behaviour.kind:
            case "close":
                self.close_connection = True
            case "hang":
                self._wait_for_end()
            case "redirect":
                self._answer(307, b"", {"Location": f"{self.path}/elsewhere"})
            case "garbage":
                self._answer(200, b"<html>busy</html>")
            case "huge":
                self._answer(200, b'{"padding": "' + b"x" * _HUGE_BYTES + b'"}')
            case _:
                self._write(behaviour, write(asked, self._told(behaviour, asked, entry)))

    def _told(self, behaviour: Behaviour, asked: Asked, entry: LedgerEntry) -> Told:
        usage: tuple[Any, Any] | None = (entry.input_tokens, entry.output_tokens)
        match behaviour.kind:
            case "no_usage":
                usage = None
            case "odd_usage":
                usage = (-1, "many") if asked.protocol == "chat" else (-1, -1)
        if behaviour.kind in {"filtered", "empty"}:
            return Told(None, "filtered" if behaviour.kind == "filtered" else "done", usage)
        text = _text(behaviour, asked, self.headers.get("Authorization") or "")
        if behaviour.kind == "out_of_tokens":
            return Told("{}" if asked.protocol == "converse" else text[: len(text) // 2], "length", usage)
        return Told(text, "done", usage)

    def _write(self, behaviour: Behaviour, body: bytes) -> None:
        if behaviour.kind == "drip":
            self._head(200, len(body), {})
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                if self.server.desk.stopped.wait(behaviour.drip_ms / 1000):
                    return
        elif behaviour.kind == "cut_off":
            self._head(200, len(body), {})
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self._answer(200, body)

    def _wait_for_end(self) -> None:
        self.connection.settimeout(0.1)
        while not self.server.desk.stopped.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                """It is still there."""
        self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        self.wfile.write(body)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    """The server and its desk."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], desk: Desk) -> None:
        super().__init__(address, Handler, bind_and_activate=False)
        self.desk = desk


def _text(behaviour: Behaviour, asked: Asked, key: str) -> str:
    """Returns the JSON text of an answer."""
    texts = {"injection": asked.data, "echo_key": key}
    value = behaviour.answer
    if value is None:
        said = texts.get(behaviour.kind, "as the data says")
        value = fitting(asked.schema, last=behaviour.kind == "lie", text=said)
    return _SPOILT.get(behaviour.kind, json.dumps)(value)


def _with_numbers(value: Any, word: str) -> str:
    return json.dumps(replaced(value, numbers=lambda _: "@")).replace('"@"', word)


def _doubled(value: Any) -> str:
    inner = json.dumps(value)[1:-1]
    return f"{{{inner}, {inner}}}"


_SPOILT: Final[Mapping[str, Callable[[Any], str]]] = {
    "wrong_schema": lambda _: '{"something": "else"}',
    "extra_field": lambda value: json.dumps({**value, "and_another": 1}),
    "prose": lambda value: f"Of course! Here is what you asked for: {json.dumps(value)}",
    "duplicate_keys": _doubled,
    "nan": lambda value: _with_numbers(value, "NaN"),
    "infinity": lambda value: _with_numbers(value, "1e999"),
    "deep": lambda _: '{"deep": ' + "[" * 1000 + "]" * 1000 + "}",
    "long": lambda value: json.dumps({**value, "long": "x" * _LONG_CHARACTERS}),
}
"""By kind: the text of an answer that is not to be right."""
