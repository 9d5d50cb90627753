"""The connections that SqsHttpPublisher keeps, to real sockets with and without TLS."""

import datetime
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.contracts.queue import LATER, message, sized
from tests.integration.fakes import all_successful

from control_plane.model.lifecycle import Accepted, NotSent, NoVerdict, Outcome, QueueFault
from control_plane.outbox.publisher import MAX_BATCH_BYTES
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher
from control_plane.platform.connections import Connections


class Server:
    """A server that accepts everything and records the client's port of each request.

    ``closes`` makes it hang up after each answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.ports: list[int] = []
        self.closes = False
        self.closed = Semaphore(0)

    def publisher(self, ca_bundle: str | None = None) -> SqsHttpPublisher:
        return publisher(self.url, ca_bundle)


def publisher(url: str, ca_bundle: str | None = None) -> SqsHttpPublisher:
    return SqsHttpPublisher(lambda: SqsEndpoint(url, "us-east-1", None, ca_bundle))


def publish(publisher: SqsHttpPublisher) -> Outcome:
    (outcome,) = publisher.publish("q", [message()], start_before=LATER)
    return outcome


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            server.ports.append(self.client_address[1])
            status, body = all_successful(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["Entries"])
            sent = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)
            # Closes without notice, as a queue or a load balancer does after a long idle time.
            self.close_connection = server.closes

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
            """Logs nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            server.closed.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Prints nothing: a client that does not trust us hangs up."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        if tls is not None:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        server = Server(f"http{'s' if tls else ''}://localhost:{http.server_address[1]}/")
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def test_a_connection_is_kept_from_send_to_send() -> None:
    with serving() as server:
        publisher = server.publisher()
        for _ in range(5):
            assert isinstance(publish(publisher), Accepted)
        assert len(server.ports) == 5
        assert len(set(server.ports)) == 1


def test_a_connection_that_the_queue_closed_is_noticed_before_use() -> None:
    with serving() as server:
        server.closes = True
        publisher = server.publisher()
        for _ in range(5):
            assert isinstance(publish(publisher), Accepted)
            assert server.closed.acquire(timeout=10)
        assert len(server.ports) == len(set(server.ports)) == 5  # each sent once, on a connection of its own


def test_a_connection_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        publisher = server.publisher()
        publish(publisher)
        monkeypatch.setattr("control_plane.platform.connections.IDLE_SECONDS", 0.0)
        assert isinstance(publish(publisher), Accepted)
        assert len(set(server.ports)) == 2


def test_no_send_starts_late_however_long_its_preparation_takes() -> None:
    with serving() as server:
        now = 0.0

        def slow_to_find() -> SqsEndpoint:
            nonlocal now
            now = 11.0
            return SqsEndpoint(server.url, "us-east-1", None, None)

        publisher = SqsHttpPublisher(slow_to_find, monotonic=lambda: now)
        assert publisher.publish("q", [message()], start_before=10.0) == [NotSent()]
        assert server.ports == []


def tls_server(pem: Path) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    return tls


def test_a_certificate_is_verified_against_the_ca_bundle(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with serving(tls_server(pem)) as server:
        outcome = publish(server.publisher())
        assert isinstance(outcome, QueueFault)
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.reason
        assert server.ports == []
        publisher = server.publisher(str(pem))
        assert isinstance(publish(publisher), Accepted)
        assert isinstance(publish(publisher), Accepted)


def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path) -> None:
    pem = certificate(tmp_path, name="sqs.example")
    with serving(tls_server(pem)) as server:
        outcome = publish(server.publisher(str(pem)))
        assert isinstance(outcome, QueueFault)
        assert "mismatch" in outcome.reason
        assert server.ports == []


def test_a_handshake_that_is_never_answered_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.outbox.sqs_http.CONNECT_TIMEOUT_SECONDS", 0.2)
    with talking(wait_for_the_end) as url:
        outcome = publish(publisher(url.replace("http://", "https://")))
    assert isinstance(outcome, QueueFault)
    assert "timed out" in outcome.reason


def wait_for_the_end(connection: socket.socket) -> None:
    while connection.recv(1000):
        """What the client says, and nobody answers."""


def test_the_largest_batch_is_sent_whole_over_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with serving(tls_server(pem)) as server:
        outcomes = server.publisher(str(pem)).publish("q", [sized(MAX_BATCH_BYTES)], start_before=LATER)
        assert isinstance(outcomes[0], Accepted)


type Conversation = Callable[[socket.socket], None]


@contextmanager
def talking(talk: Conversation, *, connections: int = 1, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serves so many connections with this behaviour, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # so that a large request has to wait

        def accept() -> None:
            for _ in range(connections):
                accepted, _ = listener.accept()
                with suppress(OSError):
                    if tls is not None:
                        accepted = tls.wrap_socket(accepted, server_side=True)
                    with accepted:
                        talk(accepted)

        thread = Thread(target=accept)
        thread.start()
        yield f"http{'s' if tls else ''}://localhost:{listener.getsockname()[1]}/"
        thread.join(timeout=20)
        assert not thread.is_alive()


def request(connection: socket.socket) -> bytes:
    """Reads one request from a connection; returns nothing if the client hung up."""
    received = b""
    while not received.endswith(b"]}"):
        if not (piece := connection.recv(65536)):
            return b""
        received += piece
    return received


BODY = b'{"Successful":[{"Id":"0","MessageId":"m-0"}]}'
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def saying(*answers: bytes) -> Conversation:
    """Returns a behaviour that gives each request one answer, and waits until the client hangs up."""

    def talk(connection: socket.socket) -> None:
        for answer in answers:
            if not request(connection):
                return
            connection.sendall(answer)
        request(connection)

    return talk


WHOLE = {
    "with a length": OK + LENGTH + b"\r\n" + BODY,
    "with its length in any case": OK + b"CONTENT-length:%d\r\n\r\n" % len(BODY) + BODY,
    "of several lines of the same name": OK + b"X-A: 1\r\nX-A: 2\r\n" + LENGTH + b"\r\n" + BODY,
    "without a reason": b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + BODY,
    "in a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "in chunks": OK
    + b"transfer-encoding: Chunked\r\n\r\n7;name=value\r\n%b\r\n%X \r\n%b\r\n000\r\nX-Trailer: 1\r\n\r\n"
    % (BODY[:7], len(BODY) - 7, BODY[7:]),
    "after interim ones": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
    + OK
    + LENGTH
    + b"\r\n"
    + BODY,
}
LAST = {
    "that closes": OK + b"Connection: close\r\n" + LENGTH + b"\r\n" + BODY,
    "that closes, in any case": OK + b"connection: Keep-Alive, Close\r\n" + LENGTH + b"\r\n" + BODY,
    "of HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "with a length and chunks": OK
    + b"Transfer-Encoding: chunked\r\n"
    + LENGTH
    + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "and one more that nobody asked for": (OK + LENGTH + b"\r\n" + BODY) * 2,
}
UNREADABLE = {
    "of two lengths": OK + LENGTH + b"Content-Length: 2\r\n\r\n" + BODY,
    "of a negative length": OK + b"Content-Length: -1\r\n\r\n" + BODY,
    "of a length in words": OK + b"Content-Length: many\r\n\r\n" + BODY,
    "of a length without end": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + BODY,
    "that is too long": OK + b"Content-Length: 1048577\r\n\r\n" + BODY,
    "of a chunk that is too long": OK + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n" + BODY,
    "of a chunk of no length": OK + b"Transfer-Encoding: chunked\r\n\r\n\r\n" + BODY,
    "of a chunk of a length in words": OK + b"Transfer-Encoding: chunked\r\n\r\nmany\r\n" + BODY,
    "of a chunk longer than it says": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "in another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "with a head that is too long": OK + b"X: y\r\n" * 20_000 + LENGTH + b"\r\n" + BODY,
    "with a line without end": b"HTTP/1.1 200 " + b"O" * 100_000,
    "of another version": b"HTTP/2 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "of a status of two digits": b"HTTP/1.1 20 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "of no status": b"\r\n\r\n" + BODY,
    "that switches protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("answer", WHOLE.values(), ids=WHOLE)
def test_an_answer_is_read_and_its_connection_kept(answer: bytes) -> None:
    with talking(saying(answer, answer, answer)) as url:
        connected = publisher(url)
        assert [publish(connected) for _ in range(3)] == [Accepted("m-0")] * 3
        del connected


@pytest.mark.parametrize("answer", WHOLE.values(), ids=WHOLE)
def test_an_answer_is_read_byte_by_byte(answer: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request(connection)
        for byte in answer:
            connection.sendall(bytes([byte]))

    with talking(drip) as url:
        assert publish(publisher(url)) == Accepted("m-0")


@pytest.mark.parametrize("answer", LAST.values(), ids=LAST)
def test_a_connections_last_answer_is_followed_by_a_new_connection(answer: bytes) -> None:
    with talking(saying(answer, answer), connections=2) as url:
        connected = publisher(url)
        assert [publish(connected) for _ in range(2)] == [Accepted("m-0")] * 2


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    def talk(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(OK + b"\r\n" + BODY)

    with talking(talk, connections=2) as url:
        connected = publisher(url)
        assert [publish(connected) for _ in range(2)] == [Accepted("m-0")] * 2


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
def test_an_answer_that_is_no_http_is_no_verdict(answer: bytes) -> None:
    with talking(saying(answer, answer), connections=2) as url:
        connected = publisher(url)
        for _ in range(2):  # The connection is not used again.
            outcome = publish(connected)
            assert isinstance(outcome, NoVerdict)
            assert "UnreadableError: an answer" in outcome.reason


def test_a_connection_that_is_reset_is_no_verdict() -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    with talking(reset) as url:
        assert isinstance(publish(publisher(url)), NoVerdict)


def timed(connected: SqsHttpPublisher, *, size: int = 1000) -> float:
    """Publishes without success; returns how long it took."""
    started = time.monotonic()
    (outcome,) = connected.publish("q", [sized(size)], start_before=LATER)
    assert isinstance(outcome, NoVerdict)
    assert "TimeoutError" in outcome.reason
    return time.monotonic() - started


def dripping(connection: socket.socket) -> None:
    request(connection)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{":
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def sipping(connection: socket.socket) -> None:
    """Reads so slowly that the client's send always makes progress and never ends."""
    connection.settimeout(1)
    ends = time.monotonic() + 2
    while time.monotonic() < ends:
        connection.recv(30_000)
        time.sleep(0.05)


@pytest.mark.parametrize("uses_tls", [False, True])
@pytest.mark.parametrize(("talk", "size"), [(dripping, 1000), (sipping, MAX_BATCH_BYTES)])
def test_a_dripping_send_is_given_up_in_time(
    talk: Conversation, size: int, uses_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.outbox.sqs_http.READ_TIMEOUT_SECONDS", 0.5)
    pem = certificate(tmp_path)
    take = Connections.take

    def take_narrow(connections: Connections) -> socket.socket:
        connection = take(connections)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # so that a large request has to wait
        return connection

    monkeypatch.setattr(Connections, "take", take_narrow)
    with talking(talk, tls=tls_server(pem) if uses_tls else None) as url:
        assert timed(publisher(url, str(pem)), size=size) < 1.5  # This takes at least 2 s of drips.


def certificate(folder: Path, *, name: str = "localhost") -> Path:
    """A self-signed certificate, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(uuid4().int >> 1)
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / f"{name}.pem"
    pem.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem
