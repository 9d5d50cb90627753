"""The record that the engine carries on from step to step is the one that is stored, byte for byte."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from psycopg import Connection
from tests.integration.decisions.agent_world import ScriptedAgent, intend, open_decision, run, value
from tests.integration.decisions.world import World, anomaly

from control_plane.decisions import engine, steps
from control_plane.decisions.record import Loaded, load
from control_plane.model.deciding import AgentResult
from control_plane.model.decision_events import GATEKEEPER_WORK
from control_plane.platform.database import connect


@pytest.mark.parametrize("verdict", ["permitted", "needs_approval", "refused"])
def test_the_record_after_a_step_is_what_is_read(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    compared = []

    def as_read(grows: Callable[..., Loaded]) -> Callable[..., Loaded]:
        def grown(connection: Connection[Any], hold: Any, *arguments: Any, **named: Any) -> Loaded:
            carried = grows(connection, hold, *arguments, **named)
            read = load(connection, hold.decision_id)
            assert read is not None
            steps_known = len(carried.record.steps)
            assert carried.record.decision == read.record.decision
            assert list(carried.record.steps) == list(read.record.steps[:steps_known])
            assert list(carried.bodies) == list(read.bodies[:steps_known])
            assert carried.record.artifacts.items() >= read.record.artifacts.items()
            assert carried.is_closed == read.is_closed
            assert carried.wake_seq == read.wake_seq
            stored = "SELECT hash FROM decision_steps WHERE decision_id = %s AND seq = %s"
            assert connection.execute(stored, [hold.decision_id, carried.head_seq]).fetchone() == (carried.head_hash,)
            added = {step.kind for step in read.record.steps[steps_known:]}
            assert added <= {"call_intended"}
            assert bool(added) == carried.waits, (
                "it waits for the calls that it has just asked for, and for nothing else"
            )
            compared.append(carried.record.steps[-1].kind)
            return carried

        return grown

    monkeypatch.setattr(engine, "append", as_read(steps.append))
    monkeypatch.setattr(engine, "begin", as_read(steps.begin))
    world = make_world(verdict=verdict)
    world.detect(anomaly())
    world.run()
    assert {"evidence", "calls", "answers", "simulation", "proposal", "state"} <= set(compared)


def test_what_is_known_of_a_record_counts_only_where_it_is_what_is_stored(world: World) -> None:
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly())
    world.run()
    loaded = load(world.decide, world.record().decision.decision_id)
    assert loaded is not None
    forged = replace(loaded.record.steps[-1], body={"forged": True})
    known = replace(loaded, record=replace(loaded.record, steps=[*loaded.record.steps[:-1], forged]))
    read = load(world.decide, loaded.record.decision.decision_id, known)
    assert read is not None
    assert read.record.steps[-1] == forged, "of what is known by its hash nothing is read again"
    read = load(world.decide, loaded.record.decision.decision_id, replace(known, head_hash=b"another"))
    assert read is not None
    assert list(read.record.steps) == list(loaded.record.steps)


def test_a_decision_is_left_once_its_steps_are_on_disk(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = {engine.QUERIES["leave_decision"].sql: True, engine.QUERIES["leave_decision_alone"].sql: False}
    last, waited = [True], []

    def noting(connection: Connection[Any], hold: Any, *arguments: Any, **named: Any) -> Loaded:
        grown = steps.append(connection, hold, *arguments, **named)
        last.append(grown.is_on_disk)
        return grown

    world = make_world(verdict="permitted")
    execute = world.decide.execute

    def spying(query: Any, *arguments: Any, **named: Any) -> Any:
        if query in leaves:
            waited.append((last[-1], leaves[query]))
        if query == engine.QUERIES["claim_decision_alone"].sql:
            last.append(True)
        return execute(query, *arguments, **named)

    monkeypatch.setattr(engine, "append", noting)
    monkeypatch.setattr(world.decide, "execute", spying)
    world.detect(anomaly())
    world.run()
    assert all(waits is not was_on_disk for was_on_disk, waits in waited)
    assert {was_on_disk for was_on_disk, _ in waited} == {True, False}, "there are both"
    assert world.decide.execute("SHOW synchronous_commit").fetchone() == ("on",)


def woken(connection: Connection[Any], decision_id: Any) -> int:
    """How many messages wake a decision."""
    return int(
        value(
            connection,
            "SELECT count(*) FROM outbox WHERE topic = 'decisions.work'"
            " AND payload_json -> 'payload' ->> 'decision_id' = %s",
            [str(decision_id)],
        )
    )


@pytest.fixture
def agent_role(database: Any) -> Any:
    with connect(database.url("acp_agent"), application_name="test") as connection:
        yield connection


def test_the_last_answer_of_a_step_wakes_its_decision(app: Connection[Any], agent_role: Connection[Any]) -> None:
    agent, of = ScriptedAgent(), open_decision(app)
    first, second = intend(app, agent, of=of), intend(app, agent, of=of)
    run(agent_role, agent, first)
    assert woken(app, of[0]) == 0, "the other call is open, so that nothing follows"
    run(agent_role, agent, second)
    assert woken(app, of[0]) == 1
    facts = value(app, "SELECT count(*) FROM outbox WHERE topic = 'decisions.events' AND event_type = 'AGENT_ANSWERED'")
    assert facts == 2, "each answer is a fact, whomever it wakes"


def test_a_failure_wakes_its_decision_though_other_calls_are_open(
    app: Connection[Any], agent_role: Connection[Any]
) -> None:
    fails, of = ScriptedAgent(), open_decision(app)
    fails.does = lambda _: AgentResult("failed", error="it is away")
    first, _ = intend(app, fails, of=of), intend(app, fails, of=of)
    run(agent_role, fails, first)
    assert woken(app, of[0]) == 1, "it may be asked again meanwhile"
