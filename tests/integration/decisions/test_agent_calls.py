"""An agent's call from its claim to its end on record, whatever the agent or its model does."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.agent_world import (
    KEY,
    MICROS,
    PROTOCOLS,
    REQUEST,
    RIGHT,
    Hypothesis,
    ScriptedAgent,
    budget_of,
    call_of,
    clone_database,
    intend,
    model_agent,
    open_decision,
    rows,
    run,
    value,
)

from control_plane.decisions.agent_calls import run_call
from control_plane.model.deciding import AgentResult
from control_plane.model.errors import ControlPlaneError, DatabaseUnavailable
from control_plane.platform.database import connect
from local_cloud.postgres import PostgresServer
from model_endpoint import ModelEndpoint, serve
from model_endpoint.behaviour import KINDS


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """One database for the module: each call has a decision and a budget of its own."""
    yield from clone_database(postgres)


@pytest.fixture(autouse=True)
def nothing_is_off(owner: Connection[Any]) -> None:
    owner.execute("DELETE FROM switches")


@pytest.fixture(scope="module")
def running() -> Iterator[ModelEndpoint]:
    with serve(input_micros=MICROS.input_micros, output_micros=MICROS.output_micros) as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: ModelEndpoint) -> ModelEndpoint:
    running.reset()
    return running


@pytest.fixture
def agent_role(database: TestDatabase) -> Iterator[Connection[Any]]:
    """A connection of the role that AgentFunction has."""
    with connect(database.url("acp_agent"), application_name="test") as connection:
        yield connection


def test_an_answer_is_recorded_and_wakes_its_decision(app: Connection[Any], agent_role: Connection[Any]) -> None:
    agent = ScriptedAgent()
    intended = intend(app, agent)
    assert run(agent_role, agent, intended).was_in_time
    call = call_of(app, intended)
    assert (call["outcome"], call["cost_micros"], call["error"]) == ("answered", 0, None)
    assert value(app, "SELECT bytes FROM artifacts WHERE sha256 = %s", [call["answer_sha256"]]) == RIGHT
    assert agent.requests == [json.dumps(REQUEST).encode()]
    messages = rows(
        app,
        "SELECT topic, event_type, payload_json FROM outbox WHERE payload_json -> 'payload' ->> 'call_id' = %s"
        " ORDER BY topic",
        [str(call["call_id"])],
    )
    assert [(row["topic"], row["event_type"]) for row in messages] == [
        ("decisions.events", "AGENT_ANSWERED"),
        ("decisions.work", "AGENT_ANSWERED"),
    ]
    assert messages[0]["payload_json"]["payload"]["call_id"] == str(call["call_id"])
    steps = rows(
        app, "SELECT kind, author FROM decision_steps WHERE decision_id = %s ORDER BY seq", [call["decision_id"]]
    )
    assert steps[-1] == {"kind": "call_answered", "author": "agent"}


def test_a_call_is_taken_once(app: Connection[Any], agent_role: Connection[Any]) -> None:
    agent = ScriptedAgent()
    intended = intend(app, agent)
    assert intended is not None
    run(agent_role, agent, intended)
    again = run_call(lambda: agent_role, {agent.name: agent}, intended.call_id, claimant="another", lease_seconds=30)
    assert again is None
    assert len(agent.requests) == 1


@pytest.mark.parametrize("scope", ["all", "domain:test", "playbook:toy", "agent:hypotheses"])
def test_what_is_switched_off_is_not_taken(owner: Connection[Any], app: Connection[Any], scope: str) -> None:
    agent = ScriptedAgent()
    intended = intend(app, agent)
    assert intended is not None
    owner.execute("INSERT INTO switches (scope, is_off, set_by) VALUES (%s, true, 'Ada')", [scope])
    assert run_call(lambda: app, {agent.name: agent}, intended.call_id, claimant="a", lease_seconds=30) is None
    assert call_of(app, intended)["lease_until"] is None


def test_a_call_without_time_is_left_for_later(app: Connection[Any]) -> None:
    intended = intend(app, ScriptedAgent())
    assert intended is not None
    with pytest.raises(ControlPlaneError, match="no time"):
        run_call(lambda: app, {}, intended.call_id, claimant="a", lease_seconds=30, most_seconds=0)
    assert call_of(app, intended)["lease_until"] is None


# What is not even asked


def refused(app: Connection[Any], intended: Any, agent: ScriptedAgent | None, **more: Any) -> str:
    report = run(app, agent, intended, **more)
    call = call_of(app, intended)
    assert (call["outcome"], call["cost_micros"], report.was_in_time) == ("failed", 0, True)
    assert agent is None or agent.requests == []
    assert isinstance(call["error"], str)
    return call["error"]


def test_an_agent_that_is_gone_fails_at_no_cost(app: Connection[Any]) -> None:
    intended = intend(app, ScriptedAgent(micros=7))
    assert "no agent hypotheses" in refused(app, intended, None)
    budget = budget_of(app, intended)
    assert budget["spent_micros"] + budget["reserved_micros"] == 0


def test_another_version_fails_at_no_cost(app: Connection[Any]) -> None:
    agent = ScriptedAgent()
    assert "version 1, not 0" in refused(app, intend(app, agent, version="0"), agent)


def test_another_request_than_the_messages_is_refused(app: Connection[Any]) -> None:
    agent = ScriptedAgent()
    assert "another request" in refused(app, intend(app, agent), agent, request_sha256="0" * 64)
    body = json.dumps(REQUEST).encode()
    intended = intend(app, agent, request=body)
    assert run(app, agent, intended, request_sha256=hashlib.sha256(body).hexdigest()).result.outcome == "answered"


@pytest.mark.parametrize(
    "body", [b"[]", b'{"a":1,"a":2}', b'{"a":NaN}', b"{" * 100, b'{"a":"' + b"x" * 300_000 + b'"}']
)
def test_a_request_that_is_no_strict_object_is_refused(app: Connection[Any], body: bytes) -> None:
    agent = ScriptedAgent()
    refused(app, intend(app, agent, request=body), agent)


def test_less_than_the_worst_case_reserved_is_refused(app: Connection[Any]) -> None:
    agent = ScriptedAgent(micros=10)
    assert "10 micros, and 9 are reserved" in refused(app, intend(app, agent, reserve=9), agent)


def test_a_model_that_is_off_fails_at_no_cost(owner: Connection[Any], app: Connection[Any]) -> None:
    agent = ScriptedAgent(model="stand-in", micros=10)
    intended = intend(app, agent)
    owner.execute("INSERT INTO switches (scope, is_off, set_by) VALUES ('model:stand-in', true, 'Ada')")
    assert "stand-in is switched off" in refused(app, intended, agent)


# What an agent does


def outcome_of(app: Connection[Any], agent: ScriptedAgent, **more: Any) -> tuple[str, int]:
    intended = intend(app, agent, reserve=100)
    run(app, agent, intended, **more)
    call = call_of(app, intended)
    assert budget_of(app, intended)["reserved_micros"] == 0
    return call["outcome"], call["cost_micros"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"{}",
        RIGHT.replace(b"0.5", b"NaN"),
        RIGHT.replace(b"0.5", b"1e999"),
        RIGHT.replace(b"0.5", b'"0.5"'),
        RIGHT.replace(b"0.5", b"2"),
        RIGHT.replace(b"{", b'{"cause":"split",'),
        RIGHT.replace(b"{", b'{"more":1,'),
        RIGHT.replace(b'"the', b'"\xff'),
        RIGHT + b"{}",
        b"[" * 70_000,
        RIGHT.replace(b"the", b"x" * 70_000),
    ],
)
def test_an_answer_that_does_not_fit_is_invalid(app: Connection[Any], answer: bytes) -> None:
    agent = ScriptedAgent(lambda _: AgentResult("answered", answer, cost_micros=3))
    assert outcome_of(app, agent) == ("invalid", 3)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (AgentResult("failed", error="it will not", cost_micros=0), ("failed", 0)),
        (AgentResult("invalid", answer=b"{}", error="odd", cost_micros=5), ("invalid", 5)),
        (AgentResult("unknown", cost_micros=5), ("unknown", 100)),
        (AgentResult("released", RIGHT), ("unknown", 100)),
        (AgentResult("answered", RIGHT, cost_micros=-1), ("unknown", 100)),
        (AgentResult("answered", RIGHT, cost_micros=10**30), ("unknown", 100)),
        (AgentResult("answered", RIGHT, input_tokens=-1, output_tokens=10**30), ("answered", 0)),
        (AgentResult("failed", error="\x1b[31m\x00" * 2000), ("failed", 0)),
        (AgentResult("failed", error=""), ("failed", 0)),
    ],
)
def test_what_an_agent_reports_is_held_to_its_bounds(
    app: Connection[Any], result: AgentResult, expected: tuple[str, int]
) -> None:
    assert outcome_of(app, ScriptedAgent(lambda _: result)) == expected


def test_an_agent_that_raises_is_unknown(app: Connection[Any]) -> None:
    def fails(_: bytes) -> AgentResult:
        raise RuntimeError("with a secret")

    agent = ScriptedAgent(fails)
    assert outcome_of(app, agent) == ("unknown", 100)
    assert rows(app, "SELECT FROM agent_calls WHERE error LIKE '%%a secret%%'") == []


def test_an_agent_that_hangs_is_left_behind(app: Connection[Any]) -> None:
    released = threading.Event()

    def hangs(_: bytes) -> AgentResult:
        released.wait(30)
        return AgentResult("answered", RIGHT)

    began = time.monotonic()
    assert outcome_of(app, ScriptedAgent(hangs), lease_seconds=0.5) == ("unknown", 100)
    assert time.monotonic() - began < 5
    released.set()


def test_a_late_answer_changes_nothing(app: Connection[Any]) -> None:
    of = open_decision(app)

    def ended_meanwhile(_: bytes) -> AgentResult:
        app.execute("SELECT pg_sleep(0.3)")
        assert value(app, "SELECT end_lost_calls(%s, %s)", of) == 1
        return AgentResult("answered", RIGHT, cost_micros=3)

    agent = ScriptedAgent(ended_meanwhile)
    intended = intend(app, agent, of=of, reserve=100, seconds=0.25)
    # The engine's clock is ahead of what this agent was told.
    report = run(app, agent, intended, lease_seconds=30, monotonic=lambda: 0.0)
    assert not report.was_in_time or call_of(app, intended)["outcome"] == "unknown"
    assert call_of(app, intended)["cost_micros"] == 100


def test_a_session_lost_meanwhile_loses_no_answer(app: Connection[Any], database: TestDatabase) -> None:
    opened: list[Connection[Any]] = []

    def connection() -> Connection[Any]:
        if not opened or opened[-1].closed or opened[-1].broken:
            opened.append(connect(database.url("acp_agent"), application_name="agent"))
        return opened[-1]

    def lost(_: bytes) -> AgentResult:
        with psycopg.connect(database.admin_url, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agent'")
        return AgentResult("answered", RIGHT, cost_micros=3)

    agent = ScriptedAgent(lost)
    intended = intend(app, agent, reserve=100)
    assert intended is not None
    report = run_call(connection, {agent.name: agent}, intended.call_id, claimant="a", lease_seconds=30)
    assert report is not None
    assert report.was_in_time
    assert call_of(app, intended)["outcome"] == "answered"
    assert len(opened) == 2
    opened[-1].close()


def test_a_database_that_stays_away_is_an_error(app: Connection[Any]) -> None:
    agent = ScriptedAgent()
    intended = intend(app, agent, reserve=100)
    assert intended is not None
    tries = iter([app])

    def connection() -> Connection[Any]:
        try:
            return next(tries)
        except StopIteration:
            raise DatabaseUnavailable("it is away") from None

    with pytest.raises(DatabaseUnavailable):
        run_call(connection, {agent.name: agent}, intended.call_id, claimant="a", lease_seconds=0.5)
    app.execute("SELECT pg_sleep(0.5)")
    assert value(app, "SELECT end_lost_calls(%s, %s)", [intended.decision_id, intended.fence]) == 1
    assert (call_of(app, intended)["outcome"], call_of(app, intended)["cost_micros"]) == ("unknown", 100)


# What a model does: by behaviour, the outcome, the turns, and what it cost (all: as reserved)

OUTCOMES: dict[str, tuple[str, int, str]] = {
    "right": ("answered", 1, "charged"),
    "lie": ("answered", 1, "charged"),
    "injection": ("answered", 1, "charged"),
    "much_usage": ("answered", 1, "charged"),
    "wrong_schema": ("invalid", 3, "charged"),
    "extra_field": ("invalid", 3, "charged"),
    "prose": ("invalid", 3, "charged"),
    "duplicate_keys": ("invalid", 3, "charged"),
    "nan": ("invalid", 3, "charged"),
    "infinity": ("invalid", 3, "charged"),
    "deep": ("invalid", 3, "charged"),
    "long": ("invalid", 3, "charged"),
    "out_of_tokens": ("invalid", 3, "charged"),
    "filtered": ("invalid", 3, "charged"),
    "empty": ("invalid", 3, "charged"),
    "huge": ("unknown", 1, "all"),
    "no_usage": ("unknown", 1, "all"),
    "odd_usage": ("unknown", 1, "all"),
    "hang": ("unknown", 1, "all"),
    "drip": ("unknown", 1, "all"),
    "cut_off": ("unknown", 1, "all"),
    "close": ("unknown", 1, "all"),
    "garbage": ("unknown", 1, "all"),
    "error": ("unknown", 1, "all"),
    "throttled": ("failed", 1, "nothing"),
    "unavailable": ("failed", 1, "nothing"),
    "denied": ("failed", 1, "nothing"),
    "redirect": ("failed", 1, "nothing"),
}


def test_every_behaviour_has_an_outcome() -> None:
    assert OUTCOMES.keys() | {"echo_key"} == KINDS.keys()


@pytest.mark.parametrize("kind", OUTCOMES)
def test_each_behaviour_ends_as_it_must(
    owner: Connection[Any], app: Connection[Any], endpoint: ModelEndpoint, kind: str
) -> None:
    outcome, turns, cost = OUTCOMES[kind]
    for protocol in PROTOCOLS:
        endpoint.reset()
        endpoint.behave(kind)
        owner.execute("DELETE FROM switches")  # the dear one has switched its model off
        agent = model_agent(endpoint, protocol)
        intended = intend(app, agent)
        began = time.monotonic()
        report = run(app, agent, intended, lease_seconds=0.7 if kind in {"hang", "drip"} else 30)
        assert time.monotonic() - began < 10
        call = call_of(app, intended)
        assert (call["outcome"], len(endpoint.requests())) == (outcome, turns), (protocol, report.result.error)
        ledger = endpoint.spent_micros()
        expected = {"charged": ledger, "all": call["reserved_micros"], "nothing": 0}[cost]
        assert call["cost_micros"] == expected
        assert kind == "much_usage" or ledger <= call["cost_micros"] <= call["reserved_micros"]
        budget = budget_of(app, intended)
        assert (budget["reserved_micros"], budget["spent_micros"]) == (0, expected)
        if outcome == "answered":
            answer = value(app, "SELECT bytes FROM artifacts WHERE sha256 = %s", [call["answer_sha256"]])
            Hypothesis.model_validate_json(answer)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_repair_gets_the_reason_and_may_succeed(app: Connection[Any], endpoint: ModelEndpoint, protocol: str) -> None:
    endpoint.behave_in_turn("wrong_schema", "right")
    agent = model_agent(endpoint, protocol)
    intended = intend(app, agent)
    run(app, agent, intended)
    first, second = endpoint.requests()
    assert "That was refused" not in first.body
    assert "cause: Field required" in second.body
    call = call_of(app, intended)
    assert (call["outcome"], call["cost_micros"]) == ("answered", endpoint.spent_micros())
    assert call["input_tokens"] == first.input_tokens + second.input_tokens


@pytest.mark.parametrize(
    ("second", "outcome"), [("throttled", "invalid"), ("hang", "unknown"), ("no_usage", "unknown")]
)
def test_a_repair_that_fails_keeps_the_first_turns_cost(
    app: Connection[Any], endpoint: ModelEndpoint, second: str, outcome: str
) -> None:
    endpoint.behave_in_turn("wrong_schema", second)
    agent = model_agent(endpoint)
    intended = intend(app, agent)
    run(app, agent, intended, lease_seconds=1)
    call = call_of(app, intended)
    assert call["outcome"] == outcome
    assert call["cost_micros"] == (call["reserved_micros"] if outcome == "unknown" else endpoint.spent_micros())


def test_usage_above_the_reservation_switches_the_model_off(app: Connection[Any], endpoint: ModelEndpoint) -> None:
    endpoint.behave("much_usage")
    agent = model_agent(endpoint)
    intended = intend(app, agent)
    run(app, agent, intended)
    call = call_of(app, intended)
    over = call["cost_micros"] - call["reserved_micros"]
    assert over > 0
    assert budget_of(app, intended)["overrun_micros"] == over
    assert rows(app, "SELECT scope, is_off FROM switches") == [{"scope": "model:stand-in", "is_off": True}]
    later = intend(app, agent)
    run(app, agent, later)
    assert (call_of(app, later)["outcome"], call_of(app, later)["cost_micros"]) == ("failed", 0)
    assert len(endpoint.requests()) == 1


def test_a_providers_breaker_spares_the_budget(app: Connection[Any], endpoint: ModelEndpoint) -> None:
    endpoint.behave("error")
    agent = model_agent(endpoint, threshold=2)
    outcomes = []
    for _ in range(3):
        intended = intend(app, agent)
        run(app, agent, intended)
        outcomes.append((call_of(app, intended)["outcome"], call_of(app, intended)["cost_micros"] > 0))
    assert outcomes == [("unknown", True), ("unknown", True), ("failed", False)]
    assert len(endpoint.requests()) == 2


# What is sent, and what is kept


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_allowlisted_fields_are_sent(app: Connection[Any], endpoint: ModelEndpoint, protocol: str) -> None:
    agent = model_agent(endpoint, protocol)
    run(app, agent, intend(app, agent, request={**REQUEST, "owner": "Ada"}))
    [request] = endpoint.requests()
    assert "-495000" in request.body
    assert "5000000" in request.body
    assert "paper-4711" not in request.body
    assert "Ada" not in request.body
    assert request.body.count("</data>") == 1 + request.body.count(
        "block <data>…</data>".encode("unicode_escape").decode()
    )


@pytest.mark.parametrize("kind", ["right", "echo_key", "denied", "error", "garbage", "wrong_schema", "hang"])
@pytest.mark.parametrize("protocol", ["chat", "chat_tool"])
def test_the_key_is_sent_and_kept_nowhere(
    owner: Connection[Any], app: Connection[Any], endpoint: ModelEndpoint, kind: str, protocol: str
) -> None:
    endpoint.behave(kind)
    agent = model_agent(endpoint, protocol)
    report = run(app, agent, intend(app, agent), lease_seconds=1)
    assert endpoint.requests()[0].key_sha256 == hashlib.sha256(f"Bearer {KEY}".encode()).hexdigest()
    assert KEY not in repr(report)
    tables = rows(owner, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
    for table in tables:
        kept = rows(owner, f"SELECT row::text AS text FROM {table['relname']} AS row")
        assert not any(KEY in row["text"] or KEY.encode().hex() in row["text"] for row in kept), table


def test_a_key_that_cannot_be_read_fails_at_no_cost(app: Connection[Any], endpoint: ModelEndpoint) -> None:
    agent = model_agent(endpoint)

    def unreadable() -> str:
        raise ControlPlaneError("the secret cannot be read")

    agent._bound_to.client._client._read_key = unreadable  # type: ignore[union-attr]
    intended = intend(app, agent)
    run(app, agent, intended)
    assert (call_of(app, intended)["outcome"], endpoint.requests()) == ("failed", [])


def test_a_provider_that_is_away_fails_at_no_cost(app: Connection[Any]) -> None:
    nowhere = ModelEndpoint(1, 0)
    for protocol in PROTOCOLS:
        agent = model_agent(nowhere, protocol)
        intended = intend(app, agent)
        run(app, agent, intended)
        call = call_of(app, intended)
        assert (call["outcome"], call["cost_micros"]) == ("failed", 0), protocol
        assert "nothing was sent" in call["error"]
