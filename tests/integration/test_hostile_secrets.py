"""A hostile Secrets Manager, over real HTTP: each call ends in time, in one error that shows no secret."""

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import psutil
import pytest

from control_plane.platform.aws import SecretUnavailable, read_secret

ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:url-Ab12Cd"
SECRET = "postgresql://acp_reader:hidden-word@db/acp"
JSON = "Content-Type: application/x-amz-json-1.1"

type Talk = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@contextmanager
def serving(talk: Talk) -> Iterator[str]:
    """Serves each connection once its request is there."""

    def work(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65_536)
            talk(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                Thread(target=work, args=[server.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def says(status: int, body: bytes, *headers: str) -> Talk:
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *headers]
    return lambda connection: connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def value(**fields: Any) -> Talk:
    return says(200, json.dumps({"ARN": ARN, "Name": "url", **fields}).encode(), JSON)


def refusal(status: int, code: str) -> Talk:
    return says(status, json.dumps({"__type": code, "message": f"said\n{code}"}).encode(), JSON)


def drips(head: bytes, piece: bytes = b"a") -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(piece)
            time.sleep(0.1)

    return talk


def floods(head: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(512):
            connection.sendall(b"a" * 1_048_576)

    return talk


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")


HOSTILE: dict[str, tuple[Talk, str]] = {
    "closes without a word": (lambda _: None, "closed before the answer was whole"),
    "never answers": (lambda _: time.sleep(20), "time"),
    "drips the status line": (drips(b"HTTP/1.1 2"), "time"),
    "drips headers": (drips(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"), "time"),
    "drips the body": (drips(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"), "time"),
    "drips chunks": (drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"), "time"),
    "floods without a length": (floods(b"HTTP/1.1 200 OK\r\n\r\n"), "more than 1048576 bytes"),
    "floods the headers": (floods(b"HTTP/1.1 200 OK\r\n"), "head of more than"),
    "announces terabytes": (floods(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n"), "more than 1048576"),
    "a bomb of gzip": (says(200, gzip.compress(b"a" * 100_000_000), "Content-Encoding: gzip"), "cannot be read"),
    "is cut off": (says(200, b"", JSON), "cannot be read|holds no text"),
    "resets in the middle": (resets, "cannot be read"),
    "redirects": (says(302, b"", "Location: http://127.0.0.1:1/"), "cannot be read"),
    "redirects with 307": (says(307, b"{}", "Location: http://127.0.0.1:1/"), "cannot be read"),
    "a page of HTML": (says(200, b"<html>sign in</html>", "Content-Type: text/html"), "cannot be read|holds no text"),
    "a list": (says(200, b"[]", JSON), "cannot be read"),
    "null": (says(200, b"null", JSON), "cannot be read"),
    "half an answer": (
        says(200, json.dumps({"SecretString": SECRET}).encode()[:-1], JSON),
        "cannot be read|holds no text",
    ),
    "nested deeply": (says(200, b"[" * 500_000, JSON), "cannot be read"),
    "no text": (value(), "holds no text"),
    "an empty text": (value(SecretString=""), "holds no text"),
    "a list for a text": (value(SecretString=[SECRET]), "holds no text"),
    "a number for a text": (value(SecretString=7), "holds no text"),
    "bytes alone": (value(SecretBinary="AAAA"), "holds no text"),
    "no HTTP": (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9\r\n\r\n"), "begins with"),
    "HTTP/2": (lambda connection: connection.sendall(b"PRI * HTTP/2.0\r\n\r\n"), "begins with"),
    "switches protocols": (says(101, b""), "begins with"),
    "throttles": (refusal(400, "ThrottlingException"), "ThrottlingException"),
    "an internal error": (refusal(500, "InternalServiceError"), "InternalServiceError"),
    "a proxy's page": (says(503, b"<html>busy</html>"), "503"),
    "access denied": (refusal(400, "AccessDeniedException"), "role may only read"),
    "not there": (refusal(400, "ResourceNotFoundException"), "no secret of this name"),
    "to be deleted": (refusal(400, "InvalidRequestException"), "Restore it"),
    "key disabled": (refusal(400, "DecryptionFailure"), "must be enabled"),
    "an error with a forged line": (refusal(400, "Odd\nCode"), "cannot be read"),
    "two lengths": (says(200, b"{}", "Content-Length: 5"), "of the length"),
}


@pytest.mark.parametrize("behaviour", HOSTILE)
def test_whatever_answers_ends_in_one_error_in_time(behaviour: str) -> None:
    talk, said = HOSTILE[behaviour]
    # Some refusals are tried again after a random pause, which on a busy machine takes more than a second in all.
    patience_seconds = 1 if said == "time" else 10
    before = psutil.Process().memory_info().rss
    with serving(talk) as url:
        started = time.monotonic()
        with pytest.raises(SecretUnavailable, match=said) as caught:
            read_secret(ARN, endpoint_url=url, patience_seconds=patience_seconds)
        assert time.monotonic() - started < patience_seconds + 4  # the patience, and the time that botocore needs
    text = str(caught.value)
    assert text.startswith(f"the secret {ARN} ")
    assert text.isprintable()
    assert "hidden-word" not in text
    assert psutil.Process().memory_info().rss - before < 100_000_000


@pytest.mark.parametrize("text", [SECRET, f" {SECRET}\n", '{"url": "…"}', " \n ", "line\nline", "\u0000"])
def test_a_secret_text_is_returned_unchanged(text: str) -> None:
    with serving(value(SecretString=text)) as url:
        assert read_secret(ARN, endpoint_url=url) == text


def test_a_secret_that_is_throttled_once_is_read() -> None:
    answers = iter([refusal(400, "ThrottlingException"), value(SecretString=SECRET)])
    with serving(lambda connection: next(answers)(connection)) as url:  # noqa: PLW0108 - another one each time
        assert read_secret(ARN, endpoint_url=url) == SECRET


def test_an_answer_in_chunks_is_read() -> None:
    body = json.dumps({"SecretString": SECRET}).encode()
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with serving(lambda connection: connection.sendall(sent)) as url:
        assert read_secret(ARN, endpoint_url=url) == SECRET
