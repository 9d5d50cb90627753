"""A network whose only exit is a proxy: boto3 and the relay's own client use it in the same way."""

import base64
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from tests.integration.test_sqs_http import certificate, publish, publisher, serving, tls_server

from control_plane.model.lifecycle import Accepted, QueueFault
from control_plane.outbox.sqs import SqsPublisher
from control_plane.outbox.sqs_http import SqsEndpoint, SqsHttpPublisher
from control_plane.platform.aws import find_sqs
from control_plane.platform.connections import Connections, UnreachableError

USER, PASSWORD = "a user", "p@ss:word"
CREDENTIALS = "a%20user:p%40ss%3Aword"
EXPECTED = b"proxy-authorization: basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).lower()
ELSEWHERE = "queue.invalid"
"""A host name that only the proxy can resolve."""


class Proxy:
    """A proxy for CONNECT and absolute-form; it resolves every host to loopback, and records each first line."""

    def __init__(
        self, tls: ssl.SSLContext | None = None, *, answers: bytes | None = None, waits: float = 0, drips: float = 0
    ) -> None:
        self.lines: list[str] = []
        self.asks_for_password = False
        self._tls = tls
        self._answers = answers
        self._waits = waits
        """Seconds before each of its answers."""
        self._drips = drips
        """Seconds before each tenth of what the server says."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=[self._server.accept()[0]], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), ExitStack() as stack:
            time.sleep(self._waits)
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            stack.enter_context(client)
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := client.recv(65_536)):
                    return
                head += piece
            line = head.split(b"\r\n")[0].decode()
            self.lines.append(line)
            if self._answers is not None:
                client.sendall(self._answers)
                return
            if self.asks_for_password and EXPECTED not in head.lower():
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            method, target, _ = line.split()
            authority = target.removeprefix("http://").partition("/")[0]
            server = stack.enter_context(socket.create_connection(("127.0.0.1", int(authority.rpartition(":")[2])), 5))
            time.sleep(self._waits)
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(head.replace(f"http://{authority}".encode(), b"", 1))
            self._tunnel(client, server)

    def _tunnel(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            pending = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if pending else select.select([client, server], [], [], 10)[0]
            for one in ready:
                if not (piece := one.recv(65_536)):
                    return
                if one is client:
                    server.sendall(piece)
                else:
                    self._pass_on(piece, client)

    def _pass_on(self, piece: bytes, client: socket.socket) -> None:
        time.sleep(self._waits)
        size = len(piece) // 10 + 1 if self._drips else len(piece)
        for start in range(0, len(piece), size):
            time.sleep(self._drips)
            client.sendall(piece[start : start + size])


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            monkeypatch.delenv(variable, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


def by_boto3(url: str, ca_bundle: str | None) -> Any:
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=2)
    return SqsPublisher(boto3.client("sqs", endpoint_url=url, verify=ca_bundle, config=config))


BOTH = pytest.mark.parametrize("publisher", [publisher, by_boto3], ids=["own", "boto3"])


@BOTH
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_https_goes_by_a_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: Proxy, publisher: Any, variable: str
) -> None:
    pem = certificate(tmp_path, name=ELSEWHERE)
    with serving(tls_server(pem)) as server:
        port = server.url.rpartition(":")[2].rstrip("/")
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        sender = publisher(f"https://{ELSEWHERE}:{port}/", str(pem))
        for _ in range(3):
            assert isinstance(publish(sender), Accepted)
        assert proxy.lines == [f"CONNECT {ELSEWHERE}:{port} HTTP/1.1"] or not isinstance(sender, SqsHttpPublisher)


@BOTH
def test_http_goes_by_absolute_form(monkeypatch: pytest.MonkeyPatch, proxy: Proxy, publisher: Any) -> None:
    with serving() as server:
        port = server.url.rpartition(":")[2].rstrip("/")
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.port}")
        sender = publisher(f"http://{ELSEWHERE}:{port}/", None)
        for _ in range(3):
            assert isinstance(publish(sender), Accepted)
        assert proxy.lines[0] == f"POST http://{ELSEWHERE}:{port}/ HTTP/1.1"


@BOTH
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxys_password_is_the_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: Proxy, publisher: Any, scheme: str
) -> None:
    proxy.asks_for_password = True
    pem = certificate(tmp_path, name=ELSEWHERE)
    with serving(tls_server(pem) if scheme == "https" else None) as server:
        url = f"{scheme}://{ELSEWHERE}:{server.url.rpartition(':')[2]}"
        monkeypatch.setenv(f"{scheme}_proxy", f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}")
        assert isinstance(publish(publisher(url, str(pem))), Accepted)
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{proxy.port}")
        refused = publish(publisher(url, str(pem)))
        assert not isinstance(refused, Accepted)
        assert f"127.0.0.1:{proxy.port}" in refused.reason or "407" in refused.reason  # type: ignore[union-attr]


@BOTH
@pytest.mark.parametrize("no_proxy", ["localhost", "*", "example.com,localhost", "LOCALHOST"])
def test_no_proxy_is_heeded(monkeypatch: pytest.MonkeyPatch, proxy: Proxy, publisher: Any, no_proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    with serving() as server:
        assert isinstance(publish(publisher(server.url, None)), Accepted)
    assert proxy.lines == []


def test_a_proxy_may_itself_speak_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = certificate(tmp_path)
    proxy = Proxy(tls_server(pem))
    with serving(tls_server(pem)) as server:
        monkeypatch.setenv("HTTPS_PROXY", f"https://localhost:{proxy.port}")
        sender = publisher(server.url, str(pem))
        for _ in range(3):
            assert isinstance(publish(sender), Accepted)
    assert len(proxy.lines) == 1
    proxy.close()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "HTTP 403 to CONNECT"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>", "cannot be read"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", "HTTP 302 to CONNECT"),
        (b"SSH-2.0\r\n\r\n", "cannot be read"),
        (b"", "closed before"),
        (b"HTTP/1.1 200 OK\r\n\r\nnot asked", "speaks before"),
        (b"a" * 100_000, "head of more than"),
    ],
)
def test_a_proxy_that_does_not_lead_there_is_named(monkeypatch: pytest.MonkeyPatch, answers: bytes, said: str) -> None:
    proxy = Proxy(answers=answers)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}")
    outcome = publish(publisher(f"https://{ELSEWHERE}/"))
    assert isinstance(outcome, QueueFault)
    assert said in outcome.reason
    assert f"the proxy 127.0.0.1:{proxy.port} of HTTPS_PROXY" in outcome.reason
    assert "NO_PROXY" in outcome.reason
    assert "word" not in outcome.reason
    proxy.close()


@pytest.mark.parametrize("value", ["http://h:port", "http://", "socks5://h:1", "http://u:\u00e9@h:1"])
def test_a_proxy_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    outcome = publish(publisher(f"https://{ELSEWHERE}/"))
    assert isinstance(outcome, QueueFault)
    assert "HTTPS_PROXY is no URL of a proxy" in outcome.reason


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AWS_ENDPOINT_URL": "http://cloud.internal:4566"},
        {"AWS_ENDPOINT_URL_SQS": "https://sqs.internal"},
        {"AWS_ENDPOINT_URL": "http://a.internal", "AWS_ENDPOINT_URL_SQS": "http://b.internal"},
        {"AWS_ENDPOINT_URL": "http://a.internal", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_DEFAULT_REGION": "cn-north-1"},
        {"AWS_DEFAULT_REGION": "us-gov-west-1", "AWS_USE_FIPS_ENDPOINT": "true"},
    ],
)
def test_both_clients_ask_the_same_endpoint(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    client = boto3.client("sqs")

    def note(request: Any, **_: Any) -> None:
        asked.append(request.url)
        raise InterruptedError

    client.meta.events.register("before-send", note)
    with pytest.raises(InterruptedError):
        client.send_message(QueueUrl="q", MessageBody="b")
    assert find_sqs(None)[0].rstrip("/") == asked[0].rstrip("/")


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"AWS_CA_BUNDLE": "/a.pem"}, "/a.pem"),
        ({"REQUESTS_CA_BUNDLE": "/r.pem"}, "/r.pem"),
        ({"AWS_CA_BUNDLE": "/a.pem", "REQUESTS_CA_BUNDLE": "/r.pem"}, "/a.pem"),
    ],
)
def test_certificate_authorities_are_those_of_boto3(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], found: str | None
) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert SqsEndpoint(*find_sqs(None)).ca_bundle == found


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("slow", [{"waits": 0.6}, {"drips": 0.2}], ids=["waits", "drips"])
def test_the_time_to_connect_holds_for_all_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, slow: Any
) -> None:
    pem = certificate(tmp_path)
    proxy = Proxy(tls_server(pem) if scheme == "https" else None, **slow)
    with closing(proxy), serving(tls_server(pem)) as server:
        port = server.url.rpartition(":")[2].rstrip("/")
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://localhost:{proxy.port}")
        url = f"https://localhost:{port}/"
        with Connections(url, service="sqs", ca_bundle=str(pem), connect_timeout=20).take():
            """Slow as it is, it leads there."""
        with pytest.raises(UnreachableError, match=r"timed out|in time"):
            Connections(url, service="sqs", ca_bundle=str(pem), connect_timeout=1).take()


def test_each_host_of_a_name_has_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [socket.create_server(("127.0.0.1", 0), backlog=0) for _ in range(3)]
    # The backlog takes one connection, and the next ones wait.
    waiting = [socket.create_connection(one.getsockname()) for one in silent]
    hosts = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", one.getsockname()) for one in silent]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hosts)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"timed out|in time"):
        Connections("http://queue.invalid", service="sqs", ca_bundle=None, connect_timeout=1.5).take()
    assert time.monotonic() - began < 4
    with socket.create_server(("127.0.0.1", 0)) as answering:
        hosts.append((socket.AF_INET, socket.SOCK_STREAM, 0, "", answering.getsockname()))
        with Connections("http://queue.invalid", service="sqs", ca_bundle=None, connect_timeout=1.5).take() as taken:
            assert taken.getpeername() == answering.getsockname()
    for one in (*silent, *waiting):
        one.close()
