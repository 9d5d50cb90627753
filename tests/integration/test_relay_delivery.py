"""The relay against a real Postgres: what becomes of each message."""

from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.relay_bench import MAX_ATTEMPTS, SYSTEM, TICKS, Bench, done, only

from control_plane.model.backoff import DELAYS_SECONDS, JITTER
from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NoVerdict, Outcome, QueueFault
from control_plane.outbox import claims
from control_plane.outbox.invocation import RelayResult
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message, make_message
from control_plane.outbox.relay import CLAIM_BYTES
from domains import EVENT_TYPES


def test_every_message_is_published_once_with_body_and_attributes(app: Connection[Any]) -> None:
    expected = seeds.store(app, [*seeds.ticks(25), *seeds.failures(3)])
    bench = Bench(lambda: app)
    assert done(bench.run()) == RelayResult(claimed=28, published=28)
    assert Counter(UUID(message.event_id) for message in bench.fake.sent) == Counter(expected)
    assert {message.topic for message in bench.fake.queues[SYSTEM]} == {"system.events"}
    for message in bench.fake.sent:
        event = EVENT_TYPES.parse_event(message.body)
        assert message.attributes == {
            "event_id": str(event.event_id),
            "event_type": event.event_type,
            "schema_version": "1",
            "trace_id": str(event.trace_id),
            "traceparent": f"00-{event.trace_id.hex}-{event.event_id.hex[16:]}-00",
        }
    rows = seeds.deliveries(app)
    assert {row["state"] for row in rows.values()} == {"delivered"}
    assert len({row["message_id"] for row in rows.values()}) == 28
    assert seeds.failed_attempts(app) == []


def test_a_run_without_work_returns_zeros(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    result = bench.run()
    assert result.to_dict() == {
        "claimed": 0, "published": 0, "failed": 0, "dead_lettered": 0, "released": 0,
        "breakers": {"signal_lab": "closed", "system_events": "closed"},
    }  # fmt: skip
    assert bench.naps == []


def test_published_messages_are_counted_and_timed(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    bench = Bench(lambda: app, seconds_per_send=0.5)
    bench.run()
    totals = bench.telemetry.totals
    assert totals.items() >= {"EventsPublished": 3, "OutboxPending": 0, "RelayDuration": 500}.items()
    assert totals["PublishLatency"] == 500
    assert totals["CommitToPublishLatency"] > 0


# The settle table


@pytest.mark.parametrize(
    ("outcome", "counted", "state", "attempts", "error", "wait"),
    [
        (Accepted("m-1"), RelayResult(claimed=1, published=1), "delivered", 1, None, None),
        (MessageFault("malformed"), RelayResult(claimed=1, dead_lettered=1), "dead_lettered", 1, "malformed", None),
        (QueueFault("throttled"), RelayResult(claimed=1, released=1), "retrying", 0, "throttled", (-5, 0)),
        (NoVerdict("hung up"), RelayResult(claimed=1, released=1), "retrying", 0, "hung up", (-5, 0)),
        (Failed("who knows"), RelayResult(claimed=1, failed=1), "retrying", 1, "who knows", (0.0, 2 * (1 + JITTER))),
    ],
    ids=["accepted", "message's fault", "queue's fault", "no verdict", "this attempt failed"],
)
def test_an_outcome_settles_its_delivery(  # noqa: PLR0917 - a row of the table, and pytest passes it by name
    app: Connection[Any],
    outcome: Outcome,
    counted: RelayResult,
    state: str,
    attempts: int,
    error: str | None,
    wait: tuple[float, float] | None,
) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    assert done(Bench(lambda: app, script=only(outcome, event_id)).run()) == counted
    row = seeds.deliveries(app)[event_id]
    assert row == row | {"state": state, "delivery_attempts": attempts, "last_error": error}
    assert row["claim_token"] is row["claimed_by"] is None
    assert (row["suspect_since"] is not None) == isinstance(outcome, NoVerdict)
    if wait is not None:
        assert wait[0] < row["wait"] <= wait[1]
    recorded = [] if attempts == 0 or error is None else [(event_id, 1, "r1", error)]
    assert seeds.failed_attempts(app) == recorded


def test_later_success_clears_error_and_keeps_failure_record(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    Bench(lambda: app, script=only(Failed("hiccup"), event_id)).run()
    seeds.pass_time(app)
    Bench(lambda: app).run()
    row = seeds.deliveries(app)[event_id]
    assert row == row | {"state": "delivered", "delivery_attempts": 2, "last_error": None}
    assert seeds.failed_attempts(app) == [(event_id, 1, "r1", "hiccup")]


def test_failing_message_is_retried_with_growing_waits_then_dead_lettered(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    bench = Bench(lambda: app, script=only(Failed("no"), event_id))
    for attempt in range(1, MAX_ATTEMPTS):
        assert done(bench.run()) == RelayResult(claimed=1, failed=1)
        base = DELAYS_SECONDS[attempt - 1]
        assert base - 1.5 < seeds.deliveries(app)[event_id]["wait"] <= base * (1 + JITTER)
        assert done(bench.run()) == RelayResult()  # It is not due yet.
        seeds.pass_time(app)
    assert done(bench.run()) == RelayResult(claimed=1, dead_lettered=1)
    row = seeds.deliveries(app)[event_id]
    assert row == row | {"state": "dead_lettered", "last_error": "gave up after 5 attempts: no"}
    assert [failure[1] for failure in seeds.failed_attempts(app)] == [1, 2, 3, 4, 5]
    assert bench.telemetry.totals["EventsDeadLettered"] == 1
    assert bench.telemetry.totals["DeliveryRetries"] == 4
    seeds.pass_time(app)
    assert bench.run().claimed == 0


def test_a_line_about_a_decisions_message_names_the_decision(
    app: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    decision_id = str(uuid4())
    about = seeds.store_body(app, {"payload": {"decision_id": decision_id}}, topic="market.ticks")
    (tick,) = seeds.store(app, seeds.ticks(1))
    Bench(lambda: app, script=only(Failed("no"), about, tick)).run()
    lines = {line.__dict__["event_id"]: line.__dict__["decision_id"] for line in caplog.records if line.msg == "failed"}
    assert lines == {str(about): decision_id, str(tick): None}


def test_a_poisonous_message_delays_nobody(app: Connection[Any]) -> None:
    expected = seeds.store(app, seeds.ticks(30))
    poison = expected[12], expected[13]
    bench = Bench(lambda: app, script=only(Failed("poison"), *poison))
    assert done(bench.run()) == RelayResult(claimed=30, published=28, failed=2)
    seeds.store(app, seeds.ticks(10)[5:])  # It is known already.
    later = seeds.store(app, seeds.failures(5))
    assert done(bench.run()) == RelayResult(claimed=5, published=5)
    assert {UUID(message.event_id) for message in bench.fake.sent} == ({*expected, *later} - set(poison))


def test_messages_of_an_unknown_subscription_wait_and_are_named(
    app: Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    waiting = [seeds.store_body(app, {"a": 1}, topic="new.topic", subscriptions=["newcomer"]) for _ in range(30)]
    seeds.store(app, seeds.ticks(2))
    older = Bench(lambda: app)
    assert done(older.run()) == RelayResult(claimed=2, published=2)
    rows = seeds.deliveries(app)
    assert {(rows[event_id]["state"], rows[event_id]["delivery_attempts"]) for event_id in waiting} == {("pending", 0)}
    assert older.telemetry.totals["UnknownSubscriptions"] >= 1
    assert "unknown_subscriptions" in caplog.text

    newer = Bench(lambda: app, queue_urls={"signal_lab": TICKS, "newcomer": SYSTEM})
    assert done(newer.run()) == RelayResult(claimed=30, published=30)
    assert newer.telemetry.totals["UnknownSubscriptions"] == 0


def test_message_over_the_limit_is_dead_lettered_with_size(app: Connection[Any]) -> None:
    small = seeds.store(app, seeds.ticks(2))
    large = seeds.store_body(app, {"text": "x" * MAX_BATCH_BYTES})
    assert done(Bench(lambda: app).run()) == RelayResult(claimed=3, published=2, dead_lettered=1)
    rows = seeds.deliveries(app)
    assert "1,048,576" in rows[large]["last_error"]
    assert rows[large]["state"] == "dead_lettered"
    assert {rows[event_id]["state"] for event_id in small} == {"delivered"}


def test_batches_hold_ten_messages_and_a_mebibyte_at_most(app: Connection[Any]) -> None:
    third = "é" * (MAX_BATCH_BYTES // 3 // 2)
    large = [seeds.store_body(app, {"text": third}) for _ in range(4)]
    small = seeds.store(app, seeds.ticks(23))
    bench = Bench(lambda: app)
    assert done(bench.run()) == RelayResult(claimed=27, published=27)
    assert all(len(batch) <= 10 for _, batch in bench.fake.sends)
    assert all(sum(message.size for message in batch) <= MAX_BATCH_BYTES for _, batch in bench.fake.sends)
    assert {UUID(message.event_id) for message in bench.fake.sent} == {*large, *small}
    assert len(bench.fake.sends) <= 5


def test_claim_is_bounded_by_bytes_but_takes_one_row(app: Connection[Any]) -> None:
    stored = [seeds.store_body(app, {"text": "x" * 1000}) for _ in range(5)]

    def claim(room: int) -> list[UUID]:
        claimed = claims.claim(
            app, token=uuid4(), claimed_by="r", lanes=seeds.limits(100, bytes_=room), lease_seconds=30, max_attempts=5
        )
        return [UUID(delivery.message.event_id) for delivery in claimed.deliveries]

    assert claim(2_500) == stored[:2]
    assert claim(1) == stored[2:3]
    assert claim(CLAIM_BYTES) == stored[3:]


def test_row_that_makes_no_message_is_dead_lettered_alone(
    app: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, *others = seeds.store(app, seeds.ticks(10))
    make = make_message

    def trip(**row: Any) -> Message:
        if row["event_id"] == str(odd):
            raise ValueError("no such thing")
        return make(**row)

    monkeypatch.setattr(claims, "make_message", trip)
    assert done(Bench(lambda: app).run()) == RelayResult(claimed=10, published=9, dead_lettered=1)
    rows = seeds.deliveries(app)
    assert rows[odd]["last_error"] == "no message can be made of it: ValueError: no such thing"
    assert {rows[event_id]["state"] for event_id in others} == {"delivered"}


def test_a_delivery_without_its_message_is_given_up(app: Connection[Any]) -> None:
    app.execute("INSERT INTO pending_deliveries (outbox_id, subscription) VALUES (4711, 'signal_lab')")
    seeds.store(app, seeds.ticks(1))
    assert done(Bench(lambda: app).run()) == RelayResult(claimed=2, published=1, dead_lettered=1)
    (reason,) = app.execute("SELECT reason FROM dead_letters").fetchone() or ("",)
    assert reason == "its message is not in the outbox"
