"""Released actions that nobody executes in time: each fails once, visibly, and never beside an execution."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration.decisions.released import Released, release
from tests.integration.decisions.world import World, anomaly, last_body
from tests.integration.running_cloud import RunningCloud, run
from tests.integration.test_signal_lab import tick

from control_plane.decisions.audit import audit
from control_plane.decisions.emit import message
from control_plane.decisions.record import load
from control_plane.decisions.replay import replay
from control_plane.decisions.timers import NOT_EXECUTED, expire_actions, run_timers
from control_plane.model.decision_events import CLIENT_ACTIONS, ActionFailed
from control_plane.platform.database import connect
from control_plane.platform.messages import one_as_json
from control_plane.platform.telemetry import Telemetry
from domains.finance import paper_account, signal_lab

EXPIRE = "SELECT expire_action(%s, %s, %s::json)"
ROUNDS = 8


@pytest.fixture
def open_as(database: TestDatabase) -> Iterator[Callable[[str], Connection[Any]]]:
    """Opens sessions of a role; closed after the test."""
    opened: list[Connection[Any]] = []

    def make(role: str) -> Connection[Any]:
        opened.append(connect(database.url(role), application_name="test"))
        return opened[-1]

    yield make
    for connection in opened:
        connection.close()


type OpenAs = Callable[[str], Connection[Any]]


def pass_expiry(database: TestDatabase) -> None:
    """Every action's expiry is now."""
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("SET session_replication_role = 'replica'")
        admin.execute("UPDATE actions SET expires_at = clock_timestamp()")


def executions(owner: Connection[Any]) -> list[tuple[str, str]]:
    return owner.execute("SELECT outcome, reason FROM executions").fetchall()


def count(owner: Connection[Any], sql: str) -> int:
    row = owner.execute(sql.encode()).fetchone()
    assert row is not None
    return int(row[0])


def expire(connection: Connection[Any], released: Released, **changes: str) -> bool:
    """Expires one action in the caller's transaction."""
    given = {"decision_id": str(released.decision_id), "action_id": str(released.action_id), "reason": NOT_EXECUTED}
    told = message(
        ActionFailed(**(given | changes)),
        entity_id="AAPL",
        series=f"{released.decision_id}:execution",
        at=released.event.occurred_at,
        trace_id=released.event.trace_id,
    )
    row = connection.execute(EXPIRE, [released.action_id, NOT_EXECUTED, one_as_json(told)]).fetchone()
    assert row is not None
    return bool(row[0])


def test_an_action_that_nobody_executes_fails_visibly(world: World) -> None:
    world.deaf = {CLIENT_ACTIONS}
    world.detect(anomaly())
    world.run()
    assert world.record().decision.state == "released"

    assert run_timers(world.decide, world.telemetry).expired == 0

    pass_expiry(world.database)
    assert run_timers(world.decide, world.telemetry).expired == 1
    world.run()
    record = world.record()
    assert record.decision.state == "scored"
    assert [step.body["state"] for step in record.steps if step.kind == "state"] == ["released", "failed"]
    assert (last_body(record, "execution")["outcome"], last_body(record, "execution")["reason"]) == (
        "failed",
        NOT_EXECUTED,
    )
    assert world.events().count("ACTION_FAILED") == 1
    assert world.rows("SELECT state FROM outcomes") == [("observed",)]
    # The audit finds the expiry that this test has moved, and nothing else.
    assert {finding.where for finding in audit(world.owner).findings} == {"actions"}
    loaded = load(world.decide, record.decision.decision_id)
    assert loaded is not None
    assert replay(loaded, world.deciding["toy"]).difference is None


def test_before_its_expiry_no_action_is_failed(database: TestDatabase, owner: Connection[Any], open_as: OpenAs) -> None:
    released = release(database)
    timers = open_as("acp_decide")
    assert expire_actions(timers, Telemetry("test")) == 0
    assert not expire(timers, released)
    assert executions(owner) == []


def test_two_runs_at_once_fail_an_action_once(database: TestDatabase, owner: Connection[Any], open_as: OpenAs) -> None:
    released = release(database)
    pass_expiry(database)
    one, two = open_as("acp_decide"), open_as("acp_decide")
    with one.transaction():
        assert expire(one, released)
        assert expire_actions(two, Telemetry("test")) == 0  # it does not wait
    assert not expire(two, released)
    assert expire_actions(two, Telemetry("test")) == 0
    assert executions(owner) == [("failed", NOT_EXECUTED)]
    assert count(owner, "SELECT count(*) FROM events WHERE event_type = 'ACTION_FAILED'") == 1
    assert count(owner, "SELECT count(*) FROM decision_steps WHERE kind = 'execution'") == 1


def test_an_execution_that_began_in_time_counts(
    database: TestDatabase, owner: Connection[Any], open_as: OpenAs
) -> None:
    released = release(database)
    client, timers = open_as("acp_action"), open_as("acp_decide")
    signal_lab.consume(open_as("acp_consume"), tick())
    with client.transaction():
        assert paper_account.consume(client, released.event)
        pass_expiry(database)
        assert expire_actions(timers, Telemetry("test")) == 0
        assert not expire(timers, released)
    assert expire_actions(timers, Telemetry("test")) == 0
    assert not expire(timers, released)
    assert executions(owner) == [("executed", "")]


def test_an_execution_waits_for_the_expiry_and_does_nothing(
    database: TestDatabase, owner: Connection[Any], open_as: OpenAs
) -> None:
    released = release(database)
    pass_expiry(database)
    client, timers = open_as("acp_action"), open_as("acp_decide")
    signal_lab.consume(open_as("acp_consume"), tick())
    executed: list[bool] = []
    late = threading.Thread(target=lambda: executed.append(paper_account.consume(client, released.event)))
    with timers.transaction():
        assert expire(timers, released)
        late.start()
        wait_for_lock(owner, client)
    late.join()
    assert executed == [False]
    assert executions(owner) == [("failed", NOT_EXECUTED)]
    assert count(owner, "SELECT count(*) FROM paper_orders") == 0


def wait_for_lock(owner: Connection[Any], waiting: Connection[Any]) -> None:
    until = time.monotonic() + 30
    sql = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    while owner.execute(sql, [waiting.info.backend_pid]).fetchone() != (True,):
        assert time.monotonic() < until, "the client never waited for the decision's row"


def test_client_and_timers_at_once_record_one_end(
    database: TestDatabase, owner: Connection[Any], open_as: OpenAs
) -> None:
    released = [release(database) for _ in range(ROUNDS)]
    pass_expiry(database)
    client, timers = open_as("acp_action"), open_as("acp_decide")
    barrier = threading.Barrier(2)
    ended: list[bool] = []

    def race(end: Callable[[Released], bool]) -> None:
        for one in released:
            barrier.wait(30)
            ended.append(end(one))

    threads = [
        threading.Thread(target=race, args=[lambda one: paper_account.consume(client, one.event)]),
        threading.Thread(target=race, args=[lambda one: expire(timers, one)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == [False] * ROUNDS + [True] * ROUNDS
    assert [outcome for outcome, _ in executions(owner)] == ["failed"] * ROUNDS
    assert count(owner, "SELECT count(*) FROM events WHERE event_type = 'ACTION_FAILED'") == ROUNDS


@pytest.mark.parametrize("field", ["decision_id", "action_id", "reason"])
def test_an_event_about_something_else_is_refused(
    database: TestDatabase, owner: Connection[Any], open_as: OpenAs, field: str
) -> None:
    released = release(database)
    pass_expiry(database)
    with pytest.raises(errors.CheckViolation, match="does not say that this action failed"):
        expire(open_as("acp_decide"), released, **{field: "00000000-0000-4000-8000-000000000001"})
    assert executions(owner) == []


def test_acp_decision_shows_what_expired(database: TestDatabase, open_as: OpenAs, cloud: RunningCloud) -> None:
    released = release(database)
    pass_expiry(database)
    expire_actions(open_as("acp_decide"), Telemetry("test"))
    shown = run(cloud, "decision", str(released.decision_id))
    assert shown.exit_code == 0, shown.output
    assert "execution: failed" in shown.stdout
    assert f"reason: {NOT_EXECUTED}" in shown.stdout
