"""A hostile queue, over real sockets: each send ends in time, with little memory and the right outcome.

A message that was sent and got no readable answer is NoVerdict, an outage of the queue; one that was not sent is
QueueFault.
"""

import gzip
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import psutil
import pytest
from tests.contracts.queue import LATER, message
from tests.integration.test_sqs_http import BODY, OK, certificate, publisher, request, tls_server

from control_plane.model.lifecycle import Accepted, NoVerdict, Outcome, QueueFault

READ_SECONDS = 1.0
CONNECT_SECONDS = 0.5
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FLOOD_BYTES = 128 * 1_048_576

type Talk = Callable[[socket.socket], None]


def says(answer: bytes) -> Talk:
    """Returns a behaviour that sends these bytes once it has the request."""

    def talk(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(answer)

    return talk


def answer(status: str, body: bytes, *headers: bytes) -> Talk:
    lines = [f"HTTP/1.1 {status}".encode(), b"Content-Length: %d" % len(body), *headers]
    return says(b"\r\n".join([*lines, b"", b""]) + body)


def drips(head: bytes, piece: bytes = b"a") -> Talk:
    def talk(connection: socket.socket) -> None:
        says(head)(connection)
        for _ in range(200):
            connection.sendall(piece)
            time.sleep(0.05)

    return talk


def floods(head: bytes, piece: bytes = b"a") -> Talk:
    def talk(connection: socket.socket) -> None:
        says(head)(connection)
        pieces = piece * (1_048_576 // len(piece))
        for _ in range(FLOOD_BYTES // len(pieces)):
            connection.sendall(pieces)

    return talk


def resets_after(sent: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        says(sent)(connection)
        time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return talk


def never_reads(_connection: socket.socket) -> None:
    time.sleep(2 * READ_SECONDS)


def hangs_up(_connection: socket.socket) -> None:
    """Hangs up at once."""


@dataclass(frozen=True)
class Behaviour:
    """What the queue does, and the outcome that it must have for the message."""

    talk: Talk
    outcome: type[Outcome] = NoVerdict
    said: str = ""


LENGTH_900 = OK + b"Content-Length: 900\r\n\r\n"
TIME = "TimeoutError"
HOSTILE = {
    # Slow
    "reads nothing and says nothing": Behaviour(never_reads, said=TIME),
    "reads all and says nothing": Behaviour(drips(b"", b""), said=TIME),
    "drips the status line": Behaviour(drips(b"HTTP/1.1 2"), said=TIME),
    "drips headers": Behaviour(drips(OK, b"a: b\r\n"), said=TIME),
    "drips the body": Behaviour(drips(LENGTH_900), said=TIME),
    "drips chunks": Behaviour(drips(CHUNKED, b"1\r\na\r\n"), said=TIME),
    "drips trailers": Behaviour(drips(CHUNKED + b"0\r\n", b"a: b\r\n"), said=TIME),
    "drips interim answers": Behaviour(drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), said=TIME),
    # Large
    "floods interim answers": Behaviour(floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), said=TIME),
    "floods a body without a length": Behaviour(floods(OK + b"\r\n"), said="more than 1048576 bytes"),
    "floods a body of ten gigabytes": Behaviour(floods(OK + b"Content-Length: 9999999999\r\n\r\n"), said="more than"),
    "floods chunks of one byte": Behaviour(floods(CHUNKED, b"1\r\na\r\n"), said=f"more than 1048576 bytes|{TIME}"),
    "floods one chunk": Behaviour(floods(CHUNKED + b"ffffffff\r\n"), said="more than 1048576 bytes"),
    "floods a chunk's extension": Behaviour(floods(CHUNKED + b"1;"), said="head of more than"),
    "floods headers": Behaviour(floods(OK, b"a: b\r\n"), said="head of more than"),
    "floods one header": Behaviour(floods(OK + b"a: "), said="head of more than"),
    "floods the status line": Behaviour(floods(b"HTTP/1.1 200 "), said="head of more than"),
    "floods trailers": Behaviour(floods(CHUNKED + b"0\r\n", b"a: b\r\n"), said=TIME),
    # Compressed, although nobody asked for it; nobody inflates it
    "a bomb of gzip": Behaviour(
        answer("200 OK", gzip.compress(b"0" * 100_000_000), b"Content-Encoding: gzip"), said="cannot be read"
    ),
    "a true answer in gzip": Behaviour(
        answer("200 OK", gzip.compress(BODY), b"Content-Encoding: gzip"), said="cannot be read"
    ),
    # JSON
    "nested deeply": Behaviour(answer("200 OK", b"[" * 500_000), said="cannot be read"),
    "a number of a million digits": Behaviour(answer("200 OK", b"9" * 1_000_000), said="cannot be read"),
    "a hundred thousand ids of others": Behaviour(
        answer("200 OK", json.dumps({"Successful": [{"Id": "7"}] * 60_000}).encode()), said="does not name this entry"
    ),
    # Redirects, which are not followed, because the message may be kept here
    "redirects for good": Behaviour(answer("301 Moved", b"", b"Location: http://127.0.0.1:1/"), said="HTTP 301"),
    "redirects": Behaviour(answer("302 Found", b"", b"Location: http://127.0.0.1:1/"), said="HTTP 302"),
    "redirects the POST": Behaviour(answer("307 There", BODY, b"Location: http://127.0.0.1:1/"), said="HTTP 307"),
    "redirects the POST for good": Behaviour(answer("308 There", BODY, b"Location: /"), said="HTTP 308"),
    # Cut off
    "hangs up without a word": Behaviour(hangs_up, said="closed|reset|Broken pipe"),
    "hangs up after the request": Behaviour(says(b""), said="closed before the answer was whole"),
    "hangs up within the head": Behaviour(says(OK), said="closed before the answer was whole"),
    "hangs up within the body": Behaviour(says(LENGTH_900 + BODY), said="closed before the answer was whole"),
    "hangs up within a chunk": Behaviour(says(CHUNKED + b"40\r\n{"), said="closed before the answer was whole"),
    "hangs up before the last chunk": Behaviour(
        says(CHUNKED + b"%x\r\n%b\r\n" % (len(BODY), BODY)), said="closed before the answer was whole"
    ),
    "resets within the head": Behaviour(resets_after(OK), said="reset"),
    "resets within the body": Behaviour(resets_after(LENGTH_900 + b"{"), said="reset"),
    # Not HTTP, or another protocol's answers
    "speaks SSH": Behaviour(says(b"SSH-2.0-OpenSSH_9\r\n\r\n"), said="begins with"),
    "speaks HTTP/2": Behaviour(says(b"\0\0\x12\4\0\0\0\0\0\r\n\r\n"), said="begins with"),
    "no content": Behaviour(says(b"HTTP/1.1 204 No Content\r\n\r\n"), said="HTTP 204"),
    "another success": Behaviour(answer("202 Accepted", BODY), said="HTTP 202"),
    "a portal's page": Behaviour(answer("200 OK", b"<html>sign in</html>"), said="cannot be read"),
    "a proxy's page of 502": Behaviour(answer("502 Bad Gateway", b"<html></html>"), said="HTTP 502"),
}


@contextmanager
def serving(talk: Talk, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serves each connection on a thread of its own."""

    def work(accepted: socket.socket) -> None:
        with suppress(OSError):
            connection = accepted if tls is None else tls.wrap_socket(accepted, server_side=True)
            with connection:
                talk(connection)
        accepted.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                Thread(target=work, args=[server.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=accept)
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits a send to a second and a half, instead of ten."""
    monkeypatch.setattr("control_plane.outbox.sqs_http.READ_TIMEOUT_SECONDS", READ_SECONDS)
    monkeypatch.setattr("control_plane.outbox.sqs_http.CONNECT_TIMEOUT_SECONDS", CONNECT_SECONDS)


def send(url: str, ca_bundle: Path | None = None) -> Outcome:
    """Sends one message; checks that this took little time and memory."""
    process = psutil.Process()
    before, started = process.memory_info().rss, time.monotonic()
    [outcome] = publisher(url, str(ca_bundle) if ca_bundle else None).publish("q", [message()], start_before=LATER)
    assert time.monotonic() - started < READ_SECONDS + CONNECT_SECONDS + 2  # The limit allows for a busy machine.
    assert process.memory_info().rss - before < 50_000_000
    return outcome


@pytest.mark.parametrize("behaviour", HOSTILE.values(), ids=HOSTILE)
def test_every_queue_behaviour_ends_in_time_with_its_outcome(behaviour: Behaviour) -> None:
    with serving(behaviour.talk) as url:
        outcome = send(url)
    assert type(outcome) is behaviour.outcome
    assert any(part in outcome.reason for part in behaviour.said.split("|")), outcome.reason  # type: ignore[union-attr]
    assert len(outcome.reason) < 1000  # type: ignore[union-attr]  # it is stored with every failure


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_queue_behind_wrong_tls_is_sent_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    theirs = tmp_path / "theirs"
    mine.mkdir()
    theirs.mkdir()
    received: list[bytes] = []

    def listens(connection: socket.socket) -> None:
        received.append(request(connection))

    trusted, other = certificate(mine, name="sqs.example"), certificate(theirs)
    old = tls_server(trusted)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    for tls, said in (
        (tls_server(other), "CERTIFICATE_VERIFY_FAILED"),
        (tls_server(trusted), "CERTIFICATE_VERIFY_FAILED"),  # The certificate is for another name.
        (old, "SSL"),
    ):
        with serving(listens, tls) as url:
            outcome = send(url, trusted)
            assert isinstance(outcome, QueueFault)
            assert said in outcome.reason
    assert [sent for sent in received if sent] == []


@pytest.mark.parametrize(
    "talk", [lambda connection: connection.sendall(OK), hangs_up, never_reads], ids=["HTTP", "nothing", "silence"]
)
def test_a_queue_that_speaks_no_tls_is_sent_nothing(talk: Talk, tmp_path: Path) -> None:
    with serving(talk) as url:
        outcome = send(url.replace("http://", "https://"), certificate(tmp_path))
    assert isinstance(outcome, QueueFault)


def test_a_queue_that_recovers_is_believed_at_once() -> None:
    talks = iter([resets_after(OK), says(OK + b"\r\n" + BODY)])
    with serving(lambda connection: next(talks)(connection)) as url:  # noqa: PLW0108 - another one each time
        connected = publisher(url)
        outcomes = [connected.publish("q", [message()], start_before=LATER)[0] for _ in range(2)]
    assert [type(outcome) for outcome in outcomes] == [NoVerdict, Accepted]
