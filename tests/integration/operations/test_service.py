"""Commands on operations: each asks for the state it needs, tells before and after, and the database holds the rest."""

from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration.operations.world import World, make_delivered, make_letters

from control_plane.operations import service
from control_plane.operations.kind import OperationConflict, OperationNotFound, OperationRefused, State
from control_plane.platform.database import connect


def test_a_command_tells_before_and_after(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 1)
    planned = world.plan("redrive", everything=True)
    change = service.start_operation(
        world.command, planned.operation_id, plan_hash=planned.plan_hash or "", started_by="root", reason="why not"
    )
    assert change.before is not None
    assert (change.before.state, change.after.state) == (State.PLANNED, State.RUNNING)
    paused = service.pause_operation(world.command, planned.operation_id, by="root")
    assert paused.before is not None
    assert (paused.before.state, paused.after.state) == (State.RUNNING, State.PAUSED)
    assert service.set_rate(world.command, planned.operation_id, 5, by="root").after.rate == 5
    assert service.resume_operation(world.command, planned.operation_id, by="root").after.state is State.RUNNING
    assert world.cancel(planned.operation_id).finished_at is not None


def test_a_command_is_undone_with_the_callers_transaction(world: World) -> None:
    operation_id = world.request("redrive", everything=True)
    with world.command.transaction(force_rollback=True):
        world.cancel(operation_id)
    assert world.read(operation_id).state is State.PLANNING


def test_another_plans_hash_does_not_start_it(world: World) -> None:
    planned = world.plan("redrive", everything=True)
    with pytest.raises(OperationConflict, match=f"its hash is {planned.plan_hash}"):
        world.start(planned, plan_hash="0" * 64)
    assert world.read(planned.operation_id).state is State.PLANNED


def test_a_plan_older_than_an_hour_is_not_started(world: World, owner: Connection[Any]) -> None:
    planned = world.plan("redrive", everything=True)
    owner.execute("UPDATE operations SET planned_at = now() - interval '61 minutes'")
    with pytest.raises(OperationConflict, match="older than an hour"):
        world.start(planned)
    owner.execute("UPDATE operations SET planned_at = now() - interval '25 hours'")
    world.run()
    assert world.read(planned.operation_id).state is State.CANCELLED


def test_a_start_needs_a_reason_and_a_name(world: World) -> None:
    planned = world.plan("redrive", everything=True)
    with pytest.raises(OperationRefused, match="reason is empty"):
        world.start(planned, reason=" ")
    with pytest.raises(OperationRefused, match="who asks"):
        world.start(planned, started_by="")


def test_a_command_in_the_wrong_state_is_refused(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 1)
    operation_id = world.request("redrive", everything=True)
    with pytest.raises(OperationConflict, match="still being planned"):
        world.start(world.read(operation_id))
    with pytest.raises(OperationConflict, match="is planning: to be paused it must be running"):
        service.pause_operation(world.command, operation_id, by="root")
    world.cancel(operation_id)
    for command in (world.cancel, lambda one: service.resume_operation(world.command, one, by="root")):
        with pytest.raises(OperationConflict, match="is cancelled"):
            command(operation_id)
    with pytest.raises(OperationNotFound):
        world.cancel(uuid4())


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_rate_that_makes_no_sense_is_refused(world: World, rate: float) -> None:
    with pytest.raises(OperationRefused, match="the rate is"):
        world.request("replay", subscription="signal_lab", rate=rate)


def test_an_unknown_kind_is_refused(world: World) -> None:
    with pytest.raises(OperationRefused, match=r"no kind of operation 'undo': it must be one of redrive, replay"):
        world.request("undo")


# One at a time


def test_one_operation_of_a_kind_runs_for_a_subscription(world: World, owner: Connection[Any]) -> None:
    make_delivered(owner, 100)
    make_delivered(owner, 100, subscription="system_events")
    make_letters(owner, 1000)
    first = world.plan("replay", subscription="signal_lab", rate=1)
    second = world.plan("replay", subscription="signal_lab")
    all_of_topic = world.plan("replay", topic="market.ticks")
    world.start(first)
    for other in (second, all_of_topic):
        with pytest.raises(OperationConflict, match=f"replay {first.operation_id} of signal_lab, which is running"):
            world.start(other)
    assert world.read(second.operation_id).state is State.PLANNED
    world.start(world.plan("replay", subscription="system_events", rate=1))
    world.start(world.plan("redrive", everything=True, rate=1))
    service.pause_operation(world.command, first.operation_id, by="root")
    with pytest.raises(OperationConflict, match="which is paused"):
        world.start(second)
    world.cancel(first.operation_id)
    assert world.start(second).state is State.RUNNING


@pytest.mark.parametrize("exclusive", ["retention", "erasure"])
def test_nothing_runs_beside_retention_or_an_erasure(world: World, owner: Connection[Any], exclusive: str) -> None:
    planned = world.plan("redrive", everything=True)
    owner.execute(
        "INSERT INTO operations (operation_id, kind, filter, state, requested_by, plan_hash, planned_at)"
        " VALUES (gen_random_uuid(), %s, '{}', 'running', 'kim', 'x', now())",
        [exclusive],
    )
    with pytest.raises(OperationConflict, match=exclusive):
        world.start(planned)
    with pytest.raises(errors.ExclusionViolation):
        owner.execute(
            "INSERT INTO operations (operation_id, kind, filter, state, requested_by, plan_hash, planned_at)"
            " VALUES (gen_random_uuid(), 'erasure', '{}', 'running', 'kim', 'x', now())"
        )


@pytest.mark.parametrize("change", ["done", "planning", "paused", "failed"])
def test_the_database_refuses_a_change_of_state_that_skips_one(
    world: World, owner: Connection[Any], change: str
) -> None:
    planned = world.plan("redrive", everything=True)
    with pytest.raises(errors.CheckViolation, match="refused"):
        owner.execute(
            "UPDATE operations SET state = %(to)s, error = 'x',"
            " finished_at = CASE WHEN %(to)s IN ('done', 'failed') THEN now() END WHERE operation_id = %(id)s",
            {"to": change, "id": planned.operation_id},
        )


# Lists


def test_operations_are_listed_newest_first_in_pages(world: World, database: TestDatabase) -> None:
    ids = [world.request("redrive", ids=[number + 1]) for number in range(5)]
    with connect(database.url("acp_reader"), application_name="reader") as reader:
        first = service.list_operations(reader, limit=3)
        rest = service.list_operations(reader, limit=3, after=(first[-1].requested_at, first[-1].operation_id))
        assert [one.operation_id for one in [*first, *rest]] == ids[::-1]
        assert service.list_operations(reader, kind="replay") == []
        assert len(service.list_operations(reader, states=[State.PLANNING], subscription="")) == 5
