"""Starts the endpoint as a process of its own, and controls it."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from queue_endpoint.faults import Fault


class Accepted(NamedTuple):
    """One message in a queue; ``event_id`` is its attribute of that name."""

    queue: str
    event_id: str | None
    message_id: str


class Request(NamedTuple):
    """One SendMessageBatch, accepted or not; ``at`` is by this machine's ``time.monotonic()``.

    ``faulty`` says whether a fault applied to it, a slow answer included.
    """

    queue: str
    at: float
    entries: int
    answer: str
    faulty: bool


class QueueEndpoint:
    """The controls of a running endpoint. Several threads may use them: each call opens a connection of its own."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self.url = f"http://127.0.0.1:{port}"

    def queue_url(self, name: str) -> str:
        """Returns a queue's URL; every name is a queue, none needs to be created."""
        return f"{self.url}/000000000000/{name}"

    def set(
        self,
        queue: str | None = None,
        *,
        answer_events: Iterable[object] = (),
        fail_events: Iterable[object] = (),
        **faults: Any,
    ) -> None:
        """Sets the fault of one queue, or of all queues without a fault of their own; see Fault. Raises ValueError."""
        said = {
            "queue": queue,
            "answer_events": [str(event_id) for event_id in answer_events],
            "fail_events": [str(event_id) for event_id in fail_events],
            **faults,
        }
        Fault.parse(said)
        self._call("PUT", "/faults", said)

    def heal(self) -> None:
        """Ends all faults; held requests stay held, and the records of accepted messages stay."""
        self._call("DELETE", "/faults")

    def release(self, queue: str | None = None) -> None:
        """Answers the held requests, of one queue or of all."""
        self._call("POST", "/release", {"queue": queue})

    def reset(self) -> None:
        """Ends all faults, answers all held requests and forgets all messages and requests."""
        self._call("POST", "/reset")

    def accepted(self) -> list[Accepted]:
        """Returns every accepted message, in order; one that was accepted twice is listed twice."""
        return [Accepted(*one) for one in self._call("GET", "/accepted")]

    def requests(self) -> list[Request]:
        """Returns every request, in order."""
        return [Request(*one) for one in self._call("GET", "/requests")]

    def counts(self) -> Mapping[str, int]:
        """Returns the number of accepted messages in each queue."""
        counts: Mapping[str, int] = self._call("GET", "/state")["counts"]
        return counts

    def held(self) -> int:
        """Returns how many requests are held now."""
        return len(self.held_ports())

    def held_ports(self) -> list[int]:
        """Returns the client's port of each request that is held now."""
        ports: list[int] = self._call("GET", "/state")["held"]
        return ports

    def wait_for(self, condition: Callable[["QueueEndpoint"], bool], *, seconds: float = 30) -> None:
        """Returns once the condition holds. Raises TimeoutError."""
        ends = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > ends:
                raise TimeoutError(f"not within {seconds:g} s; held {self.held()}, accepted {dict(self.counts())}")
            time.sleep(0.005)

    def _call(self, method: str, path: str, said: Mapping[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=json.dumps(said) if said is not None else b"")
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} {path}: {answer.status} {body.decode()}")
        return json.loads(body)


@contextmanager
def serve(*, latency_ms: float = 0, record: bool = True, upstream: str | None = None) -> Iterator[QueueEndpoint]:
    """Runs an endpoint on a free loopback port, until the block or this process ends.

    ``upstream`` is an emulator's URL; the endpoint sends the messages that it accepts to the queues there.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        # The socket is opened here, before the process starts, so that no other program can take the port.
        process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "queue_endpoint", "--with-stdin"),
                *("--listen-fd", str(listener.fileno()), "--latency-ms", str(latency_ms)),
                *([] if record else ["--no-record"]),
                *([] if upstream is None else ["--upstream", upstream]),
            ],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
            # Ctrl-C must not reach the endpoint: this process may still need it, to finish what goes through it.
            start_new_session=True,
        )
        port = listener.getsockname()[1]
    with process:
        assert process.stdin is not None
        try:
            yield QueueEndpoint(port, process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
