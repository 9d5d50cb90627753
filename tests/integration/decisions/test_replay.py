"""Deciding again from the stored record gives the same bytes, and a record that was changed does not."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly, last_body

from control_plane.decisions.record import Loaded, load
from control_plane.decisions.replay import Replayed, replay
from control_plane.model.deciding import AgentResult
from control_plane.model.decision_events import AGENT_WORK
from control_plane.model.ids import canonical_json


def stored(world: World) -> Loaded:
    loaded = load(world.decide, world.record().decision.decision_id)
    assert loaded is not None
    return loaded


def replayed(world: World) -> Replayed:
    return replay(stored(world), world.deciding["toy"])


def changed(loaded: Loaded, kind: str, change: Callable[[dict[str, Any]], None]) -> Loaded:
    """The record with the body of the newest step of a kind changed."""
    place = max(place for place, step in enumerate(loaded.record.steps) if step.kind == kind)
    body = json.loads(loaded.bodies[place])
    change(body)
    steps, bodies = list(loaded.record.steps), list(loaded.bodies)
    steps[place], bodies[place] = replace(steps[place], body=body), canonical_json(body)
    return replace(loaded, record=replace(loaded.record, steps=tuple(steps)), bodies=tuple(bodies))


@pytest.fixture
def done(world: World) -> World:
    world.verdict = "needs_approval"
    world.detect(anomaly())
    world.run()
    world.approve(world.record().decision.decision_id)
    world.run()
    assert world.record().decision.state == "scored"
    return world


def test_a_replay_is_byte_identical(done: World) -> None:
    result = replayed(done)
    assert result.difference is None
    assert result.steps > 15
    assert result.compared_bytes > 1_000


@pytest.mark.parametrize(
    "kind", ["calls", "answers", "simulation", "proposal", "state", "observing", "outcome", "closed"]
)
def test_a_changed_step_of_the_engine_shows(done: World, kind: str) -> None:
    def change(body: dict[str, Any]) -> None:
        # What was observed is read from the record; the scores are computed from it.
        body["scores" if kind == "outcome" else "added"] = []

    result = replay(changed(stored(done), kind, change), done.deciding["toy"])
    assert result.difference is not None
    assert result.difference.seq == stored(done).record.all(kind)[-1].seq
    assert not result.is_identical


def test_a_changed_answer_shows_in_what_follows_from_it(done: World) -> None:
    loaded = stored(done)
    answered = loaded.record.all("call_answered")[0]
    artifacts = dict(loaded.record.artifacts)
    assert answered.output_sha256 is not None
    artifacts[answered.output_sha256] = canonical_json({"hypothesis": "another", "chance_ppm": 1})
    result = replay(replace(loaded, record=replace(loaded.record, artifacts=artifacts)), done.deciding["toy"])
    assert result.difference is not None
    assert (result.difference.what, "another" in result.difference.decided) == ("body", True)


def test_another_playbook_decides_differently(done: World) -> None:
    class Bolder(toy.Nudging):
        def simulate(self, record: Any, spec: Any) -> Any:
            return {**super().simulate(record, spec), "bold": True}

    result = replay(stored(done), toy.deciding(Bolder())["toy"])
    assert result.difference is not None
    assert '"bold":true' in result.difference.decided


def test_a_playbook_that_is_gone_is_named(done: World) -> None:
    result = replay(stored(done), toy.deciding(toy.Nudging(version="2"))["toy"])
    assert result.difference is not None
    assert result.difference.what == "fault"
    assert "nudging 1" in result.difference.decided


def test_an_expiry_before_its_time_shows(world: World) -> None:
    world.verdict = "needs_approval"
    world.detect(anomaly())
    world.run()
    loaded = stored(world)
    asked = loaded.record.all("approval_asked")[0]
    early = replace(
        asked,
        seq=asked.seq + 2,
        parent=asked.seq,
        kind="state",
        author="engine",
        body={"state": "expired"},
        output_sha256=None,
    )
    forged = replace(
        loaded,
        record=replace(loaded.record, steps=(*loaded.record.steps, early)),
        bodies=(*loaded.bodies, canonical_json({"state": "expired"})),
    )
    result = replay(forged, world.deciding["toy"])
    assert result.difference is not None
    assert result.difference.what == "time"


# Other agents than then


OTHER_AGENTS: dict[str, dict[str, Any]] = {
    "another version": {"namer": {"version": "2"}},
    "another price": {"checker": {"costs": 7}},
    "another name": {"weigher": {"name": "scales"}},
}


@pytest.mark.parametrize("changes", OTHER_AGENTS.values(), ids=OTHER_AGENTS.keys())
def test_other_agents_than_then_decide_nothing_in_a_replay(
    make_world: Callable[..., World], changes: dict[str, Any]
) -> None:
    world = make_world(deciding=toy.deciding(checker={"costs": 400}))
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "scored"
    assert replay(stored(world), toy.deciding(**changes)["toy"]).difference is None


class GathersLater(toy.Nudging):
    """Fails the first time that it gathers."""

    is_ready = False

    def gather(self, connection: Any, record: Any) -> Any:
        if not self.is_ready:
            self.is_ready = True
            raise ZeroDivisionError
        return super().gather(connection, record)


def test_an_agent_is_called_in_its_pinned_version_alone(make_world: Callable[..., World]) -> None:
    playbook = GathersLater()
    world = make_world(deciding=toy.deciding(playbook))
    world.detect(anomaly())
    with pytest.raises(ZeroDivisionError):
        world.run(times=1)
    world.deciding = toy.deciding(playbook, namer={"version": "2"})
    world.engine = world.another_engine()
    world.wake(idle_seconds=0)
    world.run()
    assert last_body(world.record(), "agent_failed") == {
        "agent": "namer", "attempts": 0, "outcome": "gone", "reason": "its version 1 is not in this release",
    }  # fmt: skip
    versions = {call["agent_version"] for step in world.record().all("calls") for call in step.body["calls"]}
    assert versions == {"1"}
    assert world.record().decision.state == "scored"
    assert replayed(world).difference is None


def test_another_attempt_is_made_by_the_same_version_alone(make_world: Callable[..., World]) -> None:
    world = make_world(deaf={AGENT_WORK})
    world.detect(anomaly())
    world.run()
    fails = {"version": "2", "gives": lambda attempt: AgentResult("failed", error="told to")}
    world.deciding = toy.deciding(checker=fails)
    world.engine = world.another_engine()
    for (call_id,) in world.rows("SELECT call_id FROM agent_calls"):
        world.answer(call_id)
    world.deaf = set()
    world.run()
    assert world.rows("SELECT agent_version, attempt FROM agent_calls WHERE agent = 'checker'") == [("1", 1)]
    assert last_body(world.record(), "agent_failed")["outcome"] == "gone"
    assert replayed(world).difference is None
