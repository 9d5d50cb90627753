"""Removing beside others: a replay that promises, a rebuild that folds, MigrationFunction changing subscriptions."""

import re
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from psycopg import Connection, errors
from tests.conftest import MIGRATIONS, TestDatabase
from tests.integration import seeds
from tests.integration.history import running
from tests.integration.history.test_retention import age_all, count
from tests.integration.test_maintenance import store_old

from control_plane.model.domain import OnReplay
from control_plane.model.subscription import Subscription
from control_plane.operations.history.rebuild import Rebuild
from control_plane.operations.replay import Replay
from control_plane.ops.maintenance import Maintenance
from control_plane.ops.migrations import read_migrations
from control_plane.ops.subscriptions import SubscriptionReport, sync_subscriptions
from control_plane.ops.timeline import QUERIES
from control_plane.ops.upgrade import upgrade
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from domains import DOMAINS, EVENT_TYPES

REPLAY = Replay({"signal_lab": OnReplay.SAFE})
REBUILD = Rebuild([consumer for domain in DOMAINS for consumer in domain.consumers], EVENT_TYPES)
WANTED = {"subscription": "signal_lab"}


def test_what_a_replay_promises_meanwhile_stays(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    event_ids = store_old(app, owner, 5)
    age_all(owner, "outbox", "created_at")
    operation = running.plan(owner, maintain, REPLAY, WANTED)
    running.start(owner, operation)
    removed: list[Any] = []

    def remove() -> None:
        with connect(database.owner_url, application_name="removing") as removing:
            removed.extend(removing.execute("SELECT remove_events(%s::uuid[], false)", [event_ids]).fetchall())

    removing = threading.Thread(target=remove)
    with maintain.transaction():
        assert REPLAY.step(maintain, running.read(maintain, operation.operation_id), most=1000, seconds=5).done == 5
        removing.start()
        removing.join(1)  # where it waits for the promise's locks, it goes on once they are gone
    removing.join(30)
    assert removed == [(0,)]
    assert (count(owner, "outbox"), count(owner, "events"), count(owner, "pending_deliveries")) == (5, 5, 5)


@pytest.mark.parametrize("state", ["running", "paused", "failed"])
def test_the_scheduled_retention_waits_for_a_rebuild(
    app: Connection[Any],
    owner: Connection[Any],
    maintain: Connection[Any],
    state: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store_old(app, owner, 3)
    age_all(owner, "processed_events", "processed_at")
    operation = running.plan(owner, maintain, REBUILD, WANTED)
    running.start(owner, operation)
    if state != "running":
        owner.execute(
            "UPDATE operations SET state = %s, error = 'e', finished_at = CASE %s WHEN 'failed' THEN now() END",
            [state, state],
        )
    telemetry = Telemetry("test")
    waiting = retention(telemetry).run(maintain, remaining_seconds=lambda: 60.0)
    assert held(telemetry, capsys) == 1
    assert (waiting.deleted_events, waiting.deleted_processed_events, waiting.finished) == (0, 0, False)
    assert maintain.execute("SELECT delete_expired('events', now() - interval '40 days', 10)").fetchone() == (0,)
    owner.execute("UPDATE operations SET state = 'cancelled', finished_at = now()")
    report = retention(telemetry).run(maintain, remaining_seconds=lambda: 60.0)
    assert (report.deleted_events, report.finished, count(owner, "processed_events")) == (3, True, 0)
    assert held(telemetry, capsys) == 0


def test_an_erasure_and_a_change_of_subscriptions_wait_for_each_other(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    event_ids = seeds.store(app, seeds.ticks(3))
    erased: list[Any] = []

    def erase() -> None:
        with connect(database.owner_url, application_name="erasing") as erasing:
            erased.extend(erasing.execute("SELECT remove_events(%s::uuid[], true)", [event_ids]).fetchall())

    erasing = threading.Thread(target=erase)
    with owner.transaction():
        owner.execute(QUERIES["lock_out_new_messages"].sql)
        erasing.start()
        seeds.wait_until_waiting(database, "erasing")
        owner.execute(QUERIES["lock_out_settlements"].sql)
    erasing.join(30)
    assert erased == [(3,)]
    assert (count(owner, "outbox"), count(owner, "pending_deliveries")) == (0, 0)


def test_an_upgrade_that_conflicts_with_others_is_tried_again(
    owner: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    conflicts = [errors.DeadlockDetected(), errors.LockNotAvailable()]

    def sync(connection: Connection[Any], wanted: Mapping[str, Subscription]) -> SubscriptionReport:
        report = sync_subscriptions(connection, wanted)
        if conflicts:
            raise conflicts.pop()
        return report

    monkeypatch.setattr("control_plane.ops.upgrade.sync_subscriptions", sync)
    report = upgrade(owner, read_migrations(MIGRATIONS), {"late": Subscription("market.ticks")}, playbooks=())
    assert report.subscriptions.added == ("late",)
    assert owner.execute("SELECT removed_at FROM subscriptions WHERE name = 'late'").fetchall() == [(None,)]


def retention(telemetry: Telemetry | None = None) -> Maintenance:
    retention_days = {"events": 40, "processed_events": 40}
    return Maintenance(retention_days=retention_days, telemetry=telemetry or Telemetry("test"))


def held(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> float:
    """Returns the metric of the runs since the last time."""
    telemetry.flush()
    [found] = re.findall(r'"RetentionHeld": ?\[([0-9.]+)\]', capsys.readouterr().out)
    return float(found)
