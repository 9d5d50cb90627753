"""Limits hold jointly, however many decisions are judged at once."""

from contextlib import ExitStack
from typing import Any

import pytest
from tests.integration.gatekeeper.world import World, in_threads, without
from tests.judgements import AT, MILLION, SOURCE, Case

from control_plane.decisions.gatekeeper import judge
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.database import connect
from domains.finance.gate import FinanceGate


def releases(world: World) -> int:
    """How many actions are released; each has its message."""
    row = world.owner.execute(
        "SELECT (SELECT count(*) FROM actions), (SELECT count(*) FROM outbox WHERE topic = 'client.actions')"
    ).fetchone()
    assert row is not None
    assert row[0] == row[1]
    return int(row[0])


def race(world: World, used: FinanceGate, case: Any) -> list[str | None]:
    """Judges 64 proposals at once, each on a connection of its own; returns their verdicts."""
    world.open_account(held_micros=10_000 * MILLION, entities=("AAPL", "MSFT", "IBM", "GOOG"))
    world.owner.execute("DELETE FROM paper_positions WHERE source = %s AND entity_id IN ('FB', 'AMZN')", [SOURCE])
    waiting = [
        world.propose(
            case(), entity=("AAPL", "MSFT", "IBM", "GOOG")[number % 4], at=AT.replace(hour=number // 4, minute=30)
        )
        for number in range(64)
    ]
    with ExitStack() as stack:
        connections = [
            stack.enter_context(connect(world.database.url("acp_gatekeeper"), application_name="test")) for _ in waiting
        ]

        def work(number: int) -> str | None:
            one = waiting[number]
            judged = retry_conflicts(lambda: judge(connections[number], used, one.decision_id, one.seq, 0), attempts=20)
            return judged.verdict

        verdicts: list[str | None] = in_threads(64, work)
    return verdicts


@pytest.mark.timeout(300)
def test_of_64_decisions_at_once_as_many_pass_as_one_day_allows(world: World) -> None:
    verdicts = race(world, FinanceGate(), Case)
    assert (verdicts.count("permitted"), releases(world)) == (3, 3)


@pytest.mark.timeout(300)
def test_64_decisions_at_once_keep_the_joint_limit(world: World) -> None:
    one_hundredth = 1_000 * MILLION // 80
    policies = without("daily_releases", "entity_cool_down")
    used = type("Joint", (FinanceGate,), {"policies": property(lambda _: policies)})()
    verdicts = race(world, used, lambda: Case(quantity_micros=one_hundredth))
    assert (verdicts.count("permitted"), verdicts.count("needs_approval")) == (10, 54)
    assert releases(world) == 10
