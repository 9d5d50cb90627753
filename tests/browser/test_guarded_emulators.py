"""Requests as a page's browser sends them, one header at a time, against both emulators."""

import json
import socket
from http.client import HTTPConnection

import pytest
from tests.browser.conftest import SECRET, RunningEmulator

CREATE = "/?Action=CreateQueue&QueueName=made&Version=2012-11-05"
FORM = "Action=CreateQueue&QueueName=made&Version=2012-11-05"
PAGE = {"Origin": "https://evil.example"}


def ask(
    emulator: RunningEmulator, method: str, path: str, body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """Returns status, headers and body of the answer; an underscore in a header's name stands for a hyphen."""
    connection = HTTPConnection("127.0.0.1", emulator.port, timeout=30)
    try:
        sent = {"Host": f"localhost:{emulator.port}"} | {n.replace("_", "-"): v for n, v in headers.items()}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        return answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://app.localstack.cloud"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "localhost.localstack.cloud"},
        {"User_Agent": "Mozilla/5.0 (old)"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PUT"])
def test_a_page_s_request_is_refused_and_makes_nothing(
    emulator: RunningEmulator, method: str, headers: dict[str, str]
) -> None:
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    status, answered, body = ask(emulator, method, CREATE, FORM if method == "POST" else None, **form, **headers)
    assert status == 403
    assert body.count("\n") == 1
    assert "see SECURITY.md" in body
    assert not [name for name in answered if name.startswith("access-control-")]
    assert emulator.made() == []


def test_a_web_socket_is_refused(emulator: RunningEmulator) -> None:
    key = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    key["Sec_WebSocket_Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    status, _, _ = ask(emulator, "GET", "/_aws/execute-api/ab/v1", **key, Origin="https://evil.example")
    assert status == 403


def test_the_health_is_answered_to_curl_without_cors_headers(emulator: RunningEmulator) -> None:
    status, answered, body = ask(emulator, "GET", emulator.health, User_Agent="curl/8.0")
    assert status == 200
    assert json.loads(body)["services"]
    assert not [name for name in answered if name.startswith("access-control-")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "host.docker.internal", "sqs.us-east-1.localhost"])
def test_names_of_this_machine_pass(emulator: RunningEmulator, host: str) -> None:
    assert ask(emulator, "GET", emulator.health, Host=f"{host}:{emulator.port}")[0] == 200


def test_a_second_host_header_is_refused(emulator: RunningEmulator) -> None:
    with socket.create_connection(("127.0.0.1", emulator.port), timeout=30) as connection:
        lines = [
            f"GET {CREATE} HTTP/1.1",
            f"Host: localhost:{emulator.port}",
            "Host: evil.example",
            "Connection: close",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = connection.makefile("rb").read()
    assert answer.split(b" ")[1] in {b"400", b"403"}
    assert SECRET.encode() not in answer
    assert emulator.made() == []
