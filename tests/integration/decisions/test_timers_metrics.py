"""What TimersFunction measures for the alarms: approvals that wait, and the day's budget."""

from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors
from tests.integration.decisions.world import World, anomaly
from tests.integration.fakes import RecordingTelemetry

from control_plane.decisions.timers import measure, run_timers

MEASURES = ("ApprovalsWaiting", "OldestApprovalAge", "BudgetUsed")


def measured(world: World) -> dict[str, float]:
    telemetry = RecordingTelemetry()
    measure(world.decide, telemetry)
    return dict(telemetry.totals)


@pytest.fixture
def asking(make_world: Callable[..., World]) -> World:
    """A world in which a person is asked."""
    world = make_world(verdict="needs_approval")
    world.detect(anomaly())
    world.run()
    return world


def change_request(world: World, column: str) -> None:
    """Has a request's instant five minutes earlier."""
    with psycopg.connect(world.database.admin_url) as admin:
        admin.execute("SET session_replication_role = 'replica'")
        admin.execute(f"UPDATE approval_requests SET {column} = {column} - interval '5 minutes'".encode())


def set_budget(world: World, scope: str, limit: int, *, spent: int = 0, overrun: int = 0, days_ago: int = 0) -> None:
    world.owner.execute(
        "INSERT INTO budgets (scope, day, limit_micros, reserved_micros, spent_micros, overrun_micros)"
        " VALUES (%s, (now() AT TIME ZONE 'UTC')::date - %s, %s, %s, %s, %s)",
        [scope, days_ago, limit, limit // 10, spent, overrun],
    )


def test_a_run_measures_what_is_nothing_too(world: World) -> None:
    telemetry = RecordingTelemetry()
    run_timers(world.decide, telemetry)
    assert telemetry.totals == dict.fromkeys(MEASURES, 0)
    assert telemetry.totals.keys() == set(MEASURES)


def test_a_run_that_fails_measures_nothing(world: World) -> None:
    world.owner.execute("REVOKE EXECUTE ON FUNCTION anchor_heads FROM acp_decide")
    telemetry = RecordingTelemetry()
    with pytest.raises(errors.InsufficientPrivilege):
        run_timers(world.decide, telemetry)
    assert telemetry.totals == {}


def test_an_approval_waits_until_it_is_answered(asking: World) -> None:
    change_request(asking, "requested_at")
    found = measured(asking)
    assert found["ApprovalsWaiting"] == 1
    assert 300 <= found["OldestApprovalAge"] < 600
    assert asking.approve(asking.record().decision.decision_id) == "given"
    assert measured(asking) == dict.fromkeys(MEASURES, 0)


def test_an_approval_that_has_expired_does_not_wait(asking: World) -> None:
    change_request(asking, "expires_at")
    assert measured(asking)["ApprovalsWaiting"] == 0


def test_the_tightest_budget_of_the_day_counts(world: World) -> None:
    set_budget(world, "all", 1000, spent=700)
    set_budget(world, "other", 1000, spent=100)
    set_budget(world, "all", 1000, spent=900, days_ago=1)
    assert measured(world)["BudgetUsed"] == 80


def test_a_budget_that_was_overrun_is_above_a_hundred(world: World) -> None:
    set_budget(world, "all", 1000, spent=1100, overrun=200)
    assert measured(world)["BudgetUsed"] == 120
