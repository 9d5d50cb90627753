"""The API through the deployed gateway, by the URL and the token that `acp env` gives."""

import json
import time
import uuid
from email.message import Message
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from tests.e2e.conftest import LocalCloud, wait_for


def get(url: str, token: str | None = None) -> tuple[int, Message, dict[str, Any]]:
    """Returns status, headers and body of an answer, even of an error."""
    request = Request(url, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with urlopen(request, timeout=60) as answer:  # The first request waits for the function's start.
            return answer.status, answer.headers, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, error.headers, json.load(error)


def test_anybody_may_ask_whether_all_is_well(local_cloud: LocalCloud) -> None:
    answers: list[dict[str, Any]] = []

    def well() -> bool:
        status, headers, body = get(f"{local_cloud.environ['API_URL']}/health")
        assert headers["Content-Type"] == "application/json"
        answers.append(body)
        return (status, body["status"]) == (200, "ok")

    # Earlier tests make faults, and a consumer may still have some of their messages to process.
    deadline = time.monotonic() + 300
    while not well():
        assert time.monotonic() < deadline, answers[-1]
        time.sleep(1)


def test_an_events_timeline_is_what_acp_trace_says_of_it(local_cloud: LocalCloud) -> None:
    consumed = "SELECT event_id FROM processed_events ORDER BY processed_at LIMIT 1"
    event_id = wait_for(lambda: local_cloud.query(consumed), seconds=240, what="an event consumed")[0][0]
    url = f"{local_cloud.environ['API_URL']}/events/{event_id}"
    status, headers, timeline = get(url, local_cloud.environ["API_TOKEN"])
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    assert timeline == json.loads(local_cloud.acp("trace", str(event_id), "--json").stdout)
    assert "signal_lab" in [processing["consumer"] for processing in timeline["processing"]]


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_without_the_token_nobody_reads_a_timeline(local_cloud: LocalCloud, token: str | None) -> None:
    status, headers, problem = get(f"{local_cloud.environ['API_URL']}/events/{uuid.uuid4()}", token)
    assert (status, headers["Content-Type"], problem["status"]) == (401, "application/problem+json", 401)
    assert headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(("event_id", "status"), [(str(uuid.UUID(int=0)), 404), ("none", 400)])
def test_an_event_that_is_none_is_a_problem_document(local_cloud: LocalCloud, event_id: str, status: int) -> None:
    code, headers, problem = get(
        f"{local_cloud.environ['API_URL']}/events/{event_id}", local_cloud.environ["API_TOKEN"]
    )
    assert (code, headers["Content-Type"], problem["status"]) == (status, "application/problem+json", status)
    assert event_id in problem["detail"]


def test_status_says_where_the_api_is(local_cloud: LocalCloud) -> None:
    services = json.loads(local_cloud.acp("status", "--json").stdout)["services"]
    assert services["API"] == local_cloud.environ["API_URL"] == local_cloud.environ["ApiUrl"]
    assert services["API"].startswith(local_cloud.endpoint_url)


def ask(local_cloud: LocalCloud, method: str, path: str, body: object = None, *, token: str) -> tuple[int, Any]:
    """Sends a change under a key of its own."""
    headers = {
        "Authorization": f"Bearer {token}",
        "Idempotency-Key": str(uuid.uuid4()),
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{local_cloud.environ['API_URL']}{path}", method=method, headers=headers, data=data)
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_token_changes_what_it_may_until_it_is_revoked(local_cloud: LocalCloud) -> None:
    root = local_cloud.environ["API_TOKEN"]
    name = f"kim-{uuid.uuid4().hex[:8]}"
    status, made = ask(
        local_cloud, "POST", "/tokens", {"name": name, "scopes": ["operate"], "reason": "a test"}, token=root
    )
    assert (status, made["scopes"]) == (201, ["operate", "read"])
    kim = made["token"]
    assert get(f"{local_cloud.environ['API_URL']}/events?limit=1", kim)[0] == 200
    assert ask(local_cloud, "POST", "/tokens", {}, token=kim)[0] == 403
    status, switched = ask(
        local_cloud, "PUT", "/switches/model:nothing", {"is_off": True, "reason": "a test"}, token=kim
    )
    assert (status, switched["set_by"]) == (200, f"token:{name}")
    status, started = ask(local_cloud, "POST", "/relay/run", {"reason": "a test"}, token=kim)
    assert (status, started) == (202, {"started": "RelayFunction"})
    assert ask(local_cloud, "DELETE", f"/tokens/{name}?reason=a%20test", token=root)[0] == 200
    assert get(f"{local_cloud.environ['API_URL']}/events?limit=1", kim)[0] == 401
    changes = get(f"{local_cloud.environ['API_URL']}/audit?token={name}", root)[2]["items"]
    assert [change["route"] for change in changes] == ["POST /relay/run", "PUT /switches/{scope}"]
