"""Retention as an operation: planned before it deletes, and nothing that is open goes."""

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.decisions import toy
from tests.integration.decisions.test_audit import Log
from tests.integration.decisions.world import World, anomaly
from tests.integration.history import running
from tests.integration.test_maintenance import age, store_old

from control_plane.decisions.audit import audit
from control_plane.decisions.timers import anchor
from control_plane.model.lifecycle import Accepted, MessageFault
from control_plane.operations.history import retention as retention_kind
from control_plane.operations.history.retention import Retention
from control_plane.operations.kind import OperationRefused
from control_plane.platform.telemetry import Telemetry

YEAR = 365
DECISION_TABLES = (
    "decisions", "decision_steps", "agent_calls", "budget_reservations", "verdicts", "approval_requests", "approvals",
    "actions", "executions", "outcomes", "agent_scores", "timers",
)  # fmt: skip


def count(connection: Connection[Any], table: str) -> int:
    ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()
    return int(rows)


def age_all(owner: Connection[Any], table: str, column: str, days: int = 400) -> None:
    with owner.transaction():
        owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
        owner.execute(f"UPDATE {table} SET {column} = now() - make_interval(days => {days})".encode())
        owner.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())


def anchored(world: World) -> list[dict[str, Any]]:
    telemetry = Telemetry("test")
    telemetry.logger = Log()  # type: ignore[assignment]
    anchor(world.decide, telemetry)
    return telemetry.logger.lines  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    "wanted",
    [
        {}, {"days": {}}, {"days": {"tables": 30}}, {"days": {"events": 29}}, {"days": {"events": True}},
        {"days": {"events": "40"}}, {"days": {"events": 40}, "and": 1}, {"days": {"events": 36_501}}, {"days": [40]},
    ],
)  # fmt: skip
def test_a_filter_that_is_none_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(OperationRefused):
        Retention().parse(wanted)


def test_what_a_plan_counts_is_what_goes(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_kind, "_COUNTED_AT_ONCE", 10)
    store_old(app, owner, 35)
    age_all(owner, "delivery_failures", "failed_at")
    seeds.store(app, seeds.failures(4))
    wanted = {"days": {"events": YEAR, "raw_payloads": YEAR, "delivery_failures": YEAR}}
    operation = running.plan(owner, maintain, Retention(), wanted)
    what = operation.plan["what"]
    # The raw payload belongs to events that are there while it is counted.
    assert {name: one["rows"] for name, one in what.items()} == {
        "events": 35,
        "raw_payloads": 0,
        "delivery_failures": 35,
    }
    assert len(what["events"]["sample"]) == 5
    assert what["events"]["oldest"] is not None
    assert (operation.total, count(app, "events")) == (70, 39)
    running.start(owner, operation)
    running.finish(maintain, Retention(), operation.operation_id, most=10)
    ended = running.read(owner, operation.operation_id)
    assert (ended.state, count(app, "events"), count(app, "raw_payloads")) == ("done", 4, 0)
    assert count(app, "delivery_failures") == 0
    assert ended.done == 36  # the failures went with their events, the raw payload after its own
    assert ended.skipped == 34


def test_the_plans_instant_stands_however_late_it_is_started(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    store_old(app, owner, 3)
    operation = running.plan(owner, maintain, Retention(), {"days": {"events": 400}})
    assert operation.total == 3
    seeds.store(app, [seeds.tick(7)])
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    with owner.transaction():
        owner.execute("ALTER TABLE events DISABLE TRIGGER USER")
        # It has become older than 400 days, and was younger when the plan was made.
        owner.execute(
            "UPDATE events SET ingested_at = now() - interval '400 days' WHERE ingested_at > now() - interval '1 day'"
        )
        owner.execute("ALTER TABLE events ENABLE TRIGGER USER")
    running.start(owner, operation)
    running.finish(maintain, Retention(), operation.operation_id)
    assert count(app, "events") == 1


def test_processing_and_failures_of_what_is_open_stay(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    pending, dead, done = seeds.store(app, seeds.ticks(3))
    owner.execute("UPDATE pending_deliveries SET next_attempt_at = now() + interval '1 hour'")
    for event_id, outcome in ((dead, MessageFault("too large")), (done, Accepted("m"))):
        owner.execute(
            "UPDATE pending_deliveries SET next_attempt_at = now() FROM outbox"
            " WHERE outbox.id = outbox_id AND event_id = %s",
            [event_id],
        )
        seeds.settle(app, seeds.claim(app), outcome)
    for event_id in (pending, dead, done):
        app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [event_id])
    owner.execute(
        "INSERT INTO delivery_failures (outbox_id, subscription, attempt, claimed_by, error)"
        " SELECT id, 'signal_lab', 1, 'relay', 'no luck' FROM outbox"
    )
    age_all(owner, "processed_events", "processed_at")
    age_all(owner, "delivery_failures", "failed_at")
    ended = running.run(owner, maintain, Retention(), {"days": {"processed_events": YEAR, "delivery_failures": YEAR}})
    assert (ended.done, ended.skipped) == (2, 0)
    kept = app.execute("SELECT event_id FROM processed_events").fetchall()
    assert {row[0] for row in kept} == {pending, dead}
    ((failures,),) = app.execute(
        "SELECT count(*) FROM delivery_failures JOIN outbox ON id = outbox_id WHERE event_id = %s", [done]
    ).fetchall()
    assert failures == 0


def test_decisions_go_whole_and_leave_their_heads(
    make_world: Callable[..., World], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    world = make_world(deciding=toy.deciding(checker={"costs": 30}))
    for entity in "ABC":
        world.detect(anomaly(entity=entity))
        world.run()
    lines = anchored(world)
    settle_all(owner)
    before = count(owner, "artifacts")
    assert (count(owner, "decisions"), audit(owner, lines).findings) == (3, [])
    age_all(owner, "decisions", "closed_at")
    ended = running.run(owner, maintain, Retention(), {"days": {"decisions": YEAR}}, most=2)
    assert (ended.done, ended.skipped) == (3, 0)
    assert {table: count(owner, table) for table in DECISION_TABLES} == dict.fromkeys(DECISION_TABLES, 0)
    kinds = {row[0] for row in owner.execute("SELECT DISTINCT kind FROM artifacts")}
    assert count(owner, "artifacts") < before
    assert kinds <= {"pins", "source", "policy", "policy_schema"}
    found = audit(owner, lines)
    assert (found.findings, found.expired, found.erased) == ([], 3, 0)


def test_an_open_decision_or_one_with_something_open_stays(
    make_world: Callable[..., World], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    world = make_world(deciding=toy.deciding(checker={"costs": 30}))
    for entity in "ABCD":
        world.detect(anomaly(entity=entity))
        world.run()
    lines = anchored(world)
    settle_all(owner)
    age_all(owner, "decisions", "closed_at")
    ids = [row[0] for row in owner.execute("SELECT decision_id FROM decisions ORDER BY entity_id")]
    owner.execute("UPDATE decisions SET closed_at = NULL WHERE decision_id = %s", [ids[0]])
    owner.execute(
        "INSERT INTO pending_deliveries (outbox_id, subscription) SELECT message.id, 'actions' FROM outbox AS message"
        " JOIN decisions USING (trace_id) WHERE decision_id = %s LIMIT 1",
        [ids[1]],
    )
    owner.execute("UPDATE decisions SET anchored_seq = head_seq - 1 WHERE decision_id = %s", [ids[2]])
    ended = running.run(owner, maintain, Retention(), {"days": {"decisions": YEAR}})
    left = {row[0] for row in owner.execute("SELECT decision_id FROM decisions")}
    assert (ended.done, left) == (1, set(ids[:3]))
    assert lines


def test_the_event_of_an_open_decision_stays(
    make_world: Callable[..., World], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    world = make_world(deciding=toy.deciding())
    world.detect(anomaly(entity="A"))
    world.run()
    settle_all(owner)
    owner.execute("UPDATE decisions SET closed_at = NULL")
    age(owner, 400)
    running.run(owner, maintain, Retention(), {"days": {"events": YEAR}})
    ((trigger,),) = owner.execute("SELECT trigger_event_id FROM decisions").fetchall()
    assert [row[0] for row in owner.execute("SELECT event_id FROM events")] == [trigger]


def test_a_removed_decision_is_not_opened_again(
    make_world: Callable[..., World], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    world = make_world(deciding=toy.deciding())
    told = anomaly(entity="A")
    world.detect(told)
    world.run()
    lines = anchored(world)
    settle_all(owner)
    age_all(owner, "decisions", "closed_at")
    running.run(owner, maintain, Retention(), {"days": {"decisions": YEAR}})
    ((row,),) = owner.execute(
        "SELECT to_jsonb(message) FROM outbox AS message WHERE event_type = 'ANOMALY_DETECTED' LIMIT 1"
    ).fetchall()
    world.detect(anomaly(entity="A", at=world_instant(row), told=1))
    world.run()
    assert (count(owner, "decisions"), count(owner, "decision_tombstones")) == (0, 1)
    assert audit(owner, lines).findings == []


def world_instant(message: dict[str, Any]) -> Any:
    from datetime import datetime

    return datetime.fromisoformat(message["payload_json"]["occurred_at"])


def test_nobody_but_maintenance_deletes_and_never_what_is_young(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    store_old(app, owner, 1)
    with pytest.raises(errors.InvalidParameterValue, match="younger than 30 days"):
        maintain.execute("SELECT delete_expired('events', now() - interval '29 days', 10)")
    with pytest.raises(errors.InvalidParameterValue, match="nothing of the name"):
        maintain.execute("SELECT delete_expired('actions', now() - interval '40 days', 10)")
    assert count(app, "events") == 1


def settle_all(owner: Connection[Any]) -> None:
    """Ends whatever the world has left pending."""
    owner.execute("DELETE FROM pending_deliveries")
