"""Deciding again and trying policies: two questions by POST that change nothing, and what goes wrong with them."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.functions.invoked import Function
from tests.integration.ops_api.client import TOKEN, Client, asked_by

from control_plane.api.retrials import MOST_POLICY_BYTES, MOST_REQUESTS
from control_plane.decisions import policy, retrial, retrial_answers
from control_plane.platform.invocation import FunctionBusy, InvocationFailed
from domains import load_deciding

POLICIES = '// What is forbidden\n@id("none") forbid (principal, action, resource);\n'
TEST = "/policies/test"


@pytest.fixture
def asked(api: Client, database: TestDatabase) -> Iterator[Function]:
    retrial_function = asked_by(api, database.url("acp_reader"))
    yield retrial_function
    retrial_function.close()


def let_ask(api: Client, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Mapping[str, Any]], Any]) -> None:
    monkeypatch.setattr(api.function.module, "retrial", lambda: ask)


def test_what_only_reads_needs_no_key_and_is_no_change(api: Client, asked: Function, owner: Connection[Any]) -> None:
    for key in ({}, {"Idempotency-Key": "not a key"}):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **key}
        for path, body in ((TEST, f'{{"policies": {json.dumps(POLICIES)}}}'), (f"/decisions/{uuid4()}/replay", None)):
            sent = {"httpMethod": "POST", "path": path, "headers": headers, "body": body}
            assert api.send(sent).status == (200 if path == TEST else 404)
    assert len(asked.logs) == 4
    assert owner.execute(
        "SELECT (SELECT count(*) FROM api_audit) + (SELECT count(*) FROM idempotency_keys)"
    ).fetchone() == (0,)


def test_the_scope_is_read(api: Client, commands: Client, asked: Function) -> None:
    for scope, status in (("read", 200), ("metrics", 403)):
        body = {"name": f"of_{scope}", "scopes": [scope], "reason": "a test"}
        token = commands.ask("POST", "/tokens", body).body["token"]
        assert api.ask("POST", TEST, {"policies": POLICIES}, token=token).status == status


def test_policies_are_tried_on_nothing(api: Client, asked: Function) -> None:
    answer = api.ask("POST", TEST, {"policies": POLICIES, "domain": "finance"})
    assert answer.status == 200, answer.body
    assert answer.body["counts"] == {"same": 0, "different": 0, "moves": []}
    assert (answer.body["policies"], answer.body["rows"], answer.body["stopped_by"]) == (["none"], [], None)
    # A domain may be left out where one alone decides.
    assert api.ask("POST", TEST, {"policies": POLICIES}).body == answer.body


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"policies": "permit (principal, action"}, "cannot be parsed"),
        ({"policies": "permit (principal, action, resource);"}, "have no @id"),
        ({"policies": POLICIES, "schema": "nonsense"}, "the schema cannot be parsed"),
        ({"policies": POLICIES, "domain": "weather"}, "There are: finance."),
        ({"policies": POLICIES, "limit": MOST_REQUESTS + 1}, "limit"),
        ({"policies": "ä" * (MOST_POLICY_BYTES // 2) + "x"}, f"it has {MOST_POLICY_BYTES + 1} bytes"),
        ({"policies": POLICIES, "schema": " " * (MOST_POLICY_BYTES + 1)}, "schema"),
        ({}, "policies"),
        (
            # Cedar's parser would end the whole process.
            {"policies": f'@id("x") permit (principal, action, resource) when {{ {"(" * 30_000}true{")" * 30_000} }};'},
            "nest brackets deeper",
        ),
        (
            {"policies": f'@id("x") permit (principal, action, resource) when {{ true{" && true" * 8_000} }};'},
            "too many parts",
        ),
    ],
)  # fmt: skip
def test_policies_that_cannot_be_used_are_told_so(
    api: Client, asked: Function, body: Mapping[str, Any], told: str
) -> None:
    assert told in api.ask("POST", TEST, body).detail(422)


def test_brackets_in_texts_and_comments_are_no_nesting() -> None:
    many = "(" * (policy.DEEPEST + 1)
    flat = f'@id("x") permit (principal, action, resource) when {{ "{many}\\"{many}" == "" }}; // {many}'
    gate = load_deciding()["finance"].gate
    assert policy.load(flat, gate.schema).names == {"policy0": "x"}


def test_as_many_requests_are_tried_as_the_api_allows() -> None:
    assert MOST_REQUESTS == retrial.MOST_REQUESTS


def test_a_busy_function_is_asked_later(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: Mapping[str, Any]) -> Any:
        raise FunctionBusy("retrial cannot be invoked: Rate Exceeded")

    let_ask(api, monkeypatch, busy)
    answer = api.ask("POST", f"/decisions/{uuid4()}/replay")
    assert "As much of this is at work already" in answer.detail(503)
    assert answer.headers["Retry-After"] == "5"


def test_a_function_that_fails_is_named_in_the_log_alone(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Mapping[str, Any]) -> Any:
        raise InvocationFailed("retrial failed: Task timed out after 20.00 seconds")

    let_ask(api, monkeypatch, fail)
    assert "failed, or was too slow" in api.ask("POST", f"/decisions/{uuid4()}/replay").detail(500)
    [error] = api.function.errors
    assert "Task timed out" in error["error"]


def test_the_log_names_what_was_asked_about(api: Client, asked: Function) -> None:
    decision_id = str(uuid4())
    api.ask("POST", f"/decisions/{decision_id}/replay")
    [answered] = api.function.logs
    [tried] = asked.logs
    assert answered["decision_id"] == tried["decision_id"] == decision_id
    api.ask("GET", f"/events/{decision_id}")
    assert [line["event_id"] for line in api.function.logs] == [decision_id]


def test_a_long_difference_is_cut() -> None:
    long = "x" * (retrial_answers.MOST_CHARACTERS + 1)
    shortened = retrial_answers._shortened(long)
    assert (len(shortened), shortened[-1]) == (retrial_answers.MOST_CHARACTERS, "…")
