"""The endpoint as a process of its own, and its controls."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from model_endpoint.behaviour import Behaviour


class Request(NamedTuple):
    """One request of a model, as the ledger has it; ``cost_micros`` is what a provider would charge for it."""

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


class ModelEndpoint:
    """The controls of a running endpoint. Several threads may use them: each call opens a connection of its own."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self.url = f"http://127.0.0.1:{port}"
        """For Bedrock's clients, as their endpoint URL."""
        self.chat_url = f"{self.url}/v1"
        """For OpenAI's clients, as their base URL."""

    def behave(self, kind: str, **options: Any) -> None:
        """Answers every request so from now on; see Behaviour. Raises ValueError."""
        self._call("POST", "/behave", {"usual": _checked({"kind": kind, **options})})

    def behave_in_turn(self, *kinds: str | Mapping[str, Any]) -> None:
        """Answers the first request since the last reset by the first kind, the second by the second, and so on."""
        told = [{"kind": kind} if isinstance(kind, str) else kind for kind in kinds]
        self._call("POST", "/behave", {"by_number": {number: _checked(one) for number, one in enumerate(told, 1)}})

    def reset(self) -> None:
        """Forgets all behaviours and requests: every answer is right again."""
        self._call("POST", "/reset")

    def requests(self) -> list[Request]:
        """Returns the ledger: every request, in order."""
        return [Request(**one) for one in self._call("GET", "/ledger")]

    def spent_micros(self) -> int:
        """Returns what all requests would cost."""
        return sum(request.cost_micros for request in self.requests())

    def _call(self, method: str, path: str, said: Mapping[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=json.dumps(said or {}).encode())
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} {path}: {answer.status} {body.decode()}")
        return json.loads(body)


def _checked(said: Mapping[str, Any]) -> Mapping[str, Any]:
    Behaviour.parse(said)
    return said


@contextmanager
def serve(*, input_micros: int = 1000, output_micros: int = 5000) -> Iterator[ModelEndpoint]:
    """Runs an endpoint on a free loopback port, until the block or this process ends.

    It charges so many millionths of a US dollar for 1,000 tokens of input and of output.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        # The socket is opened here, before the process starts, so that no other program can take the port.
        process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "model_endpoint", "--with-stdin", "--listen-fd", str(listener.fileno())),
                *("--input-micros", str(input_micros), "--output-micros", str(output_micros)),
            ],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        port = listener.getsockname()[1]
    with process:
        assert process.stdin is not None
        try:
            yield ModelEndpoint(port, process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
