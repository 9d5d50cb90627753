"""A queue whose answers make no sense is an outage for all, or the fault of the one message that causes them."""

import random
import time
from collections.abc import Callable

import pytest
from tests.reliability.conftest import Finish
from tests.reliability.pipeline import (
    CONCURRENCY,
    FAILURES,
    SIGNAL_LAB,
    SYSTEM_EVENTS,
    Delivery,
    Pipeline,
    RelayProcess,
)

from queue_endpoint.nonsense import NONSENSE

THOUSAND = 1_001


@pytest.mark.parametrize("accepts", ["never", "before"], ids=["and accepts nothing", "and accepts all"])
def test_every_kind_of_nonsense_is_an_outage(pipeline: Pipeline, finish: Finish, accepts: str) -> None:
    pipeline.endpoint.set(SIGNAL_LAB, answer="nonsense", accepts=accepts)
    pipeline.relay(cool_down_seconds=0.25)
    pipeline.wait(lambda: pipeline.endpoint.counts().get(SYSTEM_EVENTS, 0) == FAILURES, "the other queue is served")
    pipeline.wait(lambda: {one.answer for one in pipeline.requests(SIGNAL_LAB)} == set(NONSENSE), "every kind was said")
    pipeline.endpoint.heal()
    result = finish(f"queue answers nonsense, {'never accepting' if accepts == 'never' else 'always accepting'}")
    lost = sum(one.entries for one in pipeline.requests(SIGNAL_LAB) if one.faulty) if accepts == "before" else 0
    assert result.duplicated <= lost
    assert result.attempts_spent == result.dead_lettered == 0


@pytest.mark.parametrize("pipeline", [THOUSAND], indirect=True)
def test_one_message_that_draws_nonsense_is_given_up_alone(pipeline: Pipeline, finish: Finish) -> None:
    culprit = _draws_nonsense(pipeline)
    pipeline.relay()
    pipeline.work_off()
    result = finish("one of 1,001 messages draws nonsense")
    assert pipeline.dead_letters() == {culprit}
    assert result.duplicated == result.attempts_spent == 0


def _at_random(pipeline: Pipeline, relay: RelayProcess, luck: random.Random) -> None:
    pipeline.wait(lambda: bool(pipeline.claimed(relay)) or pipeline.pending() == 0, "a claim")
    time.sleep(luck.uniform(0, 0.4))


def _at_its_first_suspects(pipeline: Pipeline, relay: RelayProcess, _luck: random.Random) -> None:
    """Waits for the worst moment for a kill: the test passes the time, so the same messages are always first."""
    claimed = "SELECT FROM pending_deliveries WHERE claimed_by = %s AND suspect_since IS NOT NULL"
    pipeline.wait(lambda: bool(pipeline.query(claimed, relay.name)) or pipeline.pending() == 0, "suspects are claimed")


@pytest.mark.parametrize("pipeline", [THOUSAND], indirect=True)
@pytest.mark.parametrize("moment", [_at_random, _at_its_first_suspects])
def test_one_message_that_draws_nonsense_while_ten_relays_are_killed(
    pipeline: Pipeline, finish: Finish, moment: Callable[[Pipeline, RelayProcess, random.Random], None]
) -> None:
    culprit = _draws_nonsense(pipeline, latency_ms=50)
    luck = random.Random(3)
    for _ in range(10):
        relay = pipeline.relay()
        moment(pipeline, relay, luck)
        pipeline.kill(relay)
        pipeline.pass_time()
    _draws_nonsense(pipeline)
    pipeline.relay()
    pipeline.work_off()
    result = finish(
        f"one of 1,001 messages draws nonsense, ten relays killed {moment.__name__.strip('_').replace('_', ' ')}"
    )
    assert pipeline.dead_letters() == {culprit}
    assert pipeline.duplicates() <= pipeline.in_flight
    assert result.attempts_spent <= 2 * CONCURRENCY  # for each message that every kill hit


def _draws_nonsense(pipeline: Pipeline, *, latency_ms: float = 0) -> Delivery:
    """Makes one message draw nonsense from now on; returns its delivery."""
    event_id = pipeline.some_ticks(THOUSAND // 2)[-1]
    pipeline.endpoint.set(answer="nonsense", accepts="never", answer_events=[event_id], latency_ms=latency_ms)
    return SIGNAL_LAB, event_id
