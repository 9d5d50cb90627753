"""Replay on a real Postgres: a frozen window, sent again at a rate, which each consumer takes as it has declared."""

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.operations.world import World, deliver_all, make_delivered, pending_of

from control_plane.consumers.once import once
from control_plane.model.domain import OnReplay
from control_plane.model.lifecycle import Accepted
from control_plane.operations import service
from control_plane.operations.kind import OperationRefused, State
from control_plane.operations.replay import Replay
from control_plane.platform.backlog import oldest_pending_age
from control_plane.platform.expiry import delete_expired
from domains.finance import signal_lab

SAFE = Replay({"signal_lab": OnReplay.SAFE, "system_events": OnReplay.SKIP})


def finish(world: World, owner: Connection[Any], app: Connection[Any], operation_id: UUID) -> int:
    """Lets a replay's time pass and its deliveries be accepted; returns how many."""
    delivered = 0
    for _ in range(100):
        world.run()
        seeds.pass_time(owner)
        delivered += deliver_all(app)
        if world.read(operation_id).state is State.DONE:
            return delivered
        _pass_a_minute(owner, operation_id)
    raise AssertionError(f"{world.read(operation_id)} is not done")


def _pass_a_minute(owner: Connection[Any], operation_id: UUID) -> None:
    """Moves what a replay has promised, and its next step, a minute into the past."""
    owner.execute(
        "UPDATE operations SET next_step_at = now(), progress = CASE WHEN progress #> '{cursor,promised_until}' IS NULL"
        " THEN progress ELSE jsonb_set(progress, '{cursor,promised_until}',"
        " to_jsonb(((progress #>> '{cursor,promised_until}')::timestamptz - interval '1 minute')::text)) END"
        " WHERE operation_id = %s",
        [operation_id],
    )


def test_a_plan_counts_what_the_filter_selects(world: World, owner: Connection[Any]) -> None:
    make_delivered(owner, 20)
    make_delivered(owner, 3, subscription="system_events")
    whole = world.plan("replay", topic="market.ticks")
    assert whole.state is State.PLANNED, whole.error
    assert (whole.total, whole.plan["subscriptions"], len(whole.plan["sample"])) == (20, {"signal_lab": "safe"}, 5)
    assert whole.subscription == ""
    assert (whole.plan["left_out"], whole.plan["held_back_by"]) == (0, None)
    assert world.plan("replay", subscription="signal_lab", event_type="EVEN_HAPPENED").total == 10
    assert world.plan("replay", subscription="signal_lab", entity_id="MSFT").total == 0
    since = world.plan(
        "replay",
        subscription="signal_lab",
        occurred_since="2026-01-05T14:40:00Z",
        occurred_until="2026-01-05T15:45:00+01:00",
    )
    assert (since.total, since.filter["occurred_until"]) == (5, "2026-01-05T14:45:00Z")


def test_a_large_window_is_counted_and_promised_in_steps(
    world: World, owner: Connection[Any], app: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("control_plane.operations.replay.LOOKS", 7)
    make_delivered(owner, 60)
    planned = world.plan("replay", subscription="signal_lab", event_type="EVEN_HAPPENED", rate=50)
    assert (planned.total, len(planned.plan["sample"])) == (30, 5)
    world.start(planned)
    assert finish(world, owner, app, planned.operation_id) == 30
    assert (world.read(planned.operation_id).done, world.read(planned.operation_id).skipped) == (30, 0)


def test_each_message_of_the_window_is_sent_once_again(world: World, owner: Connection[Any], app: Any) -> None:
    make_delivered(owner, 50)
    planned = world.start(world.plan("replay", subscription="signal_lab", rate=10_000))
    make_delivered(owner, 5)  # They came after the plan.
    assert finish(world, owner, app, planned.operation_id) == 50
    ((sent, messages),) = owner.execute(
        "SELECT count(*), count(DISTINCT outbox_id) FROM deliveries WHERE operation_id = %s", [planned.operation_id]
    ).fetchall()
    assert (sent, messages) == (50, 50)


def test_a_transaction_under_way_is_left_out_and_named(
    world: World, owner: Connection[Any], database: TestDatabase
) -> None:
    make_delivered(owner, 4)
    with psycopg.connect(database.owner_url, application_name="a slow writer") as slow:
        slow.execute("SELECT pg_current_xact_id()")
        make_delivered(owner, 3)  # It was stored later than the slow one began, and committed.
        planned = world.plan("replay", subscription="signal_lab")
        assert (planned.total, planned.plan["left_out"]) == (4, 3)
        assert "a slow writer" in planned.plan["held_back_by"]
    assert world.plan("replay", subscription="signal_lab").total == 7


def test_a_rate_spreads_a_minute_ahead(world: World, owner: Connection[Any]) -> None:
    make_delivered(owner, 1000)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=5))
    world.run()
    assert pending_of(owner, started.operation_id) == pytest.approx(300, abs=25)
    rows = owner.execute("SELECT next_attempt_at, promised_at FROM pending_deliveries ORDER BY 1").fetchall()
    gaps = {(after[0] - before[0]).total_seconds() for before, after in pairwise(rows)}
    assert gaps == {0.2}
    assert all(due == promised for due, promised in rows)
    assert oldest_pending_age(owner) == 0
    waiting = world.read(started.operation_id)
    assert waiting.next_step_at > waiting.last_step_at  # type: ignore[operator]


def test_a_rate_of_less_than_one_a_minute_is_kept(world: World, owner: Connection[Any]) -> None:
    make_delivered(owner, 3)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=0.001))
    for expected in (1, 1, 2):
        world.run()
        assert pending_of(owner, started.operation_id) == expected
        owner.execute(
            "UPDATE operations SET next_step_at = now(), progress = jsonb_set(progress, '{cursor,promised_until}',"
            " to_jsonb(((progress #>> '{cursor,promised_until}')::timestamptz - interval '501 seconds')::text))"
        )


def test_another_rate_acts_within_a_minute(world: World, owner: Connection[Any]) -> None:
    make_delivered(owner, 2000)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=5))
    world.run()
    service.set_rate(world.command, started.operation_id, 10, by="root")
    _pass_a_minute(owner, started.operation_id)
    world.run()
    rows = [row[0] for row in owner.execute("SELECT next_attempt_at FROM pending_deliveries ORDER BY outbox_id")]
    assert rows[-1] - rows[-2] == timedelta(seconds=0.1)
    assert rows[1] - rows[0] == timedelta(seconds=0.2)


def test_a_pause_promises_nothing_more_and_a_resumption_goes_on(world: World, owner: Any, app: Any) -> None:
    make_delivered(owner, 500)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=5))
    world.run()
    service.pause_operation(world.command, started.operation_id, by="root")
    before = pending_of(owner, started.operation_id)
    _pass_a_minute(owner, started.operation_id)
    world.run()
    assert pending_of(owner, started.operation_id) == before
    service.resume_operation(world.command, started.operation_id, by="root")
    assert finish(world, owner, app, started.operation_id) == 500


def test_a_cancelled_replay_takes_back_what_no_relay_has_claimed(world: World, owner: Any, app: Any) -> None:
    make_delivered(owner, 500)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=5))
    world.run()
    seeds.pass_time(owner)
    claim = seeds.claim(app, rows=3)
    cancelled = world.cancel(started.operation_id)
    assert (cancelled.state, cancelled.done) == (State.CANCELLED, 3)
    assert pending_of(owner, started.operation_id) == 3
    assert len(seeds.settle(app, claim, Accepted("m"))) == 3
    _pass_a_minute(owner, started.operation_id)
    world.run()
    assert pending_of(owner, started.operation_id) == 0


def test_what_retention_deleted_meanwhile_is_skipped(world: World, owner: Connection[Any], app: Any) -> None:
    make_delivered(owner, 10)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=100))
    with owner.transaction():
        owner.execute("SET LOCAL control_plane.retention = 'on'")
        owner.execute("DELETE FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT 4)")
    assert finish(world, owner, app, started.operation_id) == 6
    done = world.read(started.operation_id)
    assert (done.total, done.done, done.skipped) == (10, 6, 4)


def test_live_messages_are_delivered_beside_a_replay(world: World, owner: Connection[Any], app: Any) -> None:
    make_delivered(owner, 100)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=1000))
    world.run()
    live = seeds.store(app, seeds.ticks(5))
    sent: Counter[UUID] = Counter()
    for _ in range(5):
        seeds.pass_time(owner)
        sent.update(seeds.settle(app, seeds.claim(app, rows=1000), Accepted("m")))
        world.run()
    assert [sent[event_id] for event_id in live] == [1] * 5
    assert pending_of(owner, started.operation_id) == 0
    assert set(sent.values()) == {1}
    assert len(sent) == 105


# What it means for a consumer


def attributes_of(app: Connection[Any]) -> list[dict[str, str]]:
    claim = seeds.claim(app, rows=1000)
    seeds.settle(app, claim, Accepted("m"))
    return [dict(delivery.message.attributes) for delivery in claim.deliveries]


def test_the_operation_travels_with_the_message(world: World, owner: Connection[Any], app: Any) -> None:
    make_delivered(owner, 2)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=1000))
    world.run()
    seeds.pass_time(owner)
    sent = attributes_of(app)
    assert {attributes["operation_id"] for attributes in sent} == {str(started.operation_id)}
    assert all(len(attributes) <= 10 for attributes in sent)  # More than ten, SQS refuses.


def test_a_safe_consumer_acts_once_more_for_each_replay(world: World, owner: Connection[Any], app: Any) -> None:
    [event_id] = seeds.store(app, [seeds.tick(0)])
    deliver_all(app)
    tick = seeds.tick(0).to_event(revision=0, ingested_at=seeds.FIRST_BAR)
    assert tick.event_id == event_id
    assert signal_lab.consume(app, tick)
    started = world.start(world.plan("replay", subscription="signal_lab"))
    assert [signal_lab.consume(app, tick, started.operation_id) for _ in range(2)] == [True, False]
    assert not signal_lab.consume(app, tick)
    world.cancel(started.operation_id)
    again = world.start(world.plan("replay", subscription="signal_lab"))
    assert signal_lab.consume(app, tick, again.operation_id)
    assert owner.execute("SELECT count(*) FROM signal_lab_bars").fetchall() == [(1,)]


def test_a_redriven_message_that_was_processed_is_a_duplicate(world: World, app: Any) -> None:
    redrive = world.request("redrive", everything=True)
    event_id = UUID(int=7)
    for expected in (True, False):
        with once(app, consumer="signal_lab", event_id=event_id, operation_id=redrive) as is_first:
            assert is_first is expected
    with once(app, consumer="signal_lab", event_id=event_id, operation_id=UUID(int=9)) as is_first:
        assert not is_first  # A stranger's operation is none.


def test_a_consumer_that_skips_refuses_what_it_has_forgotten(world: World, owner: Connection[Any]) -> None:
    make_delivered(owner, 3, subscription="system_events")
    ((kept,),) = owner.execute("SELECT event_id FROM processed_events ORDER BY processed_at LIMIT 1").fetchall()
    owner.execute("DELETE FROM processed_events WHERE event_id <> %s", [kept])
    planned = world.plan("replay", subscription="system_events")
    assert planned.state is State.PLANNED, planned.error
    make_delivered(owner, 1, subscription="system_events")
    owner.execute("DELETE FROM processed_events WHERE event_id = %s", [kept])
    refused = world.plan("replay", subscription="system_events")
    assert refused.state is State.FAILED
    assert "remembers what it has processed only since" in (refused.error or "")
    owner.execute("DELETE FROM processed_events")
    assert "not at all" in (world.plan("replay", subscription="system_events").error or "")


def test_what_retention_has_forgotten_is_not_sent_again_however_late_an_old_event_was_processed(
    world: World, owner: Connection[Any]
) -> None:
    make_delivered(owner, 3, subscription="system_events")
    oldest, *_, newest = [row[0] for row in owner.execute("SELECT event_id FROM events ORDER BY seq")]
    with owner.transaction():
        owner.execute("ALTER TABLE events DISABLE TRIGGER USER")
        owner.execute("UPDATE events SET ingested_at = now() - interval '60 days' + seq * interval '1 day'")
        owner.execute("ALTER TABLE events ENABLE TRIGGER USER")
    owner.execute("UPDATE processed_events SET processed_at = now() - interval '50 days'")
    owner.execute("UPDATE processed_events SET processed_at = now() - interval '51 days' WHERE event_id = %s", [oldest])
    planned = world.plan("replay", subscription="system_events")
    assert (planned.state, planned.total) == (State.PLANNED, 3)
    # The first one was redriven: it was processed last.
    owner.execute("UPDATE processed_events SET processed_at = now() WHERE event_id = %s", [oldest])
    assert delete_expired(world.maintain, "processed_events", days=40, batch_size=9) == 2
    world.start(planned)
    world.run()
    assert world.read(planned.operation_id).state is State.FAILED
    assert owner.execute("SELECT count(*) FROM pending_deliveries").fetchone() == (0,)
    refused = world.plan("replay", subscription="system_events")
    assert "remembers what it has processed only since" in (refused.error or "")
    ((until,),) = owner.execute("SELECT ingested_at FROM events WHERE event_id = %s", [newest]).fetchall()
    assert world.plan("replay", subscription="system_events", ingested_since=until.isoformat()).state is State.FAILED
    make_delivered(owner, 1, subscription="system_events")
    since = (until + timedelta(microseconds=1)).isoformat()
    later = world.plan("replay", subscription="system_events", ingested_since=since)
    assert (later.state, later.total) == (State.PLANNED, 1), later.error


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({}, "name one of the two"),
        ({"subscription": "signal_lab", "topic": "market.ticks"}, "name one of the two"),
        ({"subscription": "action"}, "takes no replay"),
        ({"subscription": "signal_lab", "symbol": "AAPL"}, "no field 'symbol'"),
        (
            {"topic": "market.ticks", "occurred_since": "2026-01-02T00:00Z", "occurred_until": "2026-01-02T00:00Z"},
            "the window is empty",
        ),
    ],
)
def test_a_replay_that_must_not_be_is_refused_at_once(wanted: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OperationRefused, match=complaint):
        SAFE.parse(wanted)


def test_a_topic_with_a_consumer_that_refuses_is_refused_when_it_is_planned(world: World) -> None:
    strict = replace(world, kinds=[Replay({})])
    refused = strict.plan("replay", topic="market.ticks")
    assert (refused.state, refused.finished_at is None) == (State.FAILED, False)
    assert "subscription signal_lab takes no replay" in (refused.error or "")
    assert "there is no active subscription of no.topic" in (strict.plan("replay", topic="no.topic").error or "")
    assert isinstance(refused.finished_at, datetime)
