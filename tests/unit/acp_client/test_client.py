from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from acp_client.client import ApiError, ApiUnreachable, Client, in_path
from acp_client.profiles import profile_of

if TYPE_CHECKING:
    from tests.unit.acp_client.conftest import Server


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(server: Server, slept: list[float]) -> Client:
    return Client(profile_of("test", server.url, "a token"), agent="acp/test", timeout_seconds=5, sleep=slept.append)


def test_a_read_sends_the_token_and_only_what_is_set(client: Client, server: Server) -> None:
    server.will_answer(200, {"items": []})
    assert client.get("/events", source="yfinance", entity_id=None) == {"items": []}
    [asked] = server.asked
    assert (asked.method, asked.path) == ("GET", "/v1/events?source=yfinance")
    assert asked.headers["Authorization"] == "Bearer a token"
    assert asked.headers["User-Agent"] == "acp/test"


def test_pages_are_followed_until_there_are_enough(client: Client, server: Server) -> None:
    server.will_answer(200, {"items": [{"n": n} for n in range(200)], "next": "a/b=="})
    server.will_answer(200, {"items": [{"n": 200}, {"n": 201}], "next": "more"})
    assert [item["n"] for item in client.pages("/events", most=202)] == list(range(202))
    assert [asked.path for asked in server.asked] == ["/v1/events?limit=200", "/v1/events?limit=2&after=a%2Fb%3D%3D"]


def test_a_page_larger_than_asked_for_is_cut(client: Client, server: Server) -> None:
    server.will_answer(200, {"items": [{"n": n} for n in range(5)], "next": "more"})
    assert len(list(client.pages("/events", most=3))) == 3


def test_a_change_is_sent_again_under_the_same_key(client: Client, server: Server, slept: list[float]) -> None:
    server.will_hang_up()
    server.will_answer(503, {"detail": "later"}, Retry_After="7")
    server.will_answer(202, {"operation_id": "1"})
    assert client.send("POST", "/operations", {"kind": "redrive"}) == {"operation_id": "1"}
    keys = {asked.headers["Idempotency-Key"] for asked in server.asked}
    assert len(keys) == 1
    assert [json.loads(asked.body) for asked in server.asked] == [{"kind": "redrive"}] * 3
    assert slept == [1, 7]


def test_two_changes_have_two_keys(client: Client, server: Server) -> None:
    for _ in range(2):
        server.will_answer(200, {})
        client.send("POST", "/relay/run")
    assert len({asked.headers["Idempotency-Key"] for asked in server.asked}) == 2


def test_a_refusal_is_not_tried_again_and_says_why(client: Client, server: Server) -> None:
    server.will_answer(403, {"title": "Forbidden", "detail": "This needs the scope operate."})
    with pytest.raises(ApiError, match="needs the scope operate") as refused:
        client.send("POST", "/relay/run")
    assert refused.value.status == 403
    assert len(server.asked) == 1


def test_a_long_wait_is_not_waited_for(client: Client, server: Server, slept: list[float]) -> None:
    server.will_answer(429, {"detail": "slower"}, Retry_After="3600")
    server.will_answer(200, {})
    client.get("/flow")
    assert slept == [10]


def test_what_stays_away_is_named(client: Client, server: Server, slept: list[float]) -> None:
    for _ in range(3):
        server.will_answer(503, {"detail": "Postgres cannot be used right now."}, Retry_After="5")
    with pytest.raises(ApiError, match="Postgres cannot be used") as failed:
        client.get("/flow")
    assert (failed.value.status, failed.value.retry_after_seconds, slept) == (503, 5, [5, 5])


def test_nobody_there_is_unreachable(slept: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ApiUnreachable, match="does not answer"):
            Client(profile_of("x", url, None), agent="acp", sleep=slept.append).get("/health")
    assert slept == [1, 2]


def test_a_redirect_is_not_followed_with_the_token(client: Client, server: Server) -> None:
    server.will_answer(302, b"", Location="http://127.0.0.1:1/steal")
    with pytest.raises(ApiError):
        client.get("/flow")
    assert len(server.asked) == 1


def test_a_page_that_is_no_json_is_not_the_api(client: Client, server: Server) -> None:
    server.will_answer(200, b"<html>welcome</html>")
    server.will_answer(200, b"<html>welcome</html>")
    server.will_answer(200, b"<html>welcome</html>")
    with pytest.raises(ApiUnreachable, match="stage"):
        client.get("/flow")


def test_text_is_asked_for_and_of_no_other_type(client: Client, server: Server) -> None:
    server.will_answer(503, {"detail": "later"}, Retry_After="1")
    server.will_answer(200, b"up 1\n", Content_Type="text/plain; version=0.0.4; charset=utf-8")
    assert client.text("/metrics", content_type="text/plain") == "up 1\n"
    assert server.asked[-1].headers["Accept"] == "text/plain"
    for _ in range(3):
        server.will_answer(200, b"<html>welcome</html>", Content_Type="text/html")
    with pytest.raises(ApiUnreachable, match="no text/plain"):
        client.text("/metrics", content_type="text/plain")
    server.will_answer(403, {"detail": "This needs the scope metrics."})
    with pytest.raises(ApiError, match="needs the scope metrics"):
        client.text("/metrics", content_type="text/plain")


def test_an_answer_without_an_explanation_still_has_a_status(client: Client, server: Server) -> None:
    server.will_answer(404, b"<html>")
    with pytest.raises(ApiError, match="answers 404"):
        client.get("/flow")


def test_an_answer_without_a_body_is_none(client: Client, server: Server) -> None:
    server.will_answer(204)
    assert client.send("DELETE", "/tokens/x") is None


def test_a_name_is_one_part_of_a_path() -> None:
    assert in_path("a/../b?c#d") == "a%2F..%2Fb%3Fc%23d"
