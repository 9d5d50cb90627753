"""Redrive on a real Postgres: what the plan counted is what is done, once, and what vanished meanwhile is skipped."""

from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import SUBSCRIPTIONS
from tests.integration.operations.world import World, dead_letter_all, deliver_all, make_letters, pending_of

from control_plane.operations.engine import Engine
from control_plane.operations.kind import OperationRefused, State
from control_plane.operations.redrive import Redrive
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.platform.backlog import oldest_pending_age


def test_a_plan_counts_and_changes_nothing(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 7)
    make_letters(owner, 2, subscription="system_events", reason="odd")
    planned = world.plan("redrive", everything=True)
    assert planned.state is State.PLANNED
    assert planned.plan["letters"] == {"signal_lab": 7, "system_events": 2}
    assert (planned.total, planned.plan["total"], len(planned.plan["sample"])) == (9, 9, 5)
    assert planned.plan_hash is not None
    assert owner.execute("SELECT count(*) FROM dead_letters WHERE resolution IS NULL").fetchall() == [(9,)]
    assert pending_of(owner, planned.operation_id) == 0


def test_what_was_planned_is_pending_again_and_delivered(world: World, owner: Connection[Any], app: Any) -> None:
    make_letters(owner, 7)
    planned = world.start(world.plan("redrive", subscription="signal_lab"))
    make_letters(owner, 3)  # They came after the plan.
    assert world.run().finished == 1
    done = world.read(planned.operation_id)
    assert (done.state, done.done, done.skipped, done.started_by, done.reason) == (
        State.DONE, 7, 0, "token:root", "it is mended"
    )  # fmt: skip
    assert owner.execute("SELECT resolution, resolved_by, count(*) FROM dead_letters GROUP BY 1, 2").fetchall() == [
        (None, None, 3),
        ("redriven", "token:root", 7),
    ]
    assert deliver_all(app) == 7
    assert owner.execute("SELECT count(*) FROM operation_items").fetchall() == [(0,)]


def test_letters_that_vanished_meanwhile_are_skipped(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 5)
    planned = world.start(world.plan("redrive", everything=True))
    owner.execute(
        "UPDATE dead_letters SET resolution = 'discarded', resolved_at = now(), resolved_by = 'ada'"
        " WHERE id IN (SELECT id FROM dead_letters ORDER BY id LIMIT 2)"
    )
    world.run()
    done = world.read(planned.operation_id)
    assert (done.done, done.skipped, done.total) == (3, 2, 5)


def test_a_subscription_that_is_removed_meanwhile_has_its_letters_skipped(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 5)
    planned = world.start(world.plan("redrive", everything=True))
    sync_subscriptions(owner, {"system_events": SUBSCRIPTIONS["system_events"]})
    world.run()
    done = world.read(planned.operation_id)
    assert (done.done, done.skipped) == (0, 5)
    assert world.plan("redrive", everything=True).plan["inactive"] == {"signal_lab": 5}


@pytest.mark.parametrize("step_items", [1, 100])
def test_two_letters_of_one_message_become_one_delivery(
    world: World, owner: Connection[Any], app: Any, step_items: int
) -> None:
    make_letters(owner, 1)
    world.start(world.plan("redrive", everything=True))
    world.run()
    dead_letter_all(app)
    owner.execute(
        "UPDATE dead_letters SET resolution = NULL, resolved_at = NULL, resolved_by = NULL, redriven_by = NULL"
    )
    again = world.start(world.plan("redrive", everything=True))
    assert Engine(world.maintain, world.kinds, world.telemetry, step_items=step_items).work()
    assert world.read(again.operation_id).done == 2
    assert pending_of(owner, again.operation_id) == 1


def test_a_redrive_of_old_letters_rings_no_alarm_on_age(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 5)
    world.start(world.plan("redrive", everything=True))
    world.run()
    assert owner.execute("SELECT count(*) FROM pending_deliveries").fetchall() == [(5,)]
    assert oldest_pending_age(owner) < 60
    owner.execute("UPDATE pending_deliveries SET promised_at = now() - interval '1 day'")
    assert oldest_pending_age(owner) == 0  # The live flow has no delivery that is open.


def test_a_rate_spreads_the_deliveries(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 50)
    started = world.start(world.plan("redrive", everything=True, rate=2))
    world.run()
    paced = world.read(started.operation_id)
    assert (paced.state, paced.done) == (State.RUNNING, 20)
    ((last,),) = owner.execute(
        "SELECT extract(epoch FROM max(next_attempt_at) - min(next_attempt_at))::float FROM pending_deliveries"
    ).fetchall()
    assert last == pytest.approx(9.5)
    assert paced.next_step_at > paced.last_step_at  # type: ignore[operator]


def test_a_large_plan_is_made_in_steps(world: World, owner: Connection[Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("control_plane.operations.redrive.FREEZES", 10)
    make_letters(owner, 35)
    planned = world.plan("redrive", reason="BIG")
    assert (planned.total, len(planned.plan["sample"])) == (35, 5)
    monkeypatch.setattr("control_plane.operations.redrive.FREEZES", 10_000)
    assert "after_id" not in planned.plan


def test_equal_letters_make_equal_plans_and_others_do_not(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 5)
    first, second = (world.plan("redrive", everything=True) for _ in range(2))
    make_letters(owner, 1)
    third = world.plan("redrive", everything=True)
    assert first.plan_hash == second.plan_hash != third.plan_hash


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({}, "it is not said what to redrive"),
        ({"everything": True, "ids": [1]}, "everything is asked for, and less"),
        ({"id": 1}, "no field 'id'"),
        ({"ids": ["1"]}, "positive whole numbers"),
        ({"ids": [True]}, "positive whole numbers"),
        ({"ids": list(range(1, 100_002))}, "100000 are the most"),
        ({"subscription": "Signal Lab"}, "must be a subscription's name"),
        ({"since": "yesterday"}, "must be an instant"),
        ({"since": "2026-01-05T14:32:00"}, "must be an instant"),
        ({"older_than_seconds": float("inf")}, "number of seconds"),
        ({"since": "2026-01-05T14:32:00Z", "newer_than_seconds": 5}, "both newer_than_seconds and since"),
        ({"reason": "\x00"}, "1 to 256 characters"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(wanted: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OperationRefused, match=complaint):
        Redrive().parse(wanted)


def test_letters_are_chosen_by_age(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 4)
    owner.execute(
        "UPDATE dead_letters SET dead_lettered_at = now() - interval '1 day'"
        " WHERE id IN (SELECT id FROM dead_letters ORDER BY id LIMIT 3)"
    )
    assert world.plan("redrive", older_than_seconds=3600).total == 3
    assert world.plan("redrive", newer_than_seconds=3600).total == 1
