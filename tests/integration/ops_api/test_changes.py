"""What surrounds every change: its key, its audit, and refusals that store nothing."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.ops_api.client import TOKEN, Client, Load

from control_plane.ops.maintenance import Maintenance
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry

WHY = "because of a test"
HOLD = {"reason": WHY}
STORED = (
    "api_tokens",
    "api_audit",
    "idempotency_keys",
    "circuit_breakers",
    "switches",
    "approvals",
    "events",
    "outbox",
)


def count(owner: Connection[Any]) -> dict[str, int]:
    return {table: owner.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()[0] for table in STORED}  # type: ignore[index]


def test_a_change_is_one_row_of_the_audit(commands: Client, api: Client) -> None:
    assert commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, key="a-key-of-mine").status == 200
    [row] = api.ask("GET", "/audit").body["items"]
    assert (row["token"], row["address"], row["agent"]) == ("root", "203.0.113.7", "tests/1")
    assert (row["route"], row["reason"]) == ("POST /subscriptions/{name}/hold", WHY)
    assert (row["idempotency_key"], row["status"]) == ("a-key-of-mine", 200)
    assert row["before"] is None
    assert (row["after"]["name"], row["after"]["held_by"]) == ("signal_lab", "token:root")


def test_a_request_that_is_sent_again_changes_nothing(commands: Client, owner: Connection[Any]) -> None:
    first = commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, key="once-only")
    before = count(owner)
    again = commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, key="once-only")
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["Idempotent-Replay"] == "true"
    assert "Idempotent-Replay" not in first.headers
    assert count(owner) == before


def test_a_token_is_not_shown_again(commands: Client, owner: Connection[Any]) -> None:
    body = {"name": "kim", "scopes": ["read"], "reason": WHY}
    first = commands.ask("POST", "/tokens", body, key="once-only")
    again = commands.ask("POST", "/tokens", body, key="once-only")
    assert again.status == 201
    assert again.body == first.body | {"token": None}
    assert count(owner)["api_tokens"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/subscriptions/signal_lab/hold", {"reason": "another"}),
        ("/subscriptions/system_events/hold", HOLD),
        ("/subscriptions/signal_lab/resume", HOLD),
    ],
)
def test_another_request_under_the_same_key_is_refused(
    commands: Client, owner: Connection[Any], path: str, body: dict[str, Any]
) -> None:
    commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, key="once-only")
    before = count(owner)
    assert "take a new key" in commands.ask("POST", path, body, key="once-only").detail(422)
    assert count(owner) == before


def test_a_key_is_a_tokens_own(commands: Client) -> None:
    made = commands.ask("POST", "/tokens", {"name": "kim", "scopes": ["operate"], "reason": WHY}).body["token"]
    assert commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, key="once-only").status == 200
    force = {"reason": WHY, "force": True}
    assert commands.ask("POST", "/subscriptions/signal_lab/hold", force, key="once-only", token=made).status == 200


def test_a_key_is_forgotten_after_a_day(commands: Client, owner: Connection[Any]) -> None:
    commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, key="once-only")
    owner.execute("UPDATE idempotency_keys SET at = now() - interval '25 hours'")
    again = commands.ask("POST", "/subscriptions/signal_lab/hold", {"reason": "anew"}, key="once-only")
    assert (again.status, again.body["held_reason"]) == (200, "anew")


def test_concurrent_requests_under_one_key_change_once(
    load: Load, database: TestDatabase, owner: Connection[Any]
) -> None:
    clients = [load("command_api", DATABASE_URL=database.url("acp_command")) for _ in range(4)]

    def ask(client: Client) -> int:
        body = {"name": "kim", "scopes": ["read"], "reason": WHY}
        event = {
            "httpMethod": "POST",
            "path": "/tokens",
            "headers": {
                "Authorization": f"Bearer {TOKEN}",
                "Idempotency-Key": "once-only",
                "Content-Type": "application/json",
            },
            "body": json.dumps(body),
        }
        return int(client.function(event)["statusCode"])

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, clients)) == {201}
    assert count(owner)["api_audit"] == count(owner)["api_tokens"] == 1


@pytest.mark.parametrize("key", ["", "short", "with space", "x" * 101, "ünïcödé-key", "line\nbreak"])
def test_a_change_without_a_proper_key_is_refused(commands: Client, owner: Connection[Any], key: str) -> None:
    before = count(owner)
    headers = {"Idempotency-Key": key}
    answer = commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, headers=headers)
    assert "send one header Idempotency-Key" in answer.detail(400)
    assert count(owner) == before


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("", 400, "is not JSON"),
        ("{", 400, "is not JSON"),
        ("[]", 400, "is not a JSON object"),
        ('"text"', 400, "is not a JSON object"),
        ('{"reason": "a", "reason": "b"}', 400, "twice"),
        ('{"reason": NaN}', 400, "NaN"),
        ('{"reason": "\\u0000"}', 400, "control character"),
        ('{"reason": "\\ud800"}', 400, "surrogate"),
        ("[" * 100_000, 400, "nested deeper"),
        ('{"reason": "' + "x" * 10_000_000 + '"}', 413, "1048576 is the most"),
        ('{"reason": "' + "x" * 1001 + '"}', 422, "reason"),
        ("{}", 422, "reason"),
        ('{"reason": 1}', 422, "reason"),
        ('{"reason": "a", "force": "yes"}', 422, "force"),
        ('{"reason": "a", "<script>": 1}', 422, "<script>"),
    ],
)
def test_a_wrong_body_stores_nothing(
    commands: Client, owner: Connection[Any], body: str, status: int, said: str
) -> None:
    before = count(owner)
    answer = commands.ask("POST", "/subscriptions/signal_lab/hold", body)
    assert said in answer.detail(status)
    assert len(answer.text) < 1000
    assert count(owner) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_a_body_of_another_type_is_refused(commands: Client, owner: Connection[Any], kind: str) -> None:
    before = count(owner)
    answer = commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD, headers={"Content-Type": kind})
    assert "application/json" in answer.detail(415)
    assert count(owner) == before


@pytest.mark.parametrize(
    "name", ["nothing", "'; DROP TABLE subscriptions; --", "<script>alert(1)</script>", "%00", "ünï"]
)
def test_what_is_not_there_is_not_found(commands: Client, owner: Connection[Any], name: str) -> None:
    before = count(owner)
    for kind in ("subscriptions", "breakers"):
        for verb in ("hold", "resume"):
            event_path = f"/{kind}/{name.replace('/', '%2F')}/{verb}"
            assert commands.ask("POST", event_path, HOLD).status == 404
    assert commands.ask("POST", "/subscriptions/a\x00b/hold", HOLD).status == 400
    assert count(owner) == before


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH"])
def test_another_method_is_not_allowed(commands: Client, method: str) -> None:
    answer = commands.ask(method, "/tokens")
    assert answer.detail(405) == "This route answers to POST, OPTIONS alone."


def test_maintenance_deletes_kept_answers(commands: Client, owner: Connection[Any], database: TestDatabase) -> None:
    commands.ask("POST", "/subscriptions/signal_lab/hold", HOLD)
    commands.ask("POST", "/subscriptions/system_events/hold", HOLD, key="an-old-key")
    owner.execute("UPDATE idempotency_keys SET at = now() - interval '25 hours' WHERE key = 'an-old-key'")
    with connect(database.url("acp_maintain"), application_name="test") as connection:
        report = Maintenance(retention_days={}, telemetry=Telemetry("test")).run(
            connection, remaining_seconds=lambda: 60
        )
    assert report.deleted_kept_answers == 1
    assert count(owner)["idempotency_keys"] == 1


def test_a_source_that_never_failed_is_held_only_if_it_is_said_to_be_new(commands: Client) -> None:
    new = {**HOLD, "is_new": True}
    assert "There is no breaker" in commands.ask("POST", "/breakers/yfinance/hold", HOLD).detail(404)
    assert "There is no subscription" in commands.ask("POST", "/subscriptions/yfinance/hold", new).detail(404)
    assert "A new breaker's name" in commands.ask("POST", "/breakers/a b/hold", new).detail(404)
    assert commands.ask("POST", "/breakers/yfinance/hold", new).body["held_by"] == "token:root"
    assert commands.ask("POST", "/breakers/yfinance/hold", HOLD).status == 200
