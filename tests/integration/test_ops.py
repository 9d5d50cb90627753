"""What people ask of the pipeline: an event's life, and how things are."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection

from control_plane.consumers import signal_lab
from control_plane.ingestion.store import Draft, RawPayload, store_events
from control_plane.model.contract import Event, MarketTick, Payload, SourceFetchFailed, new_event
from control_plane.model.lifecycle import Accepted, Failed, Outcome, QueueFault, settle
from control_plane.ops.life import EventLife, read_life, recent_promises
from control_plane.ops.status import read_status
from control_plane.outbox import store

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
TRACE = UUID("0af76519-16cd-43dd-8448-eb211c80319c")
MAX_ATTEMPTS = 3


def event_of(payload: Payload, *, minute: int = 0, source: str = "yfinance") -> Event:
    return new_event(
        payload,
        source=source,
        entity_id="AAPL",
        entity_type="equity",
        occurred_at=NOON + timedelta(minutes=minute),
        ingested_at=NOON + timedelta(hours=1),
        trace_id=TRACE,
    )


def tick(minute: int = 0, *, source: str = "yfinance") -> Event:
    payload = MarketTick(price=1.5, open=1.0, high=2.0, low=0.5, volume=10, currency="USD", interval="1m")
    return event_of(payload, minute=minute, source=source)


def failure(minute: int = 0) -> Event:
    return event_of(SourceFetchFailed(symbol="AAPL", kind="unreachable", reason="no answer"), minute=minute)


def keep(connection: Connection[Any], *events: Event, raw: RawPayload | None = None) -> None:
    with connection.transaction():
        store_events(
            connection,
            [] if raw is None else [raw],
            [Draft(event, None if raw is None else raw.id) for event in events],
        )


def relay(connection: Connection[Any], outcome: Outcome | None) -> list[UUID]:
    """One claim whose messages all end so; with None the relay dies before it says how."""
    token = uuid4()
    claim = store.claim(
        connection,
        token=token,
        claimed_by="relay-1",
        lanes={topic: store.Lane(100) for topic in ("market.ticks", "system.events")},
        max_bytes=10_000_000,
        lease_seconds=30,
        max_attempts=MAX_ATTEMPTS,
    )
    if outcome is not None:
        store.settle(
            connection,
            claimed_by="relay-1",
            settlements=[
                (
                    message,
                    settle(
                        outcome, attempt=message.attempt, max_attempts=MAX_ATTEMPTS, cool_down=timedelta(seconds=30)
                    ),
                )
                for message in claim.messages
            ],
        )
    return [message.event_id for message in claim.messages]


def make_due(connection: Connection[Any]) -> None:
    """Lets every lease and every wait run out."""
    connection.execute("UPDATE outbox SET next_attempt_at = now() - interval '1 second' WHERE delivered_at IS NULL")


def life_of(connection: Connection[Any], event: Event) -> EventLife:
    life = read_life(connection, event.event_id)
    assert life is not None
    assert json.loads(json.dumps(life.to_dict())) == life.to_dict()
    return life


# An event's life


def test_an_unknown_event_has_no_life(app: Connection[Any]) -> None:
    keep(app, tick())
    assert read_life(app, uuid4()) is None


def test_a_life_runs_from_the_raw_payload_through_each_failed_attempt_to_the_consumers(app: Connection[Any]) -> None:
    event, other = tick(), tick(1)
    raw = RawPayload(uuid4(), "yfinance", NOON + timedelta(minutes=59), TRACE, {"chart": {"result": [None, 1.5]}})
    keep(app, event, other, raw=raw)
    for outcome in (Failed("first: no luck"), None, Accepted("message-1")):
        assert set(relay(app, outcome)) == {event.event_id, other.event_id}
        make_due(app)
    signal_lab.consume(app, event)
    life = life_of(app, event)

    assert life.event == {
        "event_id": str(event.event_id),
        "event_type": "MARKET_TICK_INGESTED",
        "source": "yfinance",
        "entity_id": "AAPL",
        "entity_type": "equity",
        "occurred_at": "2026-01-05T12:00:00+00:00",
        "ingested_at": "2026-01-05T13:00:00+00:00",
        "schema_version": 1,
        "trace_id": str(TRACE),
        "raw_payload_id": str(raw.id),
        "payload": event.payload,
    }
    assert life.raw_payload == {
        "id": str(raw.id),
        "source": "yfinance",
        "fetched_at": "2026-01-05T12:59:00+00:00",
        "trace_id": str(TRACE),
        "payload_json": raw.payload,
    }
    [promise] = life.promises
    assert promise["state"] == "delivered"
    assert promise["topic"] == "market.ticks"
    assert promise["message_id"] == "message-1"
    assert promise["delivery_attempts"] == 3
    assert promise["last_error"] is None
    assert promise["payload_json"] == event.to_message()
    first, lost = promise["failures"]
    assert (first["attempt"], first["claimed_by"], first["error"]) == (1, "relay-1", "first: no luck")
    assert (lost["attempt"], lost["claimed_by"]) == (2, "relay-1")
    assert "lease ran out" in lost["error"]
    assert datetime.fromisoformat(first["failed_at"]) < datetime.fromisoformat(lost["failed_at"])
    [processing] = life.processing
    assert processing["consumer"] == "signal_lab"
    assert datetime.fromisoformat(processing["processed_at"]).tzinfo is not None

    assert life_of(app, other).processing == []


def test_an_event_of_which_the_source_said_nothing_has_no_raw_payload(app: Connection[Any]) -> None:
    event = failure()
    keep(app, event)
    life = life_of(app, event)
    assert life.raw_payload is None
    assert [(promise["topic"], promise["state"], promise["failures"]) for promise in life.promises] == [
        ("system.events", "pending", [])
    ]
    assert life.processing == []


def test_a_dead_letter_says_why_and_shows_every_attempt(app: Connection[Any]) -> None:
    event = tick()
    keep(app, event)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        relay(app, Failed(f"reason {attempt}"))
        make_due(app)
    assert relay(app, Accepted("too late")) == []
    [promise] = life_of(app, event).promises
    assert promise["state"] == "dead_lettered"
    assert promise["dead_lettered_at"] is not None
    assert promise["delivered_at"] is None
    assert promise["last_error"] == "gave up after 3 attempts: reason 3"
    assert [item["attempt"] for item in promise["failures"]] == [1, 2, 3]


def test_a_replayed_event_shows_both_promises_the_first_one_first(app: Connection[Any]) -> None:
    event = tick()
    keep(app, event)
    relay(app, Accepted("message-1"))
    replay_id = uuid4()
    app.execute("INSERT INTO replays VALUES (%s, DEFAULT, 'somebody', '{}', 1)", [replay_id])
    app.execute(
        """
        INSERT INTO outbox (event_id, topic, replay_id, payload_json)
        SELECT event_id, topic, %s, payload_json FROM outbox
        """,
        [replay_id],
    )
    first, again = life_of(app, event).promises
    assert (first["replay_id"], first["state"]) == (None, "delivered")
    assert (again["replay_id"], again["state"]) == (str(replay_id), "pending")


def test_every_consumer_that_acted_is_shown_in_order_of_time(app: Connection[Any]) -> None:
    event = tick()
    keep(app, event)
    for consumer in ("zebra", "ant"):
        app.execute("INSERT INTO processed_events VALUES (%s, %s)", [consumer, event.event_id])
    assert [item["consumer"] for item in life_of(app, event).processing] == ["zebra", "ant"]


def test_the_newest_promises_come_with_their_events_and_who_processed_them_newest_last(app: Connection[Any]) -> None:
    events = [tick(minute) for minute in range(3)]
    for event in events:
        keep(app, event)
    for consumer in ("signal_lab", "another"):
        app.execute("INSERT INTO processed_events VALUES (%s, %s)", [consumer, events[2].event_id])
    newest = recent_promises(app, limit=2)
    assert [row["event_id"] for row in newest] == [events[1].event_id, events[2].event_id]
    assert [row["processed_by"] for row in newest] == [[], ["another", "signal_lab"]]
    assert newest[1]["state"] == "pending"
    assert newest[1]["payload_json"] == events[2].payload


# How things are


def test_an_empty_pipeline_has_nothing_pending(app: Connection[Any]) -> None:
    status = read_status(app)
    assert (status.promises, status.events, status.consumers) == ([], [], [])
    assert (status.pending, status.oldest_pending_age_seconds) == (0, 0.0)


def age(connection: Connection[Any], event: Event, seconds: float) -> None:
    connection.execute(
        "UPDATE outbox SET created_at = now() - make_interval(secs => %s) WHERE event_id = %s",
        [seconds, event.event_id],
    )


def test_status_counts_every_state_per_topic_and_tells_the_age_of_the_oldest_open_promise(
    app: Connection[Any],
    owner: Connection[Any],
) -> None:
    delivered, dead, retrying, in_flight, lost, pending, reported = (tick(minute) for minute in range(7))
    keep(app, delivered)
    relay(app, Accepted("message-1"))
    keep(app, dead)
    for _ in range(MAX_ATTEMPTS):
        relay(app, Failed("no luck"))
        make_due(app)
    keep(app, lost)
    relay(app, None)
    make_due(app)
    app.execute("UPDATE outbox SET next_attempt_at = now() + interval '1 hour' WHERE event_id = %s", [lost.event_id])
    keep(app, retrying)
    relay(app, QueueFault("down"))
    keep(app, in_flight)
    relay(app, None)
    app.execute("UPDATE outbox SET next_attempt_at = now() - interval '1 hour' WHERE event_id = %s", [lost.event_id])
    keep(app, pending)
    system = failure()
    keep(app, system)
    keep(app, tick(0, source="yfinance-replay"))
    for event, seconds in [(delivered, 9000), (dead, 8000), (retrying, 300), (in_flight, 200), (lost, 100)]:
        age(owner, event, seconds)
    signal_lab.consume(app, delivered)
    signal_lab.consume(app, reported)

    status = read_status(app)
    assert [(row.topic, row.state, row.count) for row in status.promises] == [
        ("market.ticks", "dead_lettered", 1),
        ("market.ticks", "delivered", 1),
        ("market.ticks", "in_flight", 1),
        ("market.ticks", "pending", 3),
        ("market.ticks", "retrying", 1),
        ("system.events", "pending", 1),
    ]
    ages = {(row.topic, row.state): row.oldest_age_seconds for row in status.promises}
    assert ages["market.ticks", "pending"] == pytest.approx(100, abs=30)
    assert ages["market.ticks", "delivered"] == pytest.approx(9000, abs=30)
    assert status.pending == 6
    assert status.oldest_pending_age_seconds == pytest.approx(300, abs=30)
    assert status.count("pending") == 4
    assert status.count("pending", "market.ticks") == 3
    assert status.count("delivered", "system.events") == 0
    assert [(row.source, row.event_type, row.count, row.newest_ingested_at) for row in status.events] == [
        ("yfinance", "MARKET_TICK_INGESTED", 6, NOON + timedelta(hours=1)),
        ("yfinance", "SOURCE_FETCH_FAILED", 1, NOON + timedelta(hours=1)),
        ("yfinance-replay", "MARKET_TICK_INGESTED", 1, NOON + timedelta(hours=1)),
    ]
    assert [(row.consumer, row.count) for row in status.consumers] == [("signal_lab", 2)]
    assert status.to_dict()["pending"] == 6


def test_status_agrees_with_what_the_relays_metrics_say(app: Connection[Any], owner: Connection[Any]) -> None:
    keep(app, tick(0), tick(1), failure())
    age(owner, tick(1), 500)
    relay(app, None)
    pending, oldest = store.backlog(app)
    status = read_status(app)
    assert status.pending == pending == 3
    assert status.oldest_pending_age_seconds == pytest.approx(oldest, abs=30)
