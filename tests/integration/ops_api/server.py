"""The API behind a real HTTP server on loopback: the gateway's stand-in before the two functions."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
import uuid
from contextlib import ExitStack
from functools import cached_property
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
from tests.integration.ops_api.client import RUNS, VARIABLES, Client, asked_by
from tests.integration.ops_api.gateway import Gateway

from control_plane.operations.engine import Engine
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from domains import load_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.conftest import TestDatabase
    from tests.integration.functions.invoked import Function

    from control_plane.operations.backfill.kind import Ask


class _Handler(WSGIRequestHandler):
    def get_environ(self) -> dict[str, Any]:
        # WSGI's own PATH_INFO is decoded already, and a name in a path may hold a slash.
        return super().get_environ() | {"REQUEST_URI": self.path}

    def log_message(self, *_: object) -> None:
        """Logs nothing: the functions do."""


class _Server(ThreadingMixIn, WSGIServer):
    """Reads from each connection in a thread of its own: browsers hold some open on which they ask nothing yet."""

    daemon_threads = True


class ApiServer:
    """Answers as the deployed API does; the functions are loaded by the first request.

    Who starts OperationsFunction finds its work done: all that is due of it is done before the answer. Other runs are
    only noted, in ``started``. ``ingest`` is IngestionFunction, for the pieces of a backfill.
    ``served`` has each request's path and how many seconds its answer took.
    """

    def __init__(self, database: TestDatabase, token: str) -> None:
        self.started: list[str] = []
        self.ingest: Ask | None = None
        self.served: list[tuple[str, float]] = []
        self._database = database
        self.token = token
        self._stack = ExitStack()
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.set_app(self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def retrial(self) -> Function:
        """RetrialFunction, which the API asks."""
        _ = self._gateway
        return self._retrial

    @property
    def options(self) -> tuple[str, ...]:
        """The options by which acp asks it."""
        return ("--url", self.url, "--token", self.token)

    def make_token(self, name: str, *scopes: str) -> str:
        """Makes a token, and returns it."""
        made = self.ask("POST", "/tokens", {"name": name, "scopes": list(scopes), "reason": "a test"})
        token: str = made["token"]
        return token

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **about: Any) -> Any:
        """Returns the answer's body; a refusal is an AssertionError. ``about`` may name another token."""
        headers = {"Authorization": f"Bearer {about.get('token', self.token)}", "Content-Type": "application/json"}
        if method != "GET":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, sent, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except HTTPError as refusal:
            with refusal:
                raise AssertionError(refusal.read().decode()) from None

    def close(self) -> None:
        """Stops it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._stack.close()

    def _answer(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:  # one request at a time, as one environment of a function has it
            started = time.perf_counter()
            try:
                return self._gateway(environ, start_response)
            finally:
                self.served.append((environ["PATH_INFO"], time.perf_counter() - started))

    @cached_property
    def _gateway(self) -> Gateway:
        clients = [self._load("ops_api", "acp_reader"), self._load("command_api", "acp_command")]
        vars(clients[1].function.module)["start_run"] = self._start
        self._retrial = asked_by(clients[0], self._database.url("acp_reader"))
        self._stack.callback(self._retrial.close)
        return Gateway(*clients)

    def _load(self, function: str, role: str) -> Client:
        with pytest.MonkeyPatch.context() as environ:
            for variable in VARIABLES:
                environ.delenv(variable, raising=False)
            given = {"API_TOKEN": self.token, "DATABASE_URL": self._database.url(role)}
            for variable, value in (RUNS | given).items():
                environ.setenv(variable, value)
            client = Client(function)
            client.function.module.settings()
        logger = client.function.module.telemetry.logger
        # Loggers are the process's, so a later test would find this one silent.
        self._stack.callback(logger.setLevel, logger.log_level)
        logger.setLevel("ERROR")
        self._stack.callback(client.function.close)
        return client

    def _start(self, function: str, **_: object) -> None:
        self.started.append(function)
        if function != RUNS["OPERATIONS_FUNCTION"]:
            return
        telemetry = Telemetry("operations")
        telemetry.logger.setLevel("CRITICAL")
        with connect(self._database.url("acp_maintain"), application_name="operations") as connection:
            engine = Engine(connection, load_kinds(ask=self.ingest), telemetry)
            while engine.work():
                pass
