"""An agent whose provider asks for a pause is tried again after it, and not before; and only if that is in time."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly

from control_plane.decisions.record import load
from control_plane.decisions.replay import replay
from control_plane.model.deciding import AgentResult

type MakeWorld = Callable[..., World]


pytestmark = pytest.mark.usefixtures("replays_are_identical")
"""Whatever these tests lead to is decided the same way from its record."""


def overloaded(seconds: int | None) -> dict[str, Any]:
    """The weigher fails at its first attempt, and asks for a pause."""
    fails = AgentResult("failed", error="the provider answered HTTP 429", retry_after_seconds=seconds)
    return {"weigher": {"gives": lambda attempt: fails if attempt == 1 else None}}


def attempts(world: World) -> list[int]:
    return [step.body["attempt"] for step in world.record().all("call_intended") if step.body["agent"] == "weigher"]


def test_without_a_pause_it_is_tried_again_at_once(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(**overloaded(None)))
    world.detect(anomaly())
    world.run()
    assert attempts(world) == [1, 2]
    assert world.record().decision.state == "scored"


def test_the_next_attempt_waits_for_the_pause(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(**overloaded(2)))
    world.detect(anomaly())
    world.run()
    world.wake(idle_seconds=0)
    world.run()
    assert attempts(world) == [1]
    world.run_until("scored")
    assert attempts(world) == [1, 2]
    failed, again = (
        next(step for step in world.record().steps if step.kind == kind and step.body.get("attempt") == attempt
             and step.body["agent"] == "weigher")
        for kind, attempt in (("call_answered", 1), ("call_intended", 2))
    )  # fmt: skip
    assert (again.at - failed.at).total_seconds() >= 2
    assert world.rows("SELECT count(*) FROM timers WHERE kind = 'call'") == [(1,)]


def test_a_pause_that_would_outlast_the_decision_is_not_waited_for(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(**overloaded(600)))
    world.detect(anomaly())
    world.run()
    assert attempts(world) == [1]
    failed = world.record().last("agent_failed")
    assert failed is not None
    assert failed.body["outcome"] == "failed"
    assert failed.body["reason"] == "its pause would outlast the decision"
    assert world.record().decision.state == "scored"


def test_an_agent_that_is_switched_off_in_its_pause_is_given_up(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(**overloaded(60)))
    world.detect(anomaly())
    world.run()
    world.switch("agent:weigher", off=True)
    world.wake(idle_seconds=0)
    world.run()
    failed = world.record().last("agent_failed")
    assert failed is not None
    assert failed.body["outcome"] == "switched_off"


def test_a_replay_notices_an_attempt_before_its_time(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(**overloaded(None)))
    world.detect(anomaly())
    world.run()
    loaded = load(world.decide, world.record().decision.decision_id)
    assert loaded is not None
    for step in loaded.record.all("call_answered"):
        if step.body["outcome"] == "failed":
            step.body["retry_after_seconds"] = 60  # type: ignore[index]
    difference = replay(loaded, world.deciding["toy"]).difference
    assert difference is not None
    assert difference.decided == "wait"
