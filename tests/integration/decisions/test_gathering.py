"""Evidence that is not complete yet is waited for, for a while."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from tests.integration.decisions import toy
from tests.integration.decisions.finance import LAST, STOCKS, closes, decision, past, wobble
from tests.integration.decisions.world import World, anomaly

from control_plane.decisions.steps import EnginePolicy
from control_plane.model.deciding import Command, Gather, Record
from domains.finance.deciding.evidence import OTHERS_WAIT, gather_until, has_all_bars

type MakeWorld = Callable[..., World]

POLICY = EnginePolicy(daily_budget_micros=1_000_000, gather_seconds=0.3, gather_again_seconds=0.1)


@dataclass
class Waiting(toy.Nudging):
    """Waits for what is told to be complete at its n-th look."""

    complete_at: float = float("inf")
    wait: timedelta = timedelta(minutes=5)
    looks: list[int] = field(default_factory=list)

    def next(self, record: Record) -> Command:
        command = super().next(record)
        return Gather(record.decision.opened_at + self.wait) if isinstance(command, Gather) else command

    def is_complete(self, connection: Any, record: Record) -> bool:
        self.looks.append(len(self.looks) + 1)
        return len(self.looks) >= self.complete_at


def decided(make_world: MakeWorld, playbook: Waiting) -> World:
    world = make_world(deciding=toy.deciding(playbook), policy=POLICY)
    world.detect(anomaly())
    world.run()
    return world


@pytest.mark.usefixtures("replays_are_identical")
class TestWaiting:
    def test_complete_evidence_is_gathered_at_once(self, make_world: MakeWorld) -> None:
        world = decided(make_world, playbook := Waiting(complete_at=1))
        assert world.record().decision.state == "scored"
        assert playbook.looks == [1]
        assert world.rows("SELECT count(*) FROM timers WHERE kind = 'gather'") == [(0,)]

    def test_the_engine_itself_waits_for_a_moment(self, make_world: MakeWorld) -> None:
        world = decided(make_world, Waiting(complete_at=2))
        assert world.record().decision.state == "scored"
        assert world.rows("SELECT count(*) FROM timers WHERE kind = 'gather'") == [(0,)]

    def test_what_comes_later_is_found_by_a_timer(self, make_world: MakeWorld) -> None:
        world = decided(make_world, playbook := Waiting())
        assert world.record().decision.state == "opened"
        assert world.rows("SELECT held_by FROM decisions") == [(None,)]
        playbook.complete_at = 0
        world.run_until("scored")
        assert world.record().all("evidence")

    def test_the_wait_has_an_end(self, make_world: MakeWorld) -> None:
        world = decided(make_world, Waiting(wait=timedelta(seconds=1)))
        world.run_until("scored")
        opened, gathered = world.record().steps[0], world.record().all("evidence")[0]
        # The wait began with the transaction that opened it, whose step was written some milliseconds later.
        assert gathered.at - opened.at >= timedelta(seconds=0.9)

    def test_what_is_old_is_not_waited_for(self, make_world: MakeWorld) -> None:
        world = decided(make_world, playbook := Waiting(wait=timedelta(0)))
        assert world.record().decision.state == "scored"
        assert playbook.looks == []


def test_finance_waits_for_every_stock_that_was_traded_just_before(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    for entity in STOCKS:
        past(owner, entity, wobble(LAST, entity=entity))
    past(owner, "GONE", wobble(LAST - 1, entity="GONE"))
    about = decision(minute=LAST)
    for entity in STOCKS:
        assert not has_all_bars(owner, about)
        closes(app, entity, [100.0], first=LAST)
    assert has_all_bars(owner, about)


def test_finance_waits_for_three_minutes_after_the_end_of_the_bar() -> None:
    about = decision(minute=LAST)
    assert gather_until(about) == about.occurred_at + timedelta(minutes=1) + OTHERS_WAIT
