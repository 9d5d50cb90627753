"""Several subscriptions: one that is down, unknown to a relay, or removed costs the others nothing."""

from typing import Any

import pytest
from tests.reliability.conftest import Finish
from tests.reliability.pipeline import CONCURRENCY, FAILURES, SIGNAL_LAB, SYSTEM_EVENTS, TICKS, Pipeline

from control_plane.ops.subscriptions import REMOVED

DETECTOR = "detector"
TOPICS = {SIGNAL_LAB: "market.ticks", SYSTEM_EVENTS: "system.events"}
ALL = (SIGNAL_LAB, DETECTOR, SYSTEM_EVENTS)


@pytest.fixture
def detector(pipeline: Pipeline) -> str:
    """A second subscription of market.ticks, which is to get all that is stored."""
    report = pipeline.subscribe(**TOPICS, detector="market.ticks")
    assert report.backfilled == TICKS
    return DETECTOR


@pytest.mark.parametrize(
    ("outage", "fault"),
    [("answers 500", {"answer": "error"}), ("hangs", {"latency_ms": 60_000, "accepts": "after"})],
    ids=["answers 500", "hangs"],
)
def test_queue_that_is_down_delays_no_other_subscription(
    pipeline: Pipeline, finish: Finish, detector: str, outage: str, fault: dict[str, Any]
) -> None:
    pipeline.endpoint.set(detector, **fault)
    pipeline.relay(subscriptions=ALL, read_timeout=0.5)
    pipeline.wait(lambda: pipeline.delivered(SIGNAL_LAB) == TICKS, "the other subscription has everything")
    pipeline.wait(lambda: pipeline.delivered(SYSTEM_EVENTS) == FAILURES, "the third one, too")
    not_closed = "SELECT name FROM circuit_breakers WHERE state <> 'closed'"
    pipeline.wait(lambda: pipeline.query(not_closed) == [(detector,)], "its breaker opens, and no other")
    assert pipeline.delivered(detector) == 0
    pipeline.endpoint.heal()
    result = finish(f"one of two subscriptions' queues {outage}")
    assert result.deliveries == 2 * TICKS + FAILURES
    assert result.duplicated == result.attempts_spent == result.dead_lettered == 0


def test_unknown_subscription_waits_for_a_relay_that_knows_it(pipeline: Pipeline, finish: Finish) -> None:
    old = pipeline.relay(subscriptions=[SYSTEM_EVENTS])
    pipeline.wait(lambda: pipeline.delivered(SYSTEM_EVENTS) == FAILURES, "what it knows is delivered")
    pipeline.wait(lambda: old.has_counted("UnknownSubscriptions"), "it says that it does not know the other")
    assert pipeline.pending() == TICKS
    pipeline.relay()  # The newer relay starts while the older one still runs.
    result = finish("a subscription that the relay does not know")
    assert result.duplicated == result.attempts_spent == result.dead_lettered == 0
    assert pipeline.tried_again() == set()


def test_a_subscription_removed_in_flight_costs_the_others_nothing(
    pipeline: Pipeline, finish: Finish, detector: str
) -> None:
    pipeline.relay(subscriptions=ALL)
    pipeline.work_until(delivered=1_000)
    pipeline.hold_sends(accepted=True, senders=2 * CONCURRENCY)
    delivered = pipeline.delivered(detector)
    report = pipeline.subscribe(**TOPICS)
    pipeline.recover()
    result = finish("a subscription removed while its messages are in flight")
    assert report.removed == (detector,)
    assert report.dead_lettered == result.dead_lettered == TICKS - delivered
    assert {subscription for subscription, _ in pipeline.dead_letters()} == {detector}
    assert pipeline.query("SELECT DISTINCT reason FROM dead_letters") == [(REMOVED,)]
    assert result.duplicated == result.attempts_spent == 0
    assert pipeline.tried_again() == set()


def test_redrive_during_a_relay_kill_delivers_everything(pipeline: Pipeline, finish: Finish) -> None:
    poison = pipeline.some_ticks(1_000)
    pipeline.endpoint.set(latency_ms=50)
    poisoned: dict[str, Any] = {
        "fail_events": poison,
        "fail_code": "InvalidMessageContents",
        "sender_fault": True,
        "latency_ms": 50,
    }
    pipeline.endpoint.set(SIGNAL_LAB, **poisoned)
    doomed, _ = pipeline.team(2, claim_size=50)
    pipeline.wait(lambda: len(pipeline.dead_letters()) > 50, "some poison is dead-lettered")
    pipeline.endpoint.set(SIGNAL_LAB, latency_ms=50)  # The poisonous message is harmless now.
    redriven = pipeline.redrive()
    pipeline.wait(lambda: bool(pipeline.claimed(doomed)), "the one that is killed has something in hand")
    claimed = pipeline.kill(doomed)
    pipeline.recover()
    pipeline.wait(lambda: pipeline.pending() == 0, "nothing pending", seconds=60)
    pipeline.redrive()  # This was still on its way to be dead-lettered.
    result = finish("messages redriven while two relays work, one killed")
    assert redriven > 50
    assert pipeline.query("SELECT DISTINCT resolution FROM dead_letters") == [("redriven",)]
    assert result.attempts_spent == result.dead_lettered == 0
    assert pipeline.duplicates() <= pipeline.in_flight
    assert pipeline.tried_again() <= claimed | {(SIGNAL_LAB, event_id) for event_id in poison}
