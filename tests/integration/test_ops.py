"""Timelines, the pipeline's status, and the age of what is pending."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection
from tests.conftest import SUBSCRIPTIONS, TestDatabase
from tests.integration import seeds
from tests.integration.redriving import redrive

from control_plane.ingestion.store import Look, RawPayload, store_events
from control_plane.model.contract import Event
from control_plane.model.lifecycle import Accepted, Failed, MessageFault, QueueFault
from control_plane.model.subscription import Subscription
from control_plane.ops.dead_letters import DeadLetterFilter
from control_plane.ops.health import read_health
from control_plane.ops.status import StrandedDeliveries, read_consumer_lag, read_status
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.ops.timeline import QUERIES, EventTimeline, read_timeline, recent_messages
from control_plane.platform import backlog
from control_plane.platform.backlog import count_pending, oldest_pending_age
from control_plane.platform.breakers import BreakerPolicy, Breakers, hold
from control_plane.platform.database import connect

TWO_CONSUMERS = SUBSCRIPTIONS | {"detector": Subscription("market.ticks")}


def store(connection: Connection[Any], *looks: Look, raw: RawPayload | None = None) -> list[Event]:
    with connection.transaction():
        return list(store_events(connection, [] if raw is None else [raw], looks).events)


def timeline_of(connection: Connection[Any], event_id: UUID) -> EventTimeline:
    timeline = read_timeline(connection, event_id)
    assert timeline is not None
    assert json.loads(json.dumps(timeline.to_dict())) == timeline.to_dict()
    return timeline


# An event's timeline


def test_an_unknown_event_has_no_timeline(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    assert read_timeline(app, uuid4()) is None


def test_a_timeline_shows_the_event_and_its_raw_payload(app: Connection[Any]) -> None:
    raw = RawPayload(
        id=uuid4(),
        source="fake",
        entity_id="AAPL",
        observed_at=seeds.FIRST_BAR,
        window_since=None,
        fetched_at=seeds.FIRST_BAR + timedelta(seconds=1),
        trace_id=UUID(int=1),
        payload={"chart": {"result": [None, 1.5]}},
    )
    [look] = seeds.ticks(1)
    [event] = store(app, replace(look, raw_payload_id=raw.id), raw=raw)
    timeline = timeline_of(app, event.event_id)

    assert {name: timeline.event[name] for name in ("event_id", "revision", "series", "occurred_at", "payload")} == {
        "event_id": str(event.event_id),
        "revision": 0,
        "series": "1m",
        "occurred_at": "2026-01-05T14:32:00+00:00",
        "payload": event.payload,
    }
    assert "payload_json" not in timeline.event
    assert timeline.raw_payload is not None
    assert timeline.raw_payload["id"] == timeline.event["raw_payload_id"] == str(raw.id)
    assert timeline.raw_payload["fetched_at"] == "2026-01-05T14:32:01+00:00"
    assert timeline.raw_payload["payload_json"] == raw.payload


def test_a_delivery_shows_each_failed_attempt(app: Connection[Any]) -> None:
    event_id, other_id = seeds.store(app, seeds.ticks(2))
    seeds.settle(app, seeds.claim(app), Failed("first: no luck"))
    seeds.pass_time(app)
    seeds.claim(app)  # Its relay dies.
    seeds.pass_time(app)
    seeds.claim(app)  # This claim finds that the lease ran out.
    assert set(seeds.settle(app, seeds.claim(app), Accepted("message-1"))) == {event_id, other_id}

    [delivery] = timeline_of(app, event_id).deliveries
    assert delivery.keys() == {
        *("id", "event_id", "topic", "subscription", "operation_id", "state", "delivery_attempts", "next_attempt_at"),
        *("delivered_at", "message_id", "dead_lettered_at", "last_error", "created_at", "promised_at", "claimed_by"),
        *("dead_letter_id", "resolution", "resolved_at", "resolved_by", "redriven_by", "failures"),
    }
    assert (delivery["topic"], delivery["subscription"]) == ("market.ticks", "signal_lab")
    assert (delivery["state"], delivery["message_id"]) == ("delivered", "message-1")
    assert delivery["resolution"] is None
    first, lost = delivery["failures"]
    assert first.keys() == {"attempt", "failed_at", "claimed_by", "error"}
    assert (first["attempt"], first["claimed_by"], first["error"]) == (1, "relay-1", "first: no luck")
    assert (lost["attempt"], lost["claimed_by"]) == (2, "relay-1")
    assert "lease ran out" in lost["error"]
    assert datetime.fromisoformat(first["failed_at"]) < datetime.fromisoformat(lost["failed_at"])


def test_each_subscription_has_its_own_delivery_and_failures(app: Connection[Any], owner: Connection[Any]) -> None:
    sync_subscriptions(owner, TWO_CONSUMERS)
    [event_id] = seeds.store(app, seeds.ticks(1))
    claim = seeds.claim(app, subscriptions=["signal_lab", "detector"])
    seeds.settle(app, claim, Accepted("m"), subscription="signal_lab")
    seeds.settle(app, claim, Failed("detector is down"), subscription="detector")
    detector, signal_lab = timeline_of(app, event_id).deliveries
    assert (detector["subscription"], detector["state"]) == ("detector", "retrying")
    assert [failure["error"] for failure in detector["failures"]] == ["detector is down"]
    assert (signal_lab["subscription"], signal_lab["state"]) == ("signal_lab", "delivered")
    assert signal_lab["failures"] == []


def test_a_dead_letter_shows_why_and_each_attempt(app: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    seeds.give_up(app, reason="no luck", attempts=3)
    [delivery] = timeline_of(app, event_id).deliveries
    assert delivery["state"] == "dead_lettered"
    assert delivery["dead_letter_id"] is not None
    assert delivery["delivered_at"] is None
    assert delivery["last_error"] == "gave up after 3 attempts: no luck"
    assert [failure["attempt"] for failure in delivery["failures"]] == [1, 2, 3]
    assert delivery["resolved_at"] is None


def test_a_redriven_event_shows_both_deliveries(app: Connection[Any], owner: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    seeds.give_up(app, reason="no luck", attempts=2)
    operation = redrive(owner, DeadLetterFilter(reason="no luck"))
    seeds.settle(app, seeds.claim(app), Accepted("message-2"))

    dead, successor = timeline_of(app, event_id).deliveries
    assert (dead["state"], dead["resolution"], dead["resolved_by"]) == ("redriven", "redriven", "kim")
    assert dead["redriven_by"] == successor["operation_id"] == str(operation.operation_id)
    assert dead["resolved_at"] is not None
    assert [failure["attempt"] for failure in dead["failures"]] == [1, 2]
    assert (successor["state"], successor["message_id"]) == ("delivered", "message-2")
    assert (successor["delivery_attempts"], successor["failures"]) == (1, [])


def test_an_event_that_nobody_subscribed_to_has_no_delivery(app: Connection[Any], owner: Connection[Any]) -> None:
    sync_subscriptions(owner, {"signal_lab": SUBSCRIPTIONS["signal_lab"]})
    [event_id] = seeds.store(app, seeds.failures(1))
    timeline = timeline_of(app, event_id)
    assert (timeline.raw_payload, timeline.deliveries, timeline.processing) == (None, [], [])
    [row] = recent_messages(app, limit=5)
    assert (row["event_id"], row["topic"], row["subscription"], row["state"]) == (event_id, "system.events", None, None)


def test_consumers_that_acted_are_shown_in_order_of_time(app: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    for consumer in ("zebra", "ant"):
        app.execute("INSERT INTO processed_events VALUES (%s, %s)", [consumer, event_id])
    processing = timeline_of(app, event_id).processing
    assert [item["consumer"] for item in processing] == ["zebra", "ant"]
    assert all(datetime.fromisoformat(item["processed_at"]).tzinfo is not None for item in processing)


def test_the_newest_messages_come_with_their_deliveries(app: Connection[Any], owner: Connection[Any]) -> None:
    sync_subscriptions(owner, TWO_CONSUMERS)
    _, second, third = seeds.store(app, seeds.ticks(3))
    for consumer in ("signal_lab", "another"):
        app.execute("INSERT INTO processed_events VALUES (%s, %s)", [consumer, third])
    newest = recent_messages(app, limit=2)
    assert [(row["event_id"], row["subscription"]) for row in newest] == [
        (second, "detector"),
        (second, "signal_lab"),
        (third, "detector"),
        (third, "signal_lab"),
    ]
    assert [row["processed_by"] for row in newest[1:3]] == [[], ["another", "signal_lab"]]
    assert {row["state"] for row in newest} == {"pending"}
    assert newest[3]["payload_json"]["price"] == 102.5


def test_the_newest_messages_are_found_without_reading_the_others(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store_delivered(owner, 5000)
    steps = seeds.steps(seeds.plan(app, QUERIES["recent_messages"], {"limit": 10}))
    read = {step["Relation Name"]: step["Actual Rows"] for step in steps if "Relation Name" in step}
    assert {"outbox", "events", "deliveries"} <= read.keys()
    assert max(read.values()) <= 10


# The status


def test_an_empty_pipeline_has_nothing_pending(app: Connection[Any]) -> None:
    status = read_status(app)
    assert (status.deliveries, status.events, status.consumers) == ([], [], [])
    assert (status.stranded, status.dead_letters, status.breakers) == ([], [], [])
    assert (status.pending, status.oldest_pending_age_seconds) == (0, 0.0)


def test_status_counts_each_state_per_subscription(app: Connection[Any], owner: Connection[Any]) -> None:
    def settle_one(outcome: Accepted | Failed | MessageFault, minute: int) -> None:
        store(app, seeds.tick(minute))
        seeds.settle(app, seeds.claim(app), outcome)

    settle_one(Accepted("m"), 0)
    settle_one(MessageFault("too large"), 1)
    settle_one(MessageFault("too large"), 2)
    [letter, _] = read_status(app).dead_letters
    redrive(owner, DeadLetterFilter(ids=[letter.id]))
    settle_one(Failed("no luck"), 3)
    [in_flight] = store(app, seeds.tick(4))
    seeds.claim(app)
    [pending] = store(app, seeds.tick(5))
    store(app, *seeds.failures(1))
    seeds.promised(owner, 300, in_flight.event_id)
    seeds.promised(owner, 100, pending.event_id)

    status = read_status(app)
    assert [(row.subscription, row.topic, row.state, row.count) for row in status.deliveries] == [
        ("signal_lab", "market.ticks", "dead_lettered", 1),
        ("signal_lab", "market.ticks", "delivered", 1),
        ("signal_lab", "market.ticks", "in_flight", 1),
        ("signal_lab", "market.ticks", "pending", 1),
        ("signal_lab", "market.ticks", "redriven", 1),
        ("signal_lab", "market.ticks", "retrying", 2),
        ("system_events", "system.events", "pending", 1),
    ]
    ages = {(row.subscription, row.state): row.oldest_age_seconds for row in status.deliveries}
    assert ages["signal_lab", "in_flight"] == pytest.approx(300, abs=30)
    assert ages["signal_lab", "pending"] == pytest.approx(100, abs=30)
    assert ages["signal_lab", "delivered"] is None
    assert status.pending == status.to_dict()["pending"] == 5
    assert status.oldest_pending_age_seconds == pytest.approx(300, abs=30)
    assert status.count("pending") == 2
    assert status.count("pending", "signal_lab") == 1
    assert status.count("delivered", "system_events") == 0


def test_status_counts_events_and_what_consumers_processed(app: Connection[Any]) -> None:
    event_ids = seeds.store(app, [*seeds.ticks(3), *seeds.failures(1)])
    for event_id in event_ids[:2]:
        app.execute("INSERT INTO processed_events VALUES ('signal_lab', %s)", [event_id])
    status = read_status(app)
    assert [(row.source, row.event_type, row.count) for row in status.events] == [
        ("fake", "MARKET_TICK_INGESTED", 3),
        ("fake", "SOURCE_FETCH_FAILED", 1),
    ]
    assert [(row.consumer, row.count) for row in status.consumers] == [("signal_lab", 2)]


def test_status_names_the_newest_open_dead_letters(app: Connection[Any]) -> None:
    event_ids = seeds.store(app, seeds.ticks(7))
    seeds.give_up(app, reason="no luck", attempts=1)
    letters = read_status(app).dead_letters
    assert [letter.event_id for letter in letters] == event_ids[:1:-1]
    assert {(letter.subscription, letter.reason) for letter in letters} == {
        ("signal_lab", "gave up after 1 attempts: no luck")
    }


def test_status_names_subscriptions_that_nobody_delivers_to(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.store_body(app, {}, topic="market.ticks", subscriptions=["stranger", "signal_lab"])
    assert read_status(app).stranded == [StrandedDeliveries("stranger", 1, was_removed=False)]
    # An older relay may hold a row that sync_subscriptions would have dead-lettered.
    owner.execute("UPDATE subscriptions SET removed_at = now() WHERE name = 'signal_lab'")
    removed, stranger = read_status(app).stranded
    assert removed == StrandedDeliveries("signal_lab", 3, was_removed=True)
    assert "1 pending for stranger, which is not in the table" in str(stranger)
    assert "MigrationFunction" in str(removed)
    assert [row.topic for row in read_status(app).deliveries] == ["market.ticks", None]


def test_status_names_the_relay_that_lingers(app: Connection[Any]) -> None:
    assert read_status(app).lingering_relay is None
    app.execute("INSERT INTO relay_handover (token, name) VALUES (gen_random_uuid(), 'relay-7')")
    relay = read_status(app).lingering_relay
    assert relay is not None
    assert relay.name == "relay-7"
    app.execute("UPDATE relay_handover SET since = now() - interval '16 minutes'")
    assert read_status(app).lingering_relay is None


def test_consumer_lag_is_what_was_delivered_and_not_processed(app: Connection[Any]) -> None:
    first, second = seeds.store(app, seeds.ticks(2))
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    assert read_status(app).consumer_lag == [], "a consumer that has recorded nothing may keep no record"
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", (first,))
    (lag,) = read_status(app).consumer_lag
    assert (lag.subscription, lag.count, lag.oldest_event_id) == ("signal_lab", 1, second)
    (newest,) = read_consumer_lag(app, newest=1)
    assert newest.oldest_event_id == second
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", (second,))
    assert read_status(app).consumer_lag == []


def test_decisions_record_is_no_consumers(app: Connection[Any], owner: Connection[Any]) -> None:
    # DecisionFunction records there only what it dismisses, so that all else of its queue looks unprocessed.
    dismissed, _ = (seeds.store_body(app, {}, topic="decisions.work", subscriptions=["decisions"]) for _ in range(2))
    seeds.settle(app, seeds.claim(app, subscriptions=["decisions"]), Accepted("m"))
    owner.execute("INSERT INTO subscriptions (name, topic) VALUES ('decisions', 'decisions.work')")
    owner.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('decisions', %s)", [dismissed])
    assert read_status(app).consumer_lag == []
    assert read_health(app, max_processing_age_seconds=0).late_consumers == 0


def test_breakers_that_nobody_guards_with_count_no_longer(app: Connection[Any]) -> None:
    for name in ("signal_lab", "yfinance"):
        Breakers(lambda: app, BreakerPolicy(failure_threshold=1, cool_down_seconds=60)).failed(name, "no luck")
    hold(app, "system_events", by="kim")
    app.execute("UPDATE circuit_breakers SET guarded_at = now() - interval '1 hour' WHERE name = 'yfinance'")
    status = read_status(app)
    assert [breaker.name for breaker in status.breakers] == ["signal_lab", "system_events", "yfinance"]
    assert [breaker.name for breaker in status.open_breakers] == ["signal_lab", "system_events"]
    assert read_health(app).open_breakers == 2


# The age of the oldest pending delivery


def test_an_empty_backlog_has_no_age(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.settle(app, seeds.claim(app, rows=1), Accepted("m"))
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    assert (oldest_pending_age(app), count_pending(app, timeout_seconds=60)) == (0.0, 0)
    assert read_health(app).oldest_pending_age_seconds == 0.0


def test_the_oldest_promise_of_all_subscriptions_counts(app: Connection[Any], owner: Connection[Any]) -> None:
    *_, system = seeds.store(app, [*seeds.ticks(3), *seeds.failures(1)])
    seeds.promised(owner, 500, system)
    assert oldest_pending_age(app) == pytest.approx(500, abs=30)
    assert read_health(app).oldest_pending_age_seconds == pytest.approx(500, abs=30)
    assert read_status(app).oldest_pending_age_seconds == pytest.approx(500, abs=30)
    assert count_pending(app, timeout_seconds=60) == read_status(app).pending == 4


def test_a_delivery_in_flight_or_waiting_keeps_its_age(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    seeds.promised(owner, 500)
    claim = seeds.claim(app)
    assert oldest_pending_age(app) == pytest.approx(500, abs=30)
    seeds.settle(app, claim, QueueFault("down"))
    assert oldest_pending_age(app) == pytest.approx(500, abs=30)


def test_ages_look_at_the_live_flow_alone(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    seeds.promised(owner, 3 * 86_400)
    seeds.give_up(app, attempts=1)
    redrive(owner, DeadLetterFilter())
    assert oldest_pending_age(app) == 0
    seeds.store(app, seeds.failures(1))
    seeds.promised(owner, 500)
    assert oldest_pending_age(app) == pytest.approx(500, abs=30)
    assert read_status(app).oldest_pending_age_seconds == pytest.approx(500, abs=30)


def test_a_backfill_does_not_hide_an_older_delivery(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1500))
    seeds.settle(app, seeds.claim(app, rows=2000), Accepted("m"))
    seeds.store(app, seeds.failures(1))
    seeds.promised(owner, 500)
    backfilled = TWO_CONSUMERS | {"detector": Subscription("market.ticks", from_beginning=True)}
    assert sync_subscriptions(owner, backfilled).backfilled == 1500
    assert oldest_pending_age(app) == pytest.approx(500, abs=30)


def test_a_promise_is_as_old_as_its_statement(app: Connection[Any]) -> None:
    with app.transaction():
        app.execute("SELECT pg_sleep(0.3)")  # This lasts as long as a lock is waited for.
        store_events(app, [], seeds.ticks(1))
    ((seconds,),) = app.execute(
        "SELECT extract(epoch FROM promised_at - created_at)::float FROM pending_deliveries"
        " JOIN outbox ON outbox.id = outbox_id"
    ).fetchall()
    assert seconds >= 0.3


def test_a_large_backlogs_age_is_read_from_few_rows(app: Connection[Any], owner: Connection[Any]) -> None:
    owner.execute(
        "INSERT INTO pending_deliveries (outbox_id, subscription, operation_id, promised_at)"
        " SELECT number, CASE WHEN number % 2 = 0 THEN 'signal_lab' ELSE 'detector' END,"
        " CASE WHEN number % 10 = 0 THEN %s::uuid END, now() - make_interval(secs => 200000 - number)"
        " FROM generate_series(1, 200000) AS number".replace("% 2", "%% 2").replace("% 10", "%% 10"),
        [uuid4()],
    )
    owner.execute("ANALYZE pending_deliveries")
    assert oldest_pending_age(app) == pytest.approx(200_000, abs=30)
    plan = seeds.plan(app, backlog.QUERIES["oldest_pending_age"], {})
    scans = [step for step in seeds.steps(plan) if step.get("Relation Name") == "pending_deliveries"]
    assert {step["Index Name"] for step in scans} == {"pending_deliveries_key"}
    assert max(step["Actual Rows"] for step in scans) <= 1000


@pytest.fixture
def locked(database: TestDatabase) -> Iterator[None]:
    """Keeps everybody from reading pending_deliveries during the block."""
    with connect(database.owner_url, application_name="locking") as connection, connection.transaction():
        connection.execute("LOCK TABLE pending_deliveries IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.mark.usefixtures("locked")
def test_a_count_that_takes_too_long_is_none(app: Connection[Any]) -> None:
    assert count_pending(app, timeout_seconds=0.1) is None


def test_a_counts_time_limit_ends_with_the_count(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    assert count_pending(app, timeout_seconds=0.5) == 2
    app.execute("SELECT pg_sleep(0.6)")
