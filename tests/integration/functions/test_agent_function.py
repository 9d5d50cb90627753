"""AgentFunction: a batch of calls in, their ends on record, one line each."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.agent_world import (
    KEY,
    Hypothesis,
    Intended,
    ScriptedAgent,
    call_of,
    intend,
    model_agent,
    value,
)
from tests.integration.functions.invoked import Function, Load, failures, metrics, record

from control_plane.decisions.emit import message
from control_plane.decisions.models.model_agent import ModelAgent
from control_plane.model.deciding import AgentResult, Deciding
from control_plane.model.decision_events import AgentCallRequested
from control_plane.model.errors import ConfigurationError
from model_endpoint import ModelEndpoint, serve


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ModelEndpoint]:
    with serve() as endpoint:
        yield endpoint


def batch(connection: Connection[Any], *calls: Intended | None, seconds: float = 20) -> dict[str, Any]:
    records = []
    for number, intended in enumerate(calls):
        assert intended is not None
        call = call_of(connection, intended)
        trace_id = value(connection, "SELECT trace_id FROM decisions WHERE decision_id = %s", [intended.decision_id])
        asked = AgentCallRequested(
            decision_id=str(intended.decision_id),
            call_id=str(intended.call_id),
            agent=call["agent"],
            request_sha256=call["request_sha256"].hex(),
            seconds=seconds,
        )
        event = message(asked, entity_id="AAPL", series="s", at=call["intended_at"], trace_id=trace_id).message
        records.append(record(json.dumps(event), number, event_id=event["event_id"], trace_id=event["trace_id"]))
    return {"Records": records}


def load_agent(load: Load, database: TestDatabase, *agents: Any, **variables: str) -> Function:
    function = load("agent", DATABASE_URL=database.url("acp_agent"), **variables)
    domain = Deciding((), agents, None)  # type: ignore[arg-type]
    vars(function.module)["load_deciding"] = lambda: {"test": domain}
    return function


def test_each_call_of_a_batch_ends_on_record(
    load: Load, database: TestDatabase, app: Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    agent = ScriptedAgent()
    function = load_agent(load, database, agent)
    calls = [intend(app, agent), intend(app, agent)]
    event = batch(app, *calls)
    assert failures(function(event)) == []
    assert [call_of(app, call)["outcome"] for call in calls] == ["answered", "answered"]
    assert metrics(capsys)["AgentCalls"] == 2
    assert failures(function(event)) == [], "a message that comes again changes nothing"
    assert len(agent.requests) == 2


def test_a_call_takes_no_longer_than_its_playbook_allows(
    load: Load, database: TestDatabase, app: Connection[Any]
) -> None:
    given: list[float] = []

    class Watch(ScriptedAgent):
        def call(self, request: bytes, *, attempt: int, seconds_left: float) -> AgentResult:
            given.append(seconds_left)
            return super().call(request, attempt=attempt, seconds_left=seconds_left)

    agent = Watch()
    function = load_agent(load, database, agent)
    for seconds in (7, 1000):
        assert failures(function(batch(app, intend(app, agent), seconds=seconds))) == []
    assert given[0] == 7
    assert 7 < given[1] < 60, "the lease bounds it, too"


def test_a_model_is_called_by_the_settings(
    load: Load, database: TestDatabase, app: Connection[Any], endpoint: ModelEndpoint
) -> None:
    endpoint.reset()
    unbound = ModelAgent("hypotheses", "1", Hypothesis, "Say why the price fell.", ("bar",))
    function = load_agent(
        load, database, unbound, MODEL_PROVIDER="openai", MODEL_ID="stand-in", MODEL_URL=endpoint.chat_url
    )
    intended = intend(app, function.module.agents()["hypotheses"])
    assert failures(function(batch(app, intended))) == []
    call = call_of(app, intended)
    assert (call["outcome"], call["cost_micros"]) == ("answered", endpoint.spent_micros())
    [line] = [line for line in function.logs if line["message"] == "called"]
    assert (line["state"], line["agent"], line["model"]) == ("answered", "hypotheses", "stand-in")
    assert line["cost_micros"] == call["cost_micros"]
    answer = value(app, "SELECT bytes FROM artifacts WHERE sha256 = %s", [call["answer_sha256"]])
    assert json.loads(answer)["reasons"][0] not in function.output


def test_a_failed_call_says_why_in_one_line(
    load: Load, database: TestDatabase, app: Connection[Any], endpoint: ModelEndpoint
) -> None:
    endpoint.reset()
    endpoint.behave("denied")
    agent = model_agent(endpoint)
    function = load_agent(
        load, database, ScriptedAgent(does=lambda request: agent.call(request, attempt=1, seconds_left=5))
    )
    intended = intend(app, ScriptedAgent(), reserve=10**9)
    assert failures(function(batch(app, intended))) == []
    [line] = [line for line in function.logs if line["message"] == "called"]
    assert (line["state"], line["error"]) == ("failed", "the provider answered HTTP 403 invalid_api_key")
    assert KEY not in function.output


def test_a_model_without_a_price_fails_the_batch(load: Load, database: TestDatabase) -> None:
    function = load_agent(
        load, database, MODEL_PROVIDER="openai", MODEL_ID="nobody-knows", MODEL_URL="http://127.0.0.1:1/v1"
    )
    function.fails(ConfigurationError, "nobody-knows", "MODEL_PRICE_MICROS", event={"Records": []})
