"""Removing beside others: a replay that promises, a rebuild that folds, MigrationFunction changing subscriptions."""

import threading
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.history import running
from tests.integration.history.test_retention import age_all, count
from tests.integration.test_maintenance import store_old

from control_plane.model.domain import OnReplay
from control_plane.operations.history.rebuild import Rebuild
from control_plane.operations.replay import Replay
from control_plane.ops.maintenance import Maintenance
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
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], state: str
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
    waiting = retention().run(maintain, remaining_seconds=lambda: 60.0)
    assert (waiting.deleted_events, waiting.deleted_processed_events, waiting.finished) == (0, 0, False)
    assert maintain.execute("SELECT delete_expired('events', now() - interval '40 days', 10)").fetchone() == (0,)
    owner.execute("UPDATE operations SET state = 'cancelled', finished_at = now()")
    report = retention().run(maintain, remaining_seconds=lambda: 60.0)
    assert (report.deleted_events, report.finished, count(owner, "processed_events")) == (3, True, 0)


def retention() -> Maintenance:
    return Maintenance(retention_days={"events": 40, "processed_events": 40}, telemetry=Telemetry("test"))
