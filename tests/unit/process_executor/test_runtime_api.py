"""The Runtime API as a function process meets it, over HTTP."""

import http.client
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from process_executor.runtime_api import InitFailed, Invocation, Ready, Reply, RuntimeApi

API = "/2018-06-01/runtime"
FIRST = Invocation("req-1", b'{"n": 1}', "arn:1", deadline_ms=1234, trace_id="Root=1")


@pytest.fixture
def events() -> queue.SimpleQueue[object]:
    return queue.SimpleQueue()


@pytest.fixture
def api(events: queue.SimpleQueue[object]) -> Iterator[RuntimeApi]:
    api = RuntimeApi(events)
    yield api
    api.close()


def ask(
    api: RuntimeApi, method: str, path: str, body: bytes | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(api.address, timeout=10)
    try:
        connection.request(method, API + path, body)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_an_invocation_comes_with_its_headers(api: RuntimeApi, events: queue.SimpleQueue[object]) -> None:
    api.hand_over(FIRST)
    status, headers, body = ask(api, "GET", "/invocation/next")
    assert (status, body) == (200, FIRST.payload)
    assert headers["Lambda-Runtime-Aws-Request-Id"] == "req-1"
    assert headers["Lambda-Runtime-Deadline-Ms"] == "1234"
    assert headers["Lambda-Runtime-Invoked-Function-Arn"] == "arn:1"
    assert headers["Lambda-Runtime-Trace-Id"] == "Root=1"
    assert headers["Lambda-Runtime-Client-Context"] is None
    assert events.get(timeout=5) == Ready()


@pytest.mark.parametrize(("kind", "is_error"), [("response", False), ("error", True)])
def test_an_answer_ends_the_invocation_once(
    api: RuntimeApi, events: queue.SimpleQueue[object], kind: str, is_error: bool
) -> None:
    api.hand_over(FIRST)
    assert ask(api, "POST", f"/invocation/req-1/{kind}", b"1")[0] == 202
    assert events.get(timeout=5) == Reply(b"1", is_error=is_error)
    assert ask(api, "POST", f"/invocation/req-1/{kind}", b"2")[0] == 400
    assert events.empty()


def test_an_answer_to_another_invocation_is_refused(api: RuntimeApi, events: queue.SimpleQueue[object]) -> None:
    api.hand_over(FIRST)
    status, _, body = ask(api, "POST", "/invocation/req-0/response", b"1")
    assert (status, body) == (400, b'{"errorType": "InvalidRequestID"}')
    assert events.empty()


def test_an_init_error_is_accepted_until_init_ends(api: RuntimeApi, events: queue.SimpleQueue[object]) -> None:
    assert ask(api, "POST", "/init/error", b"{}")[0] == 202
    assert events.get(timeout=5) == InitFailed(b"{}")
    api.hand_over(FIRST)
    ask(api, "GET", "/invocation/next")
    assert ask(api, "POST", "/init/error", b"{}")[0] == 403


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/invocation/last"), ("POST", "/invocation/next"), ("POST", "/x")]
)
def test_any_other_path_is_unknown(api: RuntimeApi, method: str, path: str) -> None:
    assert ask(api, method, path, b"" if method == "POST" else None)[0] == 404


def test_close_ends_every_waiting_request_and_every_thread(events: queue.SimpleQueue[object]) -> None:
    before = set(threading.enumerate())
    api = RuntimeApi(events)
    raised: list[Exception] = []

    def wait() -> None:
        try:
            ask(api, "GET", "/invocation/next")
        except (http.client.HTTPException, OSError) as error:
            raised.append(error)

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    assert events.get(timeout=5) == Ready()
    api.close()
    api.close()
    for thread in waiting:
        thread.join(5)
    assert len(raised) == 2
    # A thread that is only just being started is listed, too, and cannot be joined yet.
    ends_at = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    with pytest.raises(ConnectionRefusedError):
        ask(api, "GET", "/invocation/next")


@pytest.mark.parametrize("header", [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site")])
def test_a_web_page_takes_no_invocation_and_answers_none(
    api: RuntimeApi, events: queue.SimpleQueue[object], header: tuple[str, str]
) -> None:
    api.hand_over(FIRST)
    for method, path in [("GET", "/invocation/next"), ("POST", "/invocation/req-1/response")]:
        connection = http.client.HTTPConnection(api.address, timeout=10)
        try:
            connection.request(method, API + path, headers=dict([header]))
            assert connection.getresponse().status == 403
        finally:
            connection.close()
    assert events.empty()
    assert ask(api, "GET", "/invocation/next")[0] == 200
