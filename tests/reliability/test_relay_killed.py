"""A relay is killed: its lease returns what it held, and only what the queue already had comes twice."""

import random
import time

import pytest
from tests.reliability.conftest import Finish
from tests.reliability.pipeline import EVENTS, Pipeline


def test_killed_after_its_claim_before_any_send_nothing_comes_twice(pipeline: Pipeline, finish: Finish) -> None:
    relay = pipeline.relay()
    pipeline.hold_sends(accepted=False)
    claimed = pipeline.kill(relay)
    assert claimed
    assert pipeline.accepted().total() == 0
    pipeline.endpoint.reset()
    pipeline.relay()
    result = finish("killed after the claim")
    assert result.duplicated == result.attempts_spent == result.dead_lettered == 0
    assert pipeline.tried_again() == claimed


def test_killed_while_publishing_only_what_the_queue_had_comes_twice(pipeline: Pipeline, finish: Finish) -> None:
    relay = pipeline.relay()
    pipeline.work_until(delivered=1_000)
    pipeline.hold_sends(accepted=True)
    claimed = pipeline.kill(relay)
    assert pipeline.in_flight
    pipeline.recover()
    pipeline.relay()
    result = finish("killed while publishing")
    _only_those_in_flight_came_twice(pipeline)
    assert pipeline.tried_again() == claimed
    assert result.attempts_spent == result.dead_lettered == 0


@pytest.mark.parametrize("arrives", [False, True], ids=["and with it its settlement", "and its settlement arrives"])
def test_killed_after_publishing_before_its_settlement_is_done(
    pipeline: Pipeline, finish: Finish, arrives: bool
) -> None:
    relay = pipeline.relay()
    pipeline.work_until(delivered=1_000)
    pipeline.hold_sends(accepted=True)
    with pipeline.settlement_held():
        relay.kill()
        claimed, settled = pipeline.claimed(), pipeline.delivered()
        if not arrives:
            assert pipeline.cut_connections()
    pipeline.kill(relay)
    assert (pipeline.delivered() > settled) == arrives
    assert arrives or pipeline.in_flight
    pipeline.relay()
    result = finish("killed while its settlement waits, which is " + ("then done" if arrives else "lost"))
    _only_those_in_flight_came_twice(pipeline)
    assert result.dead_lettered == 0
    assert pipeline.tried_again() <= claimed


def test_killed_after_settling_what_is_settled_does_not_come_again(pipeline: Pipeline, finish: Finish) -> None:
    relay = pipeline.relay()
    pipeline.work_until(delivered=2_000)
    pipeline.hold_sends(accepted=False)
    pipeline.kill(relay)
    pipeline.recover()
    pipeline.relay()
    result = finish("killed after a settlement")
    _only_those_in_flight_came_twice(pipeline)
    assert result.dead_lettered == 0


def test_killed_at_random_four_times(pipeline: Pipeline, finish: Finish) -> None:
    pipeline.endpoint.set(latency_ms=20)
    luck = random.Random(1)
    for _ in range(4):
        relay = pipeline.relay()
        pipeline.wait_for_sends()
        time.sleep(luck.uniform(0, 0.6))
        pipeline.kill(relay)
        assert pipeline.delivered() < EVENTS, "killed too late to matter"
        pipeline.pass_time()
    pipeline.recover()
    pipeline.relay()
    result = finish("killed at random, four times")
    _only_those_in_flight_came_twice(pipeline)
    assert result.dead_lettered == 0


def _only_those_in_flight_came_twice(pipeline: Pipeline) -> None:
    assert pipeline.duplicates() <= pipeline.in_flight
