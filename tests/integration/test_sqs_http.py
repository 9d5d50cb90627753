"""The connections that SqsHttpPublisher keeps: to real sockets, plain and TLS."""

import contextlib
import datetime
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from tests.contracts.queue import LATER, message
from tests.integration.fakes import all_successful

from control_plane.model.lifecycle import Accepted, NotSent, QueueFault
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher


class Server:
    """Takes everything; remembers the client's port of each request. ``closes`` makes it hang up after each answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ports: list[int] = []
        self.closes = False
        self.closed = Semaphore(0)

    def publisher(self, ca_bundle: str | None = None) -> SqsHttpPublisher:
        return SqsHttpPublisher(lambda: SqsEndpoint(self.url, "us-east-1", None, ca_bundle))


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
            # Without a word, as a queue or a load balancer does to what was idle for long.
            self.close_connection = server.closes

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
            """Nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            server.closed.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that does not trust us says so by hanging up."""

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
            assert isinstance(publisher.publish("q", [message()], start_before=LATER)[0], Accepted)
        assert len(server.ports) == 5
        assert len(set(server.ports)) == 1


def test_a_connection_that_the_queue_closed_meanwhile_is_noticed_before_the_next_send() -> None:
    with serving() as server:
        server.closes = True
        publisher = server.publisher()
        for _ in range(5):
            assert isinstance(publisher.publish("q", [message()], start_before=LATER)[0], Accepted)
            assert server.closed.acquire(timeout=10)
        assert len(server.ports) == len(set(server.ports)) == 5  # each sent once, on a connection of its own


def test_a_certificate_is_verified_against_the_ca_bundle(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    with serving(tls) as server:
        (outcome,) = server.publisher().publish("q", [message()], start_before=LATER)
        assert isinstance(outcome, QueueFault)
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.reason
        assert server.ports == []
        (outcome,) = server.publisher(str(pem)).publish("q", [message()], start_before=LATER)
        assert isinstance(outcome, Accepted)


def test_an_answer_that_never_comes_is_a_fault_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.outbox.sqs_http.READ_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        publisher = SqsHttpPublisher(lambda: SqsEndpoint(url, "us-east-1", None, None))
        (outcome,) = publisher.publish("q", [message()], start_before=LATER)
    assert isinstance(outcome, QueueFault)
    assert "TimeoutError" in outcome.reason


def test_an_answer_that_comes_in_drips_is_given_up_on_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.outbox.sqs_http.READ_TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as dripping:

        def drip() -> None:
            connection, _ = dripping.accept()
            with connection:
                connection.recv(65536)
                with contextlib.suppress(OSError):
                    for piece in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{":
                        connection.sendall(bytes([piece]))
                        time.sleep(0.1)

        thread = Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{dripping.getsockname()[1]}/"
        started = time.monotonic()
        publisher = SqsHttpPublisher(lambda: SqsEndpoint(url, "us-east-1", None, None))
        (outcome,) = publisher.publish("q", [message()], start_before=LATER)
        took = time.monotonic() - started
        thread.join()
    assert isinstance(outcome, QueueFault)
    assert "TimeoutError" in outcome.reason
    assert took < 2  # 4 s of drips


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


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        publisher = server.publisher()
        publisher.publish("q", [message()], start_before=LATER)
        monkeypatch.setattr("control_plane.outbox.sqs_http.IDLE_SECONDS", 0.0)
        assert isinstance(publisher.publish("q", [message()], start_before=LATER)[0], Accepted)
        assert len(set(server.ports)) == 2


def certificate(folder: Path) -> Path:
    """A self-signed one for localhost, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(uuid4().int >> 1)
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "localhost.pem"
    pem.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem
