"""A queue is slow, refuses, breaks off or fails some entries: an outage costs no message an attempt."""

import time
from typing import Any

import pytest
from tests.reliability.conftest import Finish
from tests.reliability.pipeline import COOL_DOWN_SECONDS, FAILURES, SIGNAL_LAB, SYSTEM_EVENTS, TICKS, Pipeline

OUTAGE_SECONDS = 4 * COOL_DOWN_SECONDS
READ_TIMEOUT = 0.5
BEYOND_TIMEOUT_MS = 1_000

OUTAGES: dict[str, dict[str, Any]] = {
    "throttling": {"answer": "throttled"},
    "answers 500": {"answer": "error"},
    "answers 403": {"answer": "denied"},
    "closes before accepting": {"answer": "close", "accepts": "never"},
    "closes after accepting": {"answer": "close", "accepts": "before"},
    "breaks off in its answer": {"answer": "half"},
    "times out before accepting": {"latency_ms": BEYOND_TIMEOUT_MS, "accepts": "after"},
    "times out after accepting": {"latency_ms": BEYOND_TIMEOUT_MS, "accepts": "before"},
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_outage_costs_no_attempt_and_delays_no_other_queue(pipeline: Pipeline, finish: Finish, outage: str) -> None:
    pipeline.endpoint.set(SIGNAL_LAB, **OUTAGES[outage])
    pipeline.relay(read_timeout=READ_TIMEOUT)
    pipeline.wait(lambda: bool(pipeline.requests(SIGNAL_LAB)), "a send to the queue that is down")
    ends = time.monotonic() + OUTAGE_SECONDS
    pipeline.wait(lambda: pipeline.endpoint.counts().get(SYSTEM_EVENTS, 0) == FAILURES, "the other queue is served")
    pipeline.wait(lambda: time.monotonic() > ends, "the outage lasts")
    pipeline.endpoint.heal()
    result = finish(f"queue {outage}")
    _came_twice_no_oftener_than_a_send_failed(pipeline)
    assert result.attempts_spent == result.dead_lettered == 0
    assert pipeline.tried_again() == set()


def test_a_slow_queue_costs_nothing_but_time(pipeline: Pipeline, finish: Finish) -> None:
    pipeline.endpoint.set(SIGNAL_LAB, latency_ms=300, times=40)
    pipeline.relay()
    result = finish("queue slow")
    assert result.duplicated == result.attempts_spent == result.dead_lettered == 0


def test_all_relays_together_probe_once_per_cool_down(pipeline: Pipeline, finish: Finish) -> None:
    pipeline.endpoint.set(SIGNAL_LAB, answer="error")
    pipeline.team(3, cool_down_seconds=1)
    pipeline.wait(lambda: pipeline.endpoint.counts().get(SYSTEM_EVENTS, 0) == FAILURES, "the other queue is served")
    starts = time.monotonic() + 1  # What was in flight when the breaker opened has ended.
    pipeline.wait(lambda: time.monotonic() > starts + 5, "five cool-downs")
    probes = [request for request in pipeline.requests(SIGNAL_LAB) if starts <= request.at < starts + 5]
    pipeline.endpoint.heal()
    healed = time.monotonic()
    pipeline.wait(lambda: pipeline.endpoint.counts().get(SIGNAL_LAB, 0) > 0, "recovery is noticed")
    noticed = time.monotonic() - healed
    result = finish("queue down under three relays")
    assert result.duplicated == result.attempts_spent == result.dead_lettered == 0
    assert 3 <= len(probes) <= 6
    assert noticed < 3


def test_entries_that_fail_by_nobodys_fault_are_tried_again_alone(pipeline: Pipeline, finish: Finish) -> None:
    pipeline.endpoint.set(SIGNAL_LAB, fail_share=0.1, fail_code="InternalError", times=100)
    pipeline.relay()
    result = finish("a tenth of the entries fails in 100 sends")
    assert result.duplicated == result.dead_lettered == 0
    assert 0 < result.attempts_spent <= 100
    assert result.attempts_spent == len(pipeline.tried_again())


def test_poison_by_its_senders_fault_is_dead_lettered_at_once(pipeline: Pipeline, finish: Finish) -> None:
    poison = pipeline.some_ticks(20)
    pipeline.endpoint.set(SIGNAL_LAB, fail_events=poison, fail_code="InvalidMessageContents", sender_fault=True)
    pipeline.relay()
    result = finish("20 poisonous messages, by their own fault")
    assert result.duplicated == result.attempts_spent == 0
    assert pipeline.dead_letters() == {(SIGNAL_LAB, event_id) for event_id in poison}
    assert pipeline.accepted().total() == TICKS + FAILURES - 20


def test_poison_message_is_dead_lettered_and_delays_no_neighbour(pipeline: Pipeline, finish: Finish) -> None:
    poison = pipeline.some_ticks(20)
    pipeline.endpoint.set(SIGNAL_LAB, fail_events=poison, fail_code="InternalError")
    pipeline.relay(max_attempts=2)
    result = finish("20 poisonous messages")
    assert result.duplicated == result.attempts_spent == 0
    assert pipeline.dead_letters() == {(SIGNAL_LAB, event_id) for event_id in poison}
    ((neighbours, poisoned),) = pipeline.query(
        "SELECT max(delivered_at), min(dead_lettered_at) FROM outbox_states WHERE subscription = %s", SIGNAL_LAB
    )
    assert neighbours < poisoned


def _came_twice_no_oftener_than_a_send_failed(pipeline: Pipeline) -> None:
    """Each send whose answer was lost may have been accepted, so a message may come twice that often and no oftener."""
    lost = sum(request.entries for request in pipeline.requests(SIGNAL_LAB) if request.faulty)
    assert sum(count - 1 for count in pipeline.accepted().values()) <= lost
