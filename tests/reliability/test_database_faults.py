"""Postgres crashes or drops its connections in each phase of a relay's work; the relay lives on."""

import random
import time
from collections.abc import Callable

import pytest
from tests.reliability.conftest import Finish
from tests.reliability.pipeline import EVENTS, Pipeline

type Fault = Callable[[Pipeline], object]

FAULTS: dict[str, Fault] = {
    "Postgres restarted": Pipeline.restart_postgres,
    "connections cut": Pipeline.cut_connections,
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> tuple[str, Fault]:
    return request.param, FAULTS[request.param]


def test_database_lost_between_claim_and_send_loses_no_message(
    pipeline: Pipeline, finish: Finish, fault: tuple[str, Fault]
) -> None:
    name, strike = fault
    pipeline.relay()
    pipeline.work_until(delivered=500)
    pipeline.hold_sends(accepted=False)
    with pipeline.fault_of_the_database():
        strike(pipeline)
    pipeline.recover()
    finish(f"{name} after the claim")
    _only_those_in_flight_were_touched(pipeline)


def test_while_publishing_only_those_in_flight_may_come_twice(
    pipeline: Pipeline, finish: Finish, fault: tuple[str, Fault]
) -> None:
    name, strike = fault
    pipeline.relay()
    pipeline.work_until(delivered=500)
    pipeline.hold_sends(accepted=True)
    with pipeline.fault_of_the_database():
        strike(pipeline)
    pipeline.recover()
    finish(f"{name} while publishing")
    _only_those_in_flight_were_touched(pipeline)


def test_during_the_settlement_only_those_in_flight_may_come_twice(
    pipeline: Pipeline, finish: Finish, fault: tuple[str, Fault]
) -> None:
    name, strike = fault
    pipeline.relay()
    pipeline.work_until(delivered=500)
    pipeline.hold_sends(accepted=True)
    with pipeline.settlement_held(), pipeline.fault_of_the_database():
        strike(pipeline)
    finish(f"{name} during the settlement")
    _only_those_in_flight_were_touched(pipeline)


def test_after_everything_is_settled_nothing_comes_again(
    pipeline: Pipeline, finish: Finish, fault: tuple[str, Fault]
) -> None:
    name, strike = fault
    pipeline.relay(linger_seconds=20)
    pipeline.wait(lambda: pipeline.delivered() == EVENTS, "all delivered", seconds=60)
    strike(pipeline)
    pipeline.store_more(100)
    result = finish(f"{name} after the settlement")
    assert result.deliveries == EVENTS + 100
    assert result.duplicated == result.attempts_spent == result.dead_lettered == 0


def test_repeated_connection_cuts_double_only_messages_in_flight(pipeline: Pipeline, finish: Finish) -> None:
    pipeline.endpoint.set(latency_ms=10)
    pipeline.relay(max_attempts=20)
    pipeline.wait_for_sends()
    luck = random.Random(7)
    cut = 0
    while cut < 10 and pipeline.pending():
        claimed = pipeline.claimed()
        if now := pipeline.cut_connections():
            cut += now
            # A claim may have been committed between the look and the cut.
            pipeline.in_flight.update(claimed | pipeline.claimed())
        time.sleep(luck.uniform(0.02, 0.2))
    assert cut >= 5
    pipeline.recover()
    finish(f"connections cut at random, {cut} times")
    _only_those_in_flight_were_touched(pipeline)


def _only_those_in_flight_were_touched(pipeline: Pipeline) -> None:
    assert pipeline.duplicates() <= pipeline.in_flight
    assert pipeline.tried_again() <= pipeline.in_flight.keys()
    assert pipeline.dead_letters() == set()
