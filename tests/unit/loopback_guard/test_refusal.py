"""Which requests the guard in front of the local servers lets pass."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from loopback_guard import is_own_name, refusal, refusal_of_head
from loopback_guard.asgi import guarded

HOST = (b"Host", b"localhost:4566")
EVIL_HOST = (b"Host", b"evil.example:4566")
OWN_ORIGIN = (b"Origin", b"http://localhost:4566")
SAME_ORIGIN = (b"Sec-Fetch-Site", b"same-origin")
CHROME = (b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64) Chrome/156.0")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:4566",
        "LOCALHOST:4566",
        "127.0.0.1:4566",
        "127.1.2.3",
        "[::1]:4566",
        "[::1]",
        "host.docker.internal:4566",
        "sqs.us-east-1.localhost:4566",
    ],
)
def test_own_names_pass(host: str) -> None:
    assert is_own_name(host)
    assert refusal([(b"host", host.encode())]) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:4566",
        "localhost.evil.example:4566",
        "localhost.localstack.cloud:4566",
        "evillocalhost:4566",
        "localhost.:4566",
        "127.0.0.1.nip.io:4566",
        "127.0.0.1:4566:4566",
        "0.0.0.0:4566",
        "10.0.0.7:4566",
        "[::]:4566",
        "localhost@evil.example",
        "localhost, evil.example",
        "localhost:4566\x00",
    ],
)
def test_other_names_are_refused(host: str) -> None:
    reason = refusal([(b"host", host.encode())])
    assert reason is not None
    assert "Use http://localhost" in reason


@pytest.mark.parametrize(
    ("headers", "culprit"),
    [
        ([], "no Host"),
        ([HOST, HOST], "2 Host"),
        ([HOST, (b"host", b"evil.example")], "2 Host"),
        ([HOST, (b"Origin", b"https://evil.example")], "Origin 'https://evil.example'"),
        ([HOST, (b"origin", b"null")], "Origin 'null'"),
        ([HOST, (b"ORIGIN", b"http://localhost:4566")], "Origin 'http://localhost:4566'"),
        ([HOST, (b"Origin", b"https://app.localstack.cloud")], "Origin 'https://app.localstack.cloud'"),
        ([HOST, OWN_ORIGIN, CHROME], "Origin 'http://localhost:4566'"),
        ([HOST, OWN_ORIGIN, CHROME, (b"Sec-Fetch-Site", b"none")], "Origin"),
        ([HOST, OWN_ORIGIN, CHROME, (b"Sec-Fetch-Site", b"same-site")], "Origin"),
        ([HOST, OWN_ORIGIN, CHROME, SAME_ORIGIN, (b"Sec-Fetch-Site", b"cross-site")], "Origin"),
        ([HOST, OWN_ORIGIN, (b"Origin", b"null"), SAME_ORIGIN], "Origin"),
        ([HOST, (b"Origin", b"https://localhost:4566"), SAME_ORIGIN], "Origin 'https://localhost:4566'"),
        ([HOST, (b"Origin", b"http://localhost:4567"), SAME_ORIGIN], "Origin 'http://localhost:4567'"),
        ([HOST, (b"Origin", b"http://localhost"), SAME_ORIGIN], "Origin 'http://localhost'"),
        ([HOST, (b"Origin", b"http://127.0.0.1:4566"), SAME_ORIGIN], "Origin 'http://127.0.0.1:4566'"),
        ([HOST, (b"Origin", b"null"), SAME_ORIGIN], "Origin 'null'"),
        # DNS rebinding: for the browser, the page has the same origin as the server to which its name points now.
        ([EVIL_HOST, (b"Origin", b"http://evil.example:4566"), SAME_ORIGIN], "Host 'evil.example:4566'"),
        ([EVIL_HOST, OWN_ORIGIN, SAME_ORIGIN], "Host 'evil.example:4566'"),
        ([HOST, (b"Sec-Fetch-Site", b"cross-site")], "Sec-Fetch-Site 'cross-site'"),
        ([HOST, (b"sec-fetch-site", b"same-site"), CHROME], "Sec-Fetch-Site 'same-site'"),
        ([HOST, (b"Sec-Fetch-Site", b"something-new")], "Sec-Fetch-Site 'something-new'"),
        ([HOST, (b"Sec-Fetch-Site", b"none"), (b"Sec-Fetch-Site", b"cross-site")], "Sec-Fetch-Site"),
        ([HOST, CHROME], "a browser that does not say which page asks"),
    ],
)
def test_requests_of_web_pages_are_refused(headers: list[tuple[bytes, bytes]], culprit: str) -> None:
    reason = refusal(headers)
    assert reason is not None
    assert culprit in reason
    assert "see SECURITY.md" in reason


@pytest.mark.parametrize(
    "headers",
    [
        [HOST],
        [HOST, (b"User-Agent", b"Boto3/1.40 md/Botocore#1.40")],
        [HOST, (b"User-Agent", b"curl/8.0")],
        [HOST, CHROME, (b"Sec-Fetch-Site", b"none")],
        [HOST, CHROME, SAME_ORIGIN],
        [HOST, CHROME, SAME_ORIGIN, OWN_ORIGIN],
    ],
)
def test_tools_and_typed_addresses_pass(headers: list[tuple[bytes, bytes]]) -> None:
    assert refusal(headers) is None


def test_a_refusal_is_one_line_whatever_it_quotes() -> None:
    reason = refusal([HOST, (b"Origin", b"http://a\x1b[31m\nforged")])
    assert reason is not None
    assert reason.count("\n") == 1
    assert reason.rstrip("\n").isprintable()


def test_a_raw_head_is_judged_in_the_same_way() -> None:
    head = b"POST /reset HTTP/1.1\r\nHost: localhost:1\r\nContent-Length: 0"
    assert refusal_of_head(head) is None
    assert refusal_of_head(head + b"\r\nOrigin: null") is not None
    # Some parsers end a line at a bare line feed.
    assert refusal_of_head(head + b"\r\nX: y\norigin: null") is not None


async def answers(type_: str, *headers: tuple[bytes, bytes]) -> tuple[bool, list[dict[str, Any]]]:
    """Returns whether the application was asked, and what was sent."""
    asked = False
    sent: list[dict[str, Any]] = []

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal asked
        asked = True
        cors = [(b"Access-Control-Allow-Origin", b"*"), (b"x", b"y")]
        await send({"type": "http.response.start", "status": 200, "headers": cors})
        await send({"type": "http.response.body", "body": b"secret"})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    async def receive() -> MutableMapping[str, Any]:
        return {}

    await guarded(application)({"type": type_, "headers": list(headers)}, receive, send)
    return asked, sent


def test_an_asgi_application_is_asked_and_answers_without_cors_headers() -> None:
    asked, (start, body) = asyncio.run(answers("http", HOST))
    assert asked
    assert start["headers"] == [(b"x", b"y")]
    assert body["body"] == b"secret"


def test_an_asgi_application_is_not_asked_by_a_web_page() -> None:
    asked, (start, body) = asyncio.run(answers("http", HOST, (b"origin", b"null")))
    assert not asked
    assert start["status"] == 403
    assert b"Origin 'null'" in body["body"]


def test_a_web_pages_websocket_is_refused_before_its_handshake() -> None:
    asked, sent = asyncio.run(answers("websocket", HOST, (b"origin", b"http://evil.example")))
    assert not asked
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_an_asgi_lifespan_is_passed_on() -> None:
    asked, _ = asyncio.run(answers("lifespan"))
    assert asked
