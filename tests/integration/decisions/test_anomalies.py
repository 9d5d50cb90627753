"""Whose an anomaly is, and what becomes of one that is taken back: the engine with everything around it."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly
from tests.waiting import wait_until

from control_plane.model.decision_events import CLIENT_ACTIONS, GATEKEEPER_WORK
from control_plane.model.errors import PlaybookFault
from domains import load_deciding

pytestmark = pytest.mark.usefixtures("replays_are_identical")

type MakeWorld = Callable[..., World]


@pytest.mark.parametrize("named", [{}, {"domain": "toy"}], ids=["unnamed", "named"])
def test_each_domain_gets_its_own_anomalies(make_world: MakeWorld, named: dict[str, Any]) -> None:
    world = make_world(deciding={**load_deciding(), **toy.deciding()})
    world.detect(anomaly(**named))
    world.run()
    assert (world.record().decision.domain, world.record().decision.state) == ("toy", "scored")


def test_two_playbooks_that_want_one_anomaly_are_a_fault(world: World) -> None:
    deciding = {**toy.deciding(), "other": toy.deciding(toy.Nudging(name="pushing"))["toy"]}
    world.deciding = deciding
    world.engine = world.another_engine()
    world.detect(anomaly())
    with pytest.raises(PlaybookFault, match=r"handled by other.pushing and toy.nudging: let its detector name"):
        world.run(times=1)
    assert world.records() == []
    world.detect(anomaly(told=1, domain="toy"))
    world.run()
    assert (world.record().decision.playbook, world.record().decision.state) == ("nudging", "scored")


def test_versions_of_one_playbook_are_no_fault(make_world: MakeWorld) -> None:
    world = make_world(deciding=toy.deciding(toy.Nudging(version="2"), toy.Nudging()))
    world.detect(anomaly())
    world.run()
    assert world.record().decision.playbook_version == "2"


def test_a_withdrawal_that_comes_first_keeps_it_closed(world: World) -> None:
    at = datetime.now(UTC)
    world.detect(anomaly(at=at, told=1, is_withdrawn=True))
    world.run()
    world.detect(anomaly(at=at))
    world.run()
    assert world.records() == []
    world.detect(anomaly(at=at, told=2, score=6.0))  # it is one after all
    world.run()
    assert world.record().decision.state == "scored"


def test_a_withdrawal_waits_for_the_decision_that_opens(world: World) -> None:
    at, threads = datetime.now(UTC), list[threading.Thread]()

    class Opening(toy.Nudging):
        def sources(self) -> Any:
            if not threads:
                # While nobody else can see the decision yet, its anomaly is withdrawn.
                told = anomaly(at=at, told=1, is_withdrawn=True)
                world.detect(told)
                threads.append(threading.Thread(target=world.join_directly, args=[told]))
                threads[0].start()
                wait_until(lambda: world.rows("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") != [])
            return super().sources()

    world.deciding = toy.deciding(Opening())
    world.engine = world.another_engine()
    world.deaf = {GATEKEEPER_WORK}
    world.detect(anomaly(at=at))
    world.run()
    threads[0].join(timeout=60)
    assert world.record().last("joined") is not None
    assert world.rows("SELECT superseded_by IS NOT NULL FROM decisions") == [(True,)]


def test_a_superseded_action_is_not_executed(world: World) -> None:
    at = datetime.now(UTC)
    world.deaf = {CLIENT_ACTIONS}
    world.detect(anomaly(at=at))
    world.run()
    assert world.record().decision.state == "released"
    world.detect(anomaly(at=at, told=1, is_withdrawn=True))
    world.run()
    assert world.may_execute() == "superseded"
