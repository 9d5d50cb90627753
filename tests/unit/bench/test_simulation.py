from __future__ import annotations

import pytest

from bench.simulation import Arrival, Passage, Stage, bursts, simulate


def passage(*arrivals: Arrival, stage: Stage) -> Passage:
    [passed] = simulate(arrivals, [stage])
    return passed


def test_a_message_takes_its_batchs_time() -> None:
    stage = Stage("relay", workers=1, batch=10, seconds_a_batch=1, seconds_a_message=0.1)
    passed = passage(Arrival(5, 1, born=5), stage=stage)
    assert passed.most_waiting == 1
    assert passed.delay_p50 == passed.delay_p99 == pytest.approx(1.1)
    assert passed.busy == pytest.approx(1.1 / 6.1)


def test_a_burst_waits_for_one_worker_batch_by_batch() -> None:
    stage = Stage("relay", workers=1, batch=10, seconds_a_batch=1, seconds_a_message=0)
    assert passage(Arrival(0, 100, born=0), stage=stage) == Passage("relay", 100, 5, 10, 1)


def test_two_workers_halve_the_delay() -> None:
    stage = Stage("relay", workers=2, batch=10, seconds_a_batch=1, seconds_a_message=0)
    assert passage(Arrival(0, 100, born=0), stage=stage).delay_p99 == 5


def test_the_oldest_message_goes_first() -> None:
    stage = Stage("relay", workers=1, batch=1, seconds_a_batch=1, seconds_a_message=0)
    passed = passage(Arrival(0.5, 1, born=0.5), Arrival(0, 1, born=0), stage=stage)
    assert (passed.most_waiting, passed.delay_p50, passed.delay_p99) == (1, 1, 1.5)


def test_a_load_beyond_the_stage_grows_its_backlog() -> None:
    stage = Stage("relay", workers=1, batch=10, seconds_a_batch=1, seconds_a_message=0)
    assert stage.most_a_second == 10
    passed = passage(*bursts(count=20, every_seconds=1, times=50), stage=stage)
    assert passed.most_waiting > 450
    assert passed.busy == pytest.approx(1)


def test_delays_add_up_along_the_stages() -> None:
    one = Stage("relay", workers=1, batch=5, seconds_a_batch=1, seconds_a_message=0)
    other = Stage("consumer", workers=1, batch=5, seconds_a_batch=2, seconds_a_message=0)
    relay, consumer = simulate([Arrival(0, 10, born=0)], [one, other])
    assert (relay.delay_p50, relay.delay_p99) == (1, 2)
    assert (consumer.delay_p50, consumer.delay_p99) == (3, 5)


def test_nothing_in_is_nothing_out() -> None:
    stage = Stage("relay", workers=1, batch=5, seconds_a_batch=1, seconds_a_message=0)
    assert simulate([], [stage, stage]) == [Passage("relay", 0, 0, 0, 0)] * 2
