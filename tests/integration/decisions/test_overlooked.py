"""Messages that were lost: what they asked for is found in the database, and asked for again."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.integration.decisions.world import World, anomaly

from control_plane.decisions.overlooked import tell_again
from control_plane.model.decision_events import AGENT_WORK, DECISION_WORK

type MakeWorld = Callable[..., World]


def find(world: World, idle_seconds: float = 0) -> int:
    return tell_again(world.decide, idle_seconds=idle_seconds)


def lose_messages(world: World, topic: str) -> None:
    """Loses all messages of a topic that there are now."""
    world.deaf = {topic}
    world.run()
    world.deaf = set()


def test_an_anomaly_whose_message_was_lost_is_decided_on(world: World) -> None:
    world.detect(anomaly())
    lose_messages(world, DECISION_WORK)
    assert world.records() == []
    assert find(world, idle_seconds=30) == 0, "its message may still come"
    assert find(world) == 1
    world.run()
    assert world.record().decision.state == "scored"
    assert find(world) == 0


def test_a_later_telling_whose_message_was_lost_joins_its_decision(world: World) -> None:
    first = anomaly()
    world.detect(first)
    world.run()
    again = anomaly(at=world.record().decision.occurred_at, revision=1)
    world.detect(again)
    lose_messages(world, DECISION_WORK)
    assert find(world) == 1
    world.run()
    joined = world.record().last("joined")
    assert joined is not None
    assert joined.body["event_id"] == again.message["event_id"]
    assert find(world) == 0


def test_an_anomaly_is_told_again_after_pauses_that_double(world: World) -> None:
    world.detect(anomaly())
    lose_messages(world, DECISION_WORK)
    world.owner.execute("ALTER TABLE events DISABLE TRIGGER events_are_immutable")

    def pass_seconds(seconds: float) -> None:
        world.owner.execute("UPDATE events SET ingested_at = ingested_at - make_interval(secs => %s)", [seconds])

    told = []
    for _ in range(20):
        pass_seconds(30)
        told.append(find(world, idle_seconds=30))
    assert [place for place, count in enumerate(told) if count] == [0, 2, 6, 14]
    pass_seconds(3600)
    assert find(world, idle_seconds=30) == 0


@pytest.mark.parametrize("given", [{"kind": "calm"}, {"is_withdrawn": True}], ids=["nobody's", "withdrawn"])
def test_an_anomaly_that_nothing_follows_from_is_not_told_again(world: World, given: dict[str, Any]) -> None:
    world.detect(anomaly(**given))
    world.run()
    assert world.records() == []
    assert find(world) == 0


def test_a_call_whose_message_was_lost_is_asked_for_again(world: World) -> None:
    world.detect(anomaly())
    lose_messages(world, AGENT_WORK)
    assert find(world, idle_seconds=30) == 0, "its message may still come"
    assert find(world) == 2
    world.run()
    assert world.record().decision.state == "scored"
    assert {step.body["attempt"] for step in world.record().all("call_intended")} == {1}
    assert find(world) == 0


def test_calls_that_were_taken_or_are_too_late_are_not_asked_for_again(world: World) -> None:
    world.detect(anomaly())
    lose_messages(world, AGENT_WORK)
    ((first,), (second,)) = world.rows("SELECT call_id FROM agent_calls")
    assert world.claim(first) is not None
    world.owner.execute("UPDATE agent_calls SET deadline = clock_timestamp() WHERE call_id = %s", [second])
    assert find(world) == 0
