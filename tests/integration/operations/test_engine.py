"""The engine: steps are made once, what fails is tried again and in the end given up, and what stalls shows."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.operations.world import World, make_letters

from control_plane.operations import engine, service
from control_plane.operations.engine import run_operations
from control_plane.operations.kind import Operation, OperationRefused, Planned, State, Stepped
from control_plane.ops.health import read_health
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry


@dataclass
class Counting:
    """A kind that counts to ten; each step calls ``before`` first."""

    before: Callable[[Connection[Any]], None] = lambda _connection: None
    steps: list[int] = field(default_factory=list)
    name = "backfill"

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        return wanted

    def plan(self, _connection: Connection[Any], operation: Operation) -> Planned:
        calls = operation.plan.get("calls", 0) + 1
        return Planned({"total": 10, "calls": calls}, is_complete=calls == 3)

    def step(self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float) -> Stepped:
        assert most >= 1
        assert seconds > 0
        self.before(connection)
        at = operation.cursor.get("at", 0) + 1
        self.steps.append(at)
        return Stepped(1, 0, {"at": at}, is_finished=at == 10)

    def cancel(self, connection: Connection[Any], operation: Operation) -> None:
        pass


def let_time_pass(owner: Connection[Any]) -> None:
    owner.execute("UPDATE operations SET next_step_at = now(), lease_until = NULL")


def test_planning_and_steps_go_on_where_they_were(world: World) -> None:
    kind = Counting()
    counting = replace(world, kinds=[kind])
    planned = counting.plan("backfill")
    assert planned.plan == {"total": 10, "calls": 3}
    counting.start(planned)
    assert counting.run().finished == 1
    assert kind.steps == list(range(1, 11))
    assert counting.read(planned.operation_id).progress == {"total": 10, "done": 10, "skipped": 0, "cursor": {"at": 10}}


def test_a_failing_step_is_tried_again_and_leaves_nothing(world: World, owner: Connection[Any]) -> None:
    failures = iter([RuntimeError("no luck"), psycopg.errors.QueryCanceled("too slow")])

    def fail(_connection: Connection[Any]) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    kind = Counting(fail)
    counting = replace(world, kinds=[kind])
    started = counting.start(counting.plan("backfill"))
    counting.run()
    failed = counting.read(started.operation_id)
    assert (failed.state, failed.failures, failed.error, failed.done) == (
        State.RUNNING, 1, "RuntimeError: no luck", 0
    )  # fmt: skip
    assert failed.next_step_at > failed.started_at  # type: ignore[operator]
    let_time_pass(owner)
    counting.run()
    assert counting.read(started.operation_id).error == "QueryCanceled: too slow"
    let_time_pass(owner)
    counting.run()
    done = counting.read(started.operation_id)
    assert (done.state, done.failures, done.error, done.done) == (State.DONE, 0, None, 10)


def test_an_operation_whose_steps_always_fail_is_given_up_visibly_and_can_be_resumed(
    world: World, owner: Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_connection: Connection[Any]) -> None:
        raise RuntimeError("no luck")

    broken = replace(world, kinds=[Counting(fail)])
    started = broken.start(broken.plan("backfill"))
    for _ in range(engine.MOST_FAILURES):
        broken.run()
        let_time_pass(owner)
    failed = broken.read(started.operation_id)
    assert (failed.state, failed.error) == (State.FAILED, "RuntimeError: no luck")
    world.telemetry.flush()
    assert '"OperationsFailed"' in capsys.readouterr().out
    mended = replace(world, kinds=[Counting()])
    service.resume_operation(world.command, started.operation_id, by="root")
    assert mended.run().finished == 1


def test_a_step_that_must_not_go_on_ends_the_operation_at_once(world: World) -> None:
    def refuse(_connection: Connection[Any]) -> None:
        raise OperationRefused("there is nothing left to do it with")

    kind = Counting(refuse)
    counting = replace(world, kinds=[kind])
    started = counting.start(counting.plan("backfill"))
    assert counting.run().failed == 1
    assert counting.read(started.operation_id).error == "there is nothing left to do it with"


def test_a_superseded_claim_changes_nothing(world: World, owner: Connection[Any]) -> None:
    counting = replace(world, kinds=[Counting()])
    started = counting.start(counting.plan("backfill"))
    slow = engine.Engine(counting.maintain, counting.kinds, counting.telemetry)
    claim = slow._claim(None)
    assert claim is not None
    assert slow._claim(None) is None  # It is under its lease.
    owner.execute("UPDATE operations SET lease_until = now()")
    assert slow._claim(None) is not None
    assert not slow._step(claim)
    assert counting.read(started.operation_id).done == 0


class Preparing(Counting):
    """It counts, too, by what it has prepared; each preparation calls ``meanwhile`` first."""

    def __init__(self, meanwhile: Callable[[Operation], None]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def prepare(self, operation: Operation, *, most: int, seconds: float) -> int:
        self.meanwhile(operation)
        return int(operation.cursor.get("at", 0)) + 1

    def step(
        self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float, prepared: Any = None
    ) -> Stepped:
        self.steps.append(prepared)
        return Stepped(1, 0, {"at": prepared}, is_finished=prepared == 10)


def test_what_a_step_waits_for_is_prepared_under_its_lease_and_without_a_lock(
    world: World, owner: Connection[Any]
) -> None:
    owner.execute("SET lock_timeout = '500ms'")

    def look(operation: Operation) -> None:
        row = owner.execute(
            "SELECT lease_until > now() + interval '60 seconds' FROM operations WHERE operation_id = %s FOR UPDATE",
            [operation.operation_id],
        ).fetchone()
        assert row == (True,)

    kind = Preparing(look)
    counting = replace(world, kinds=[kind])
    started = counting.start(counting.plan("backfill"))
    assert counting.run().finished == 1
    assert kind.steps == list(range(1, 11))
    assert counting.read(started.operation_id).done == 10


def test_what_was_prepared_under_a_superseded_claim_is_not_recorded(world: World, owner: Connection[Any]) -> None:
    def supersede(_operation: Operation) -> None:
        owner.execute("UPDATE operations SET fence = fence + 1")

    kind = Preparing(supersede)
    counting = replace(world, kinds=[kind])
    started = counting.start(counting.plan("backfill"))
    assert engine.Engine(counting.maintain, counting.kinds, counting.telemetry).work()
    assert kind.steps == []
    assert counting.read(started.operation_id).done == 0


def test_engines_at_once_make_each_step_once(world: World, owner: Connection[Any], database: TestDatabase) -> None:
    make_letters(owner, 300)
    started = world.start(world.plan("redrive", everything=True))
    barrier = threading.Barrier(4)

    def work() -> None:
        with connect(database.url("acp_maintain"), application_name="engine") as connection:
            barrier.wait()
            one = engine.Engine(connection, world.kinds, Telemetry("test"), step_items=7, lease_seconds=0)
            while world_is_at_work():
                one.work(until=lambda: True)

    def world_is_at_work() -> bool:
        with lock:
            return world.read(started.operation_id).state is State.RUNNING

    lock = threading.Lock()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = world.read(started.operation_id)
    assert (done.state, done.done, done.skipped) == (State.DONE, 300, 0)
    assert owner.execute("SELECT count(*) FROM pending_deliveries").fetchall() == [(300,)]


def test_a_pause_waits_for_the_step_under_way_and_none_follows(world: World, database: TestDatabase) -> None:
    with connect(database.url("acp_command"), application_name="pauses") as other:
        paused: list[threading.Thread] = []

        def pause(_connection: Connection[Any]) -> None:
            thread = threading.Thread(target=lambda: service.pause_operation(other, started.operation_id, by="root"))
            thread.start()
            paused.append(thread)
            # It waits for the row, which this step holds.
            while not world.command.execute(
                "SELECT FROM pg_stat_activity WHERE application_name = 'pauses' AND wait_event_type = 'Lock'"
            ).fetchall():
                pass

        kind = Counting(pause)
        counting = replace(world, kinds=[kind])
        started = counting.start(counting.plan("backfill"))
        counting.run()
        paused[0].join()
    assert kind.steps == [1]
    operation = counting.read(started.operation_id)
    assert (operation.state, operation.done) == (State.PAUSED, 1)


def test_a_stalled_operation_shows(world: World, owner: Connection[Any], capsys: pytest.CaptureFixture[str]) -> None:
    started = world.start(world.plan("redrive", everything=True))
    assert read_health(owner).stalled_operations == 0
    owner.execute(
        "UPDATE operations SET requested_at = now() - interval '1 hour', started_at = now() - interval '6 minutes',"
        " last_step_at = now() - interval '6 minutes', next_step_at = now() - interval '6 minutes'"
    )
    assert world.read(started.operation_id).is_stalled
    assert read_health(owner).stalled_operations == 1
    assert world.run(sleep=lambda _seconds: None).stalled == 1
    world.telemetry.flush()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "OperationsStalled" in line]
    assert [line["OperationsStalled"] for line in lines] == [[1.0]]
    assert read_health(owner).stalled_operations == 0


def test_a_paced_operation_that_waits_is_not_stalled(world: World, owner: Connection[Any]) -> None:
    world.start(world.plan("redrive", everything=True))
    owner.execute(
        "UPDATE operations SET requested_at = now() - interval '1 hour', started_at = now() - interval '1 hour',"
        " last_step_at = now() - interval '1 hour', next_step_at = now() + interval '1 minute'"
    )
    assert read_health(owner).stalled_operations == 0


def test_a_run_lingers_while_something_is_active_and_no_longer(world: World, owner: Connection[Any]) -> None:
    make_letters(owner, 50)
    waits: list[float] = []
    assert run_operations(world.maintain, world.kinds, world.telemetry, lambda: 60.0, sleep=waits.append).steps == 0
    assert waits == []
    world.start(world.plan("redrive", everything=True, rate=1))
    remaining = iter([60.0] * 6)
    run_operations(world.maintain, world.kinds, world.telemetry, lambda: next(remaining, 0.0), sleep=waits.append)
    assert waits
    assert max(waits) <= engine.POLL_SECONDS
