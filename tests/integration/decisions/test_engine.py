"""The engine from an anomaly to the end, with everything around it, messages doubled and shuffled."""

import random
from collections.abc import Callable

import pytest
from tests.integration.decisions.world import World, anomaly, kinds, last_body


@pytest.mark.parametrize("seed", range(3))
def test_a_permitted_decision_is_executed_and_scored(make_world: Callable[..., World], seed: int) -> None:
    world = make_world(luck=random.Random(seed))
    world.detect(anomaly())
    world.run()
    record = world.record()
    assert record.decision.state == "scored"
    assert world.rows("SELECT outcome FROM executions") == [("executed",)]
    assert world.rows("SELECT agent, brier FROM agent_scores") == [("namer", 0.09)]
    assert len(world.calls) == 3
    assert kinds(record)[:3] == ["opened", "anomaly", "evidence"]
    assert last_body(record, "closed") == {"state": "scored", "reason": "the horizon is over"}
