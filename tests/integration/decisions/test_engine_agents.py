"""The engine and the agents that it asks: attempts without an answer, calls that are lost, budgets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly, last_body

from control_plane.decisions.steps import EnginePolicy
from control_plane.model.contract import Event
from control_plane.model.deciding import AgentResult
from control_plane.model.decision_events import AGENT_WORK

pytestmark = pytest.mark.usefixtures("replays_are_identical")

type MakeWorld = Callable[..., World]


def failing(*outcomes: str) -> Callable[[int], AgentResult | None]:
    """What an agent's attempts give, before it answers."""
    return lambda attempt: AgentResult(outcomes[attempt - 1], error="told to") if attempt <= len(outcomes) else None


@pytest.mark.parametrize("outcome", ["failed", "invalid", "unknown"])
def test_an_attempt_without_an_answer_is_made_again(make_world: MakeWorld, outcome: str) -> None:
    world = make_world(deciding=toy.deciding(weigher={"gives": failing(outcome)}))
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"
    rows = world.rows("SELECT attempt, outcome FROM agent_calls WHERE agent = 'weigher' ORDER BY attempt")
    assert rows == [(1, outcome), (2, "answered")]


def test_an_agent_that_fails_for_good_is_the_playbooks_to_judge(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(checker={"gives": failing("failed", "invalid")}))
    world.detect(anomaly())
    world.run()
    failed = {"agent": "checker", "attempts": 2, "outcome": "invalid", "reason": "told to"}
    assert last_body(world.record(), "agent_failed") == failed
    assert world.record().all("answers")[0].body["answers"]["checker"]["answer"] is None
    assert world.record().decision.state == "scored"


def test_a_playbook_closes_without_any_answer(make_world: MakeWorld) -> None:
    nothing = {"gives": failing("failed", "failed")}
    world = make_world(deciding=toy.deciding(checker=nothing, namer=nothing))
    world.detect(anomaly())
    world.run()
    assert last_body(world.record(), "closed") == {"state": "abandoned", "reason": "nobody can name it"}


def test_a_call_that_is_lost_is_made_again(make_world: MakeWorld) -> None:
    world = make_world()
    lost: list[Any] = []

    def lose(topic: str, event: Event) -> None:
        if topic == AGENT_WORK and not lost:
            lost.append(world.claim(event.payload["call_id"], lease_seconds=0.2))

    world.detect(anomaly())
    world.run(before=lose)
    world.run_until("scored")
    rows = world.rows("SELECT attempt, outcome FROM agent_calls WHERE agent = %s ORDER BY attempt", lost[0][2])
    assert rows == [(1, "unknown"), (2, "answered")]


def test_a_call_that_nobody_takes_is_given_up_in_the_end(make_world: MakeWorld) -> None:
    limits = replace(toy.LIMITS, call_seconds=0.2)
    policy = EnginePolicy(call_wait_seconds=0.1)
    world = make_world(deciding=toy.deciding(toy.Nudging(limits=limits)), policy=policy, deaf={AGENT_WORK})
    world.detect(anomaly())
    world.run()
    world.run_until("abandoned")
    outcomes = world.rows("SELECT outcome FROM agent_calls")
    assert outcomes == [("never_started",)] * 4


def test_an_answer_that_comes_too_late_changes_nothing(world: World) -> None:
    claimed: list[Any] = []

    def hold(topic: str, event: Event) -> None:
        if topic == AGENT_WORK and not claimed:
            call_id = UUID(event.payload["call_id"])
            fence, *_ = world.claim(call_id, lease_seconds=0.1)
            claimed.extend((call_id, fence, event.payload["agent"]))

    world.detect(anomaly())
    world.run(before=hold)
    world.run_until("scored")
    call_id, fence, agent = claimed
    assert not world.report(call_id, fence, agent, AgentResult("answered", b"{}"), world.record())
    assert world.rows("SELECT outcome FROM agent_calls WHERE call_id = %s", call_id) == [("unknown",)]


def test_a_call_that_a_budget_has_no_room_for_is_not_made(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(checker={"costs": 2_000}))  # more than the decision's
    world.detect(anomaly())
    world.run()
    assert last_body(world.record(), "budget_exhausted") == {"agent": "checker", "attempt": 1, "most_micros": 2_000}
    assert world.record().all("answers")[0].body["answers"]["checker"]["outcome"] == "budget_exhausted"
    assert world.rows("SELECT count(*) FROM agent_calls WHERE agent = 'checker'") == [(0,)]
    assert world.record().decision.state == "scored"


def test_the_day_has_a_budget_of_its_own(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(checker={"costs": 600}), policy=EnginePolicy(daily_budget_micros=1_000))
    world.detect(anomaly(entity="A"), anomaly(entity="B"))
    world.run()
    assert sorted(record.last("budget_exhausted") is None for record in world.records()) == [False, True]
    assert world.rows("SELECT reserved_micros, spent_micros FROM budgets") == [(0, 600)]


def test_an_attempt_that_is_unknown_is_spent_in_full(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(checker={"costs": 400, "gives": failing("unknown")}))
    world.detect(anomaly())
    world.run()
    assert world.rows("SELECT spent_micros FROM budgets") == [(800,)]
