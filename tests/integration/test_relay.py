"""The relay against a real Postgres: every promise is kept or visibly given up, whatever happens in between."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Event as Signal
from threading import Lock
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import MIGRATIONS, PASSWORD, TestDatabase
from tests.integration import seeds
from tests.integration.fakes import (
    Clock,
    FakePublisher,
    RecordingTelemetry,
    SqsAnswer,
    all_successful,
    sqs_endpoint,
    sqs_error,
)

from control_plane.model.backoff import DELAYS_SECONDS, JITTER
from control_plane.model.contract import parse_event
from control_plane.model.errors import ConfigurationError, DatabaseUnavailable
from control_plane.model.lifecycle import Accepted, Failed, MessageFault, Outcome, QueueFault
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.outbox import ledger as ledger_module
from control_plane.outbox import relay as relay_module
from control_plane.outbox import store
from control_plane.outbox.ledger import DUTY_SECONDS, RelayPolicy
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message, Publisher
from control_plane.outbox.relay import CLAIM_BYTES, Relay, RelayResult
from control_plane.outbox.sqs import SqsPublisher
from control_plane.platform.aws import sqs_client
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import Database, connect
from local_cloud.net import free_port
from local_cloud.postgres import PostgresServer

TICKS, SYSTEM = "http://queues/ticks", "http://queues/system"
QUEUES = {"market.ticks": TICKS, "system.events": SYSTEM}
LEASE, COOL_DOWN, MAX_ATTEMPTS = 30.0, 20.0, 5

type Script = Callable[[Message], Outcome | None]


class Bench:
    """One relay on a bench: its queues, its clock, its counters."""

    def __init__(
        self,
        connection: Callable[[], Connection[Any]],
        *,
        script: Script = lambda _message: None,
        publisher: Publisher | None = None,
        queue_urls: dict[str, str] | None = None,
        seconds_per_send: float = 0,
        name: str = "r1",
        claim_size: int = 100,
        concurrency: int = 1,
        lease: float = LEASE,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self.clock = Clock()
        self.fake = FakePublisher(TICKS, SYSTEM, script=script, clock=self.clock, seconds=seconds_per_send)
        self.telemetry = RecordingTelemetry()
        self.naps: list[float] = []
        self.while_asleep: Callable[[int], None] = lambda _nap: None
        self.relay = Relay(
            connection=connection,
            publisher=publisher or self.fake,
            queue_urls=queue_urls or QUEUES,
            policy=RelayPolicy(claim_size, lease, max_attempts, concurrency, BreakerPolicy(1, COOL_DOWN)),
            telemetry=self.telemetry,
            name=name,
            monotonic=self.clock.monotonic,
            sleep=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.clock.sleep(seconds)
        self.while_asleep(len(self.naps))

    def run(self, *, remaining: float = 600, linger: float = 0) -> RelayResult:
        ends = self.clock.now + remaining
        result = self.relay.run(remaining_seconds=lambda: ends - self.clock.now, linger_seconds=linger)
        assert result.claimed == result.published + result.failed + result.dead_lettered + result.released
        return result


def numbers(result: RelayResult) -> tuple[int, int, int, int, int]:
    return result.claimed, result.published, result.failed, result.dead_lettered, result.released


def only(outcome: Outcome, *event_ids: UUID) -> Script:
    """That outcome for those events, acceptance for all others."""
    return lambda message: outcome if message.event_id in event_ids else None


# A promise kept


def test_every_promise_is_published_once_with_its_body_and_attributes(app: Connection[Any]) -> None:
    promised = seeds.promise(app, [*seeds.ticks(25), *seeds.failures(3)])
    bench = Bench(lambda: app)
    assert numbers(bench.run()) == (28, 28, 0, 0, 0)
    assert Counter(message.event_id for message in bench.fake.sent) == Counter(promised)
    assert {message.topic for message in bench.fake.queues[SYSTEM]} == {"system.events"}
    for message in bench.fake.sent:
        event = parse_event(message.body)
        assert message.attributes == {
            "event_id": str(event.event_id),
            "event_type": event.event_type,
            "schema_version": "1",
            "trace_id": str(event.trace_id),
            "traceparent": f"00-{event.trace_id.hex}-{event.event_id.hex[16:]}-01",
        }
    rows = seeds.outbox(app)
    assert {row["state"] for row in rows.values()} == {"delivered"}
    assert len({row["message_id"] for row in rows.values()}) == 28
    assert seeds.failed_attempts(app) == []


def test_nothing_to_do_is_a_result_of_zeros(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    result = bench.run()
    assert result.to_dict() == {
        "claimed": 0, "published": 0, "failed": 0, "dead_lettered": 0, "released": 0,
        "breakers": {"ticks": "closed", "system": "closed"},
    }  # fmt: skip
    assert bench.naps == []


def test_what_was_published_is_counted_and_timed(app: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(3))
    bench = Bench(lambda: app, seconds_per_send=0.5)
    bench.run()
    totals = bench.telemetry.totals
    assert (totals["EventsPublished"], totals["OutboxPending"], totals["RelayDuration"]) == (3, 0, 500)
    assert totals["PublishLatency"] == 500
    assert totals["CommitToPublishLatency"] > 0


# The settle table


@pytest.mark.parametrize(
    ("outcome", "counted", "state", "attempts", "error", "wait"),
    [
        (Accepted("m-1"), (1, 1, 0, 0, 0), "delivered", 1, None, None),
        (MessageFault("malformed"), (1, 0, 0, 1, 0), "dead_lettered", 1, "malformed", None),
        (QueueFault("throttled"), (1, 0, 0, 0, 1), "retrying", 0, "throttled", (-5, 0)),
        (Failed("who knows"), (1, 0, 1, 0, 0), "retrying", 1, "who knows", (0.0, 2 * (1 + JITTER))),
    ],
    ids=["accepted", "message's fault", "queue's fault", "anything else"],
)
def test_an_outcome_settles_its_row(  # noqa: PLR0917 - a row of the table, and pytest passes it by name
    app: Connection[Any],
    outcome: Outcome,
    counted: tuple[int, ...],
    state: str,
    attempts: int,
    error: str | None,
    wait: tuple[float, float] | None,
) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    assert numbers(Bench(lambda: app, script=only(outcome, event_id)).run()) == counted
    row = seeds.outbox(app)[event_id]
    assert (row["state"], row["delivery_attempts"], row["last_error"]) == (state, attempts, error)
    assert row["claim_token"] is row["claimed_by"] is None
    if wait is not None:
        assert wait[0] < row["wait"] <= wait[1]
    recorded = [] if attempts == 0 or error is None else [(event_id, 1, "r1", error)]
    assert seeds.failed_attempts(app) == recorded


def test_a_later_success_clears_the_error_and_keeps_the_failure_on_record(app: Connection[Any]) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    Bench(lambda: app, script=only(Failed("hiccup"), event_id)).run()
    seeds.pass_time(app)
    Bench(lambda: app).run()
    row = seeds.outbox(app)[event_id]
    assert (row["state"], row["delivery_attempts"], row["last_error"]) == ("delivered", 2, None)
    assert seeds.failed_attempts(app) == [(event_id, 1, "r1", "hiccup")]


def test_a_message_that_keeps_failing_is_tried_with_growing_waits_and_then_given_up(app: Connection[Any]) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    bench = Bench(lambda: app, script=only(Failed("no"), event_id))
    for attempt in range(1, MAX_ATTEMPTS):
        assert numbers(bench.run()) == (1, 0, 1, 0, 0)
        base = DELAYS_SECONDS[attempt - 1]
        assert base - 1.5 < seeds.outbox(app)[event_id]["wait"] <= base * (1 + JITTER)
        assert numbers(bench.run()) == (0, 0, 0, 0, 0)  # not before its time
        seeds.pass_time(app)
    assert numbers(bench.run()) == (1, 0, 0, 1, 0)
    row = seeds.outbox(app)[event_id]
    assert (row["state"], row["last_error"]) == ("dead_lettered", "gave up after 5 attempts: no")
    assert [failure[1] for failure in seeds.failed_attempts(app)] == [1, 2, 3, 4, 5]
    assert bench.telemetry.totals["EventsDeadLettered"] == 1
    assert bench.telemetry.totals["DeliveryRetries"] == 4
    seeds.pass_time(app)
    assert bench.run().claimed == 0


def test_a_poisonous_message_delays_nobody(app: Connection[Any]) -> None:
    promised = seeds.promise(app, seeds.ticks(30))
    poison = promised[12], promised[13]
    bench = Bench(lambda: app, script=only(Failed("poison"), *poison))
    assert numbers(bench.run()) == (30, 28, 2, 0, 0)
    seeds.promise(app, seeds.ticks(10)[5:])  # known already
    later = seeds.promise(app, seeds.failures(5))
    assert numbers(bench.run()) == (5, 5, 0, 0, 0)
    assert {message.event_id for message in bench.fake.sent} == ({*promised, *later} - set(poison))


def test_a_topic_without_a_queue_is_dead_lettered_by_name_and_delays_nobody(app: Connection[Any]) -> None:
    lost = seeds.promise_body(app, {"a": 1}, topic="nobody.listens")
    seeds.promise(app, seeds.ticks(2))
    assert numbers(Bench(lambda: app).run()) == (3, 2, 0, 1, 0)
    row = seeds.outbox(app)[lost]
    assert row["state"] == "dead_lettered"
    assert "'nobody.listens' has no queue" in row["last_error"]
    assert seeds.failed_attempts(app) == [(lost, 1, "r1", row["last_error"])]


# An outage of a queue


def test_an_outage_costs_no_attempts_and_leaves_the_other_topic_alone(app: Connection[Any]) -> None:
    down = seeds.promise(app, seeds.ticks(35))
    up = seeds.promise(app, seeds.failures(5))
    outage = True
    bench = Bench(
        lambda: app,
        script=lambda message: QueueFault("ServiceUnavailable") if outage and message.topic == "market.ticks" else None,
    )
    result = bench.run()
    assert numbers(result) == (40, 5, 0, 0, 35)
    assert result.breakers == {"ticks": "open", "system": "closed"}
    assert len(bench.fake.sends) == 2  # one batch was enough to know; the others of that topic were not tried
    rows = seeds.outbox(app)
    assert {(rows[event_id]["delivery_attempts"], rows[event_id]["state"]) for event_id in down} == {(0, "retrying")}
    assert {rows[event_id]["state"] for event_id in up} == {"delivered"}
    assert seeds.failed_attempts(app) == []

    seeds.pass_time(app)  # the rows are due, but the relay remembers that the queue is down
    more = seeds.promise(app, seeds.failures(7)[5:])
    assert numbers(bench.run()) == (2, 2, 0, 0, 0)

    seeds.cool_down(app)
    outage = False
    result = bench.run()
    assert numbers(result) == (35, 35, 0, 0, 0)
    assert result.breakers == {"ticks": "closed", "system": "closed"}
    assert {message.event_id for message in bench.fake.sent} == {*down, *up, *more}


def test_an_outage_longer_than_all_attempts_dead_letters_nothing(app: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(3))
    bench = Bench(lambda: app, script=lambda _message: QueueFault("down"))
    assert numbers(bench.run()) == (3, 0, 0, 0, 3)
    for _ in range(3 * MAX_ATTEMPTS):
        seeds.pass_time(app)
        assert numbers(bench.run()) == (0, 0, 0, 0, 0)
        seeds.cool_down(app)
        assert numbers(bench.run()) == (1, 0, 0, 0, 1)  # no more than a probe per cool-down
    assert {row["delivery_attempts"] for row in seeds.outbox(app).values()} == {0}


def test_a_paused_topic_does_not_fill_the_claim_and_starve_the_others(app: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(50))
    bench = Bench(
        lambda: app, claim_size=10, script=lambda m: QueueFault("down") if m.topic == "market.ticks" else None
    )
    bench.run()
    seeds.pass_time(app)
    seeds.promise(app, seeds.failures(3))
    assert numbers(bench.run()) == (3, 3, 0, 0, 0)


# SQS, as it answers


@pytest.fixture
def bench_on_sqs(app: Connection[Any]) -> Iterator[Callable[[SqsAnswer], Bench]]:
    """A relay with the real publisher, on an SQS endpoint that answers as told."""
    endpoints = []

    def make(answer: SqsAnswer) -> Bench:
        endpoint = sqs_endpoint(answer)
        url = endpoint.__enter__()
        endpoints.append(endpoint)
        bench = Bench(lambda: app)
        client = sqs_client(url, connect_timeout=2, read_timeout=5, connections=2)
        publisher = SqsPublisher(client, monotonic=bench.clock.monotonic)
        return_url = {"market.ticks": f"{url}/ticks", "system.events": f"{url}/system"}
        made = Bench(lambda: app, publisher=publisher, queue_urls=return_url)
        made.clock = bench.clock
        made.relay._monotonic = bench.clock.monotonic
        return made

    yield make
    for endpoint in endpoints:
        endpoint.__exit__(None, None, None)


def entry(event_id: UUID, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((one for one in entries if str(event_id) in one["MessageBody"]), None)


def test_a_batch_refused_whole_is_sent_one_by_one_and_the_culprit_alone_given_up(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench]
) -> None:
    promised = seeds.promise(app, seeds.ticks(10))
    requests: list[int] = []

    def answer(entries: list[dict[str, Any]]) -> tuple[int, Any]:
        requests.append(len(entries))
        return sqs_error("InvalidMessageContents") if entry(promised[3], entries) else all_successful(entries)

    assert numbers(bench_on_sqs(answer).run()) == (10, 9, 0, 1, 0)
    assert requests == [10] + [1] * 10
    row = seeds.outbox(app)[promised[3]]
    assert row["last_error"] == "InvalidMessageContents: said the queue"


def test_an_answer_is_read_entry_by_entry(app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench]) -> None:
    good, bad, busy, odd, forgotten = promised = seeds.promise(app, seeds.ticks(5))
    fates = {bad: ("InvalidMessageContents", True), busy: ("RequestThrottled", True), odd: ("Mystery", False)}

    def answer(entries: list[dict[str, Any]]) -> tuple[int, Any]:
        said: dict[str, Any] = {"Successful": [{"Id": "0", "MessageId": "m-0"}], "Failed": []}
        for event_id, (code, sender_fault) in fates.items():
            one = entry(event_id, entries)
            assert one is not None
            said["Failed"].append({"Id": one["Id"], "Code": code, "SenderFault": sender_fault, "Message": "hm"})
        return 200, said

    assert numbers(bench_on_sqs(answer).run()) == (5, 1, 2, 1, 1)
    rows = seeds.outbox(app)
    assert [rows[event_id]["state"] for event_id in promised] == [
        "delivered", "dead_lettered", "retrying", "retrying", "retrying",
    ]  # fmt: skip
    assert [rows[event_id]["delivery_attempts"] for event_id in promised] == [1, 1, 0, 1, 1]
    assert rows[good]["message_id"] == "m-0"
    assert rows[forgotten]["last_error"] == "the queue's answer does not mention this entry"


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (sqs_error("QueueDoesNotExist"), "QueueDoesNotExist"),
        (sqs_error("AccessDeniedException", status=403), "AccessDeniedException"),
        (sqs_error("RequestThrottled", status=429), "RequestThrottled"),
        (sqs_error("ServiceUnavailable", status=503), "ServiceUnavailable"),
        (sqs_error("NeverHeardOf", status=500), "NeverHeardOf"),
        (sqs_error("KmsDisabled"), "KmsDisabled"),
        ((502, "<html>Bad Gateway</html>"), "Bad Gateway"),
    ],
)
def test_a_queues_own_fault_costs_no_attempts(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench], refusal: tuple[int, Any], error: str
) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    bench = bench_on_sqs(lambda _entries: refusal)
    assert numbers(bench.run()) == (1, 0, 0, 0, 1)
    row = seeds.outbox(app)[event_id]
    assert (row["state"], row["delivery_attempts"]) == ("retrying", 0)
    assert error in row["last_error"]


@pytest.mark.parametrize(
    "answer", [(200, "<html>Welcome to the Wi-Fi</html>"), (200, {}), (418, {"message": "teapot"})]
)
def test_an_answer_that_makes_no_sense_is_a_failed_attempt(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench], answer: tuple[int, Any]
) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    assert numbers(bench_on_sqs(lambda _entries: answer).run()) == (1, 0, 1, 0, 0)
    assert seeds.outbox(app)[event_id]["state"] == "retrying"


@pytest.mark.parametrize(
    "text", ["a NUL \x00", "a lone \ud800 surrogate", "an essay " * 10_000], ids=["NUL", "surrogate", "long"]
)
def test_whatever_the_queue_says_can_be_recorded(
    app: Connection[Any], bench_on_sqs: Callable[[SqsAnswer], Bench], text: str
) -> None:
    good, bad = seeds.promise(app, seeds.ticks(2))

    def answer(entries: list[dict[str, Any]]) -> tuple[int, Any]:
        failed = {"Id": "1", "Code": "Odd", "SenderFault": False, "Message": text}
        return 200, {"Successful": [{"Id": "0", "MessageId": "m"}], "Failed": [failed]}

    assert numbers(bench_on_sqs(answer).run()) == (2, 1, 1, 0, 0)
    rows = seeds.outbox(app)
    assert rows[good]["state"] == "delivered"
    assert rows[bad]["last_error"].startswith(f"Odd: {text[:2]}")
    assert len(rows[bad]["last_error"]) <= 2_000


def test_a_publisher_that_trips_over_one_batch_costs_the_others_nothing(app: Connection[Any]) -> None:
    promised = seeds.promise(app, seeds.ticks(30))

    def trip(message: Message) -> Outcome | None:
        if message.event_id == promised[15]:
            raise RuntimeError("a bug")
        return None

    bench = Bench(lambda: app, script=trip)
    assert numbers(bench.run()) == (30, 20, 10, 0, 0)
    row = seeds.outbox(app)[promised[15]]
    assert (row["state"], row["last_error"]) == ("retrying", "RuntimeError: a bug")


# Sizes


def test_a_message_over_the_limit_is_dead_lettered_with_its_size(app: Connection[Any]) -> None:
    small = seeds.promise(app, seeds.ticks(2))
    large = seeds.promise_body(app, {"text": "x" * MAX_BATCH_BYTES})
    assert numbers(Bench(lambda: app).run()) == (3, 2, 0, 1, 0)
    rows = seeds.outbox(app)
    assert "1,048,576" in rows[large]["last_error"]
    assert rows[large]["state"] == "dead_lettered"
    assert {rows[event_id]["state"] for event_id in small} == {"delivered"}


def test_batches_hold_ten_messages_and_a_mebibyte_at_most(app: Connection[Any]) -> None:
    third = "é" * (MAX_BATCH_BYTES // 3 // 2)
    large = [seeds.promise_body(app, {"text": third}) for _ in range(4)]
    small = seeds.promise(app, seeds.ticks(23))
    bench = Bench(lambda: app)
    assert numbers(bench.run()) == (27, 27, 0, 0, 0)
    assert all(len(batch) <= 10 for _, batch in bench.fake.sends)
    assert all(sum(message.size for message in batch) <= MAX_BATCH_BYTES for _, batch in bench.fake.sends)
    assert {message.event_id for message in bench.fake.sent} == {*large, *small}
    assert len(bench.fake.sends) <= 5


def test_a_claim_is_bounded_by_bytes_and_takes_at_least_one_row(app: Connection[Any]) -> None:
    promised = [seeds.promise_body(app, {"text": "x" * 1000}) for _ in range(5)]

    def claim(max_bytes: int) -> list[UUID]:
        claimed = store.claim(
            app,
            token=uuid4(),
            claimed_by="r",
            lanes=seeds.lanes(100),
            max_bytes=max_bytes,
            lease_seconds=30,
            max_attempts=5,
        )
        return [message.event_id for message in claimed.messages]

    assert claim(2_500) == promised[:2]
    assert claim(1) == promised[2:3]
    assert claim(CLAIM_BYTES) == promised[3:]


# Leases


def test_a_relay_that_lost_its_lease_changes_nothing(app: Connection[Any], database: TestDatabase) -> None:
    promised = seeds.promise(app, seeds.ticks(5))
    with connect(database.app_url, application_name="second") as connection:
        second = Bench(lambda: connection, name="second", script=only(Failed("by the second"), promised[0]))

        def overtaken(message: Message) -> None:
            if message.event_id == promised[0]:
                seeds.pass_time(connection)
                assert numbers(second.run()) == (5, 4, 1, 0, 0)

        first = Bench(lambda: app, name="first", script=overtaken, claim_size=5)  # with these out, it claims no more
        assert numbers(first.run()) == (5, 0, 0, 0, 5)
    assert first.telemetry.totals["LeaseLost"] == 5
    assert first.telemetry.totals["EventsPublished"] == 0
    rows = seeds.outbox(app)
    assert {row["delivery_attempts"] for row in rows.values()} == {2}
    assert rows[promised[0]]["last_error"] == "by the second"
    assert {rows[event_id]["state"] for event_id in promised[1:]} == {"delivered"}
    second_ids = {message.event_id for message in second.fake.sent}
    assert second_ids == set(promised[1:])
    lost = [failure for failure in seeds.failed_attempts(app) if failure[2] == "first"]
    assert [(event_id, attempt) for event_id, attempt, _, _ in lost] == [(event_id, 1) for event_id in promised]
    assert {"lease ran out" in error for _, _, _, error in lost} == {True}


def test_attempts_lost_with_their_relays_are_recorded_and_the_last_one_is_the_end(app: Connection[Any]) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    for number in range(1, MAX_ATTEMPTS + 1):
        claimed = store.claim(
            app, token=uuid4(), claimed_by=f"doomed-{number}", lanes=seeds.lanes(10), max_bytes=CLAIM_BYTES,
            lease_seconds=30, max_attempts=MAX_ATTEMPTS,
        )  # fmt: skip
        assert [message.attempt for message in claimed.messages] == [number]
        seeds.pass_time(app)
    bench = Bench(lambda: app)
    assert numbers(bench.run()) == (1, 0, 0, 1, 0)
    assert bench.fake.sends == []
    row = seeds.outbox(app)[event_id]
    assert row["state"] == "dead_lettered"
    assert row["last_error"] == "gave up after 5 attempts: the lease ran out, the relay did not report back"
    assert [(attempt, by) for _, attempt, by, _ in seeds.failed_attempts(app)] == [
        (number, f"doomed-{number}") for number in range(1, MAX_ATTEMPTS + 1)
    ]
    assert bench.telemetry.totals["EventsDeadLettered"] == 1


def test_a_lost_attempt_is_recorded_once_however_long_its_row_waits_for_room(app: Connection[Any]) -> None:
    promised = [seeds.promise_body(app, {"text": "x" * 1000}) for _ in range(3)]

    def claim(max_bytes: int) -> store.Claim:
        return store.claim(
            app,
            token=uuid4(),
            claimed_by="r",
            lanes=seeds.lanes(100),
            max_bytes=max_bytes,
            lease_seconds=30,
            max_attempts=5,
        )

    assert len(claim(CLAIM_BYTES).messages) == 3
    seeds.pass_time(app)
    while claim(1).messages:  # one row at a time: the others do not fit
        pass
    assert [(event_id, attempt) for event_id, attempt, _, _ in seeds.failed_attempts(app)] == [
        (event_id, 1) for event_id in promised
    ]


def test_a_lowered_limit_ends_what_has_had_as_many_attempts(app: Connection[Any]) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    bench = Bench(lambda: app, script=only(Failed("no"), event_id))
    for _ in range(3):
        bench.run()
        seeds.pass_time(app)
    assert numbers(Bench(lambda: app, max_attempts=2).run()) == (1, 0, 0, 1, 0)
    assert seeds.outbox(app)[event_id]["last_error"] == "gave up after 3 attempts: no"
    assert len(seeds.failed_attempts(app)) == 3


@pytest.mark.parametrize("relays", [2, 4])
def test_relays_at_once_publish_each_of_two_thousand_rows_exactly_once(
    app: Connection[Any], database: TestDatabase, relays: int
) -> None:
    promised = seeds.promise(app, seeds.ticks(2_000))

    def work(number: int) -> Bench:
        with connect(database.app_url, application_name=f"r{number}") as connection:
            bench = Bench(lambda: connection, name=f"r{number}", claim_size=37, concurrency=4)
            bench.run()
            return bench

    with ThreadPoolExecutor(relays) as pool:
        benches = list(pool.map(work, range(relays)))
    sent = Counter(message.event_id for bench in benches for message in bench.fake.sent)
    assert sent == Counter(promised)
    assert {row["state"] for row in seeds.outbox(app).values()} == {"delivered"}
    assert all(bench.telemetry.totals["LeaseLost"] == 0 for bench in benches)


# Several topics, several writers


def test_a_slow_queue_does_not_keep_another_topic_waiting(app: Connection[Any]) -> None:
    ticks, system = seeds.promise(app, seeds.ticks(400)), seeds.promise(app, seeds.failures(3))
    bench = Bench(lambda: app, claim_size=500, seconds_per_send=1, lease=600)
    bench.run()
    topics = [batch[0].topic for _, batch in bench.fake.sends]
    assert topics.index("system.events") <= 1
    assert {message.event_id for message in bench.fake.sent} == {*ticks, *system}


def test_while_one_topic_fills_the_threads_another_is_still_looked_at(
    app: Connection[Any], database: TestDatabase
) -> None:
    seeds.promise(app, seeds.ticks(300))
    late: list[UUID] = []

    def another_topic_gets_work(message: Message) -> None:
        time.sleep(0.002)  # a claim is faster than the queue
        if not late and len(bench.fake.sent) >= 20:
            late.extend(seeds.promise(app, seeds.failures(1)))

    with connect(database.app_url, application_name="relay") as connection:
        bench = Bench(lambda: connection, script=another_topic_gets_work, claim_size=100, seconds_per_send=1, lease=600)
        assert bench.run().published == 301
    sent = [message.event_id for _, batch in bench.fake.sends for message in batch]
    assert sent.index(late[0]) < 100  # while the first claim of its neighbour is under way


def test_a_transaction_that_commits_after_younger_ones_is_not_passed_over(
    app: Connection[Any], database: TestDatabase
) -> None:
    first, second = seeds.ticks(2)
    naps_between: list[int] = []
    with connect(database.app_url, application_name="slow writer") as slow:
        bench = Bench(lambda: app)

        def write(nap: int) -> None:
            if nap == 3:
                slow.execute("BEGIN")
                seeds.promise(slow, [first])
                seeds.promise(app, [second])
            elif len(bench.fake.sent) == 1 and not naps_between:
                slow.execute("COMMIT")
                naps_between.append(nap)
            elif len(bench.fake.sent) == 2 and len(naps_between) == 1:
                naps_between.append(nap)

        bench.while_asleep = write
        assert bench.run(linger=3).published == 2  # within less than a sweep
    assert [message.event_id for message in bench.fake.sent] == [second.event_id, first.event_id]
    assert naps_between[1] - naps_between[0] <= 2


# The time box


def test_with_too_little_time_left_nothing_is_claimed(app: Connection[Any]) -> None:
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    bench = Bench(lambda: app)
    too_little = bench.fake.send_timeout_seconds + relay_module.SETTLE_SECONDS
    assert bench.run(remaining=too_little).claimed == 0
    row = seeds.outbox(app)[event_id]
    assert (row["state"], row["delivery_attempts"]) == ("pending", 0)
    assert bench.run(remaining=too_little + 0.1).published == 1


def test_what_could_not_be_sent_in_time_is_given_back_and_no_send_starts_late(app: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(100))
    bench = Bench(lambda: app, seconds_per_send=4, lease=600)
    started = bench.clock.now
    result = bench.run(remaining=30)
    # 30 s, less 2 to settle, less 10 that a send may take: sends start in the first 18, at 0, 4, 8, 12 and 16 s.
    assert [start - started for start, _ in bench.fake.sends] == [0, 4, 8, 12, 16]
    assert numbers(result) == (100, 50, 0, 0, 50)
    states = Counter((row["state"], row["delivery_attempts"]) for row in seeds.outbox(app).values())
    assert states == {("delivered", 1): 50, ("pending", 0): 50}
    assert seeds.failed_attempts(app) == []
    assert bench.run().published == 50


def test_no_send_starts_that_could_outlive_its_lease(app: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(100))
    bench = Bench(lambda: app, seconds_per_send=7, lease=30)
    result = bench.run(remaining=1_000)
    # A claim of 100 rows is 10 sends of 7 s; those at 0, 7 and 14 s end before its lease does.
    claims = [start for start, _ in bench.fake.sends]
    assert [start - claims[0] for start in claims[:4]] == [0, 7, 14, 21]
    assert (result.published, result.failed, result.dead_lettered) == (100, 0, 0)
    assert result.released > 0
    assert len(bench.fake.sent) == 100


def test_a_lease_shorter_than_a_send_is_refused(app: Connection[Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"LEASE_SECONDS is 10: it must be more than the 10 seconds"):
        Bench(lambda: app, lease=10)


def test_a_lingering_relay_picks_up_what_is_committed_later_and_ends_on_time(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    events = seeds.ticks(30)

    def commit_some(nap: int) -> None:
        if nap in {3, 20, 40}:
            seeds.promise(app, events[: {3: 10, 20: 20, 40: 30}[nap]])

    bench.while_asleep = commit_some
    started = bench.clock.now
    result = bench.run(remaining=600, linger=55)
    assert result.published == 30
    lingered = bench.clock.now - started
    assert 55 - relay_module.POLL_SECONDS[1] <= lingered <= 55
    shortest, longest = relay_module.POLL_SECONDS
    assert bench.naps[0] == pytest.approx(shortest)
    assert max(bench.naps) == pytest.approx(longest)
    assert bench.naps[3] == pytest.approx(shortest)  # after work it looks often again


def test_a_lingering_relay_ends_before_its_invocation_does(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    started = bench.clock.now
    bench.run(remaining=30, linger=600)
    assert bench.clock.now - started <= 30 - relay_module.SETTLE_SECONDS


def test_a_lingering_relay_goes_when_the_next_one_comes(app: Connection[Any], database: TestDatabase) -> None:
    first = Bench(lambda: app, name="first")
    seeds.promise(app, seeds.ticks(5))
    with connect(database.app_url, application_name="second") as connection:
        second = Bench(lambda: connection, name="second")
        came = 0.0

        def the_next_one_comes(nap: int) -> None:
            nonlocal came
            if nap == 40:
                came = first.clock.now
                assert on_duty(app) == "first"
                second.while_asleep = lambda _nap: None
                second_run.append(second.run(linger=1))
                store.take_over(app, token=uuid4(), name="third")

        second_run: list[RelayResult] = []
        first.while_asleep = the_next_one_comes
        assert first.run(linger=500).published == 5
    assert len(second_run) == 1
    assert came < first.clock.now <= came + DUTY_SECONDS + relay_module.POLL_SECONDS[1]
    assert on_duty(app) == "third"  # whoever was relieved leaves the other's post alone


def test_a_lingering_relay_leaves_its_post_empty_behind_it(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    seen = []
    bench.while_asleep = lambda _nap: seen.append(on_duty(app))
    bench.run(linger=2)
    assert set(seen) == {"r1"}
    assert on_duty(app) is None


def test_a_relay_that_only_drains_relieves_nobody(app: Connection[Any]) -> None:
    store.take_over(app, token=uuid4(), name="on duty")
    Bench(lambda: app).run()
    assert on_duty(app) == "on duty"


def test_a_relay_without_the_time_to_claim_relieves_nobody(app: Connection[Any]) -> None:
    store.take_over(app, token=uuid4(), name="on duty")
    Bench(lambda: app).run(remaining=5, linger=60)
    assert on_duty(app) == "on duty"


def test_a_relay_that_is_relieved_under_load_claims_no_more(app: Connection[Any]) -> None:
    events = iter(seeds.ticks(400))
    seeds.promise(app, [next(events)])

    def never_ending(message: Message) -> None:
        if bench.clock.now > started + 2:
            store.take_over(app, token=uuid4(), name="next")
        seeds.promise(app, [next(events)])

    with connect(app.info.dsn + f" password={PASSWORD}", application_name="relay") as connection:
        bench = Bench(lambda: connection, script=never_ending, seconds_per_send=0.1)
        started = bench.clock.now
        result = bench.run(linger=300)
    assert result.published < 100
    assert bench.clock.now < started + 10


def on_duty(connection: Connection[Any]) -> str | None:
    row = connection.execute("SELECT name FROM relay_duty").fetchone()
    return None if row is None else row[0]


def test_without_lingering_it_drains_and_ends(app: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(25))
    bench = Bench(lambda: app, claim_size=10)
    assert bench.run().published == 25
    assert bench.naps == []


# Crashes


class HeldEndpoint:
    """An SQS endpoint that accepts a batch, says so to the test, and holds its answer until told."""

    def __init__(self) -> None:
        self.accepted: list[UUID] = []
        self.batches: Queue[list[UUID]] = Queue()
        self.answer_now = Signal()
        self._lock = Lock()

    def __call__(self, entries: list[dict[str, Any]]) -> tuple[int, Any]:
        event_ids = [UUID(json.loads(one["MessageBody"])["event_id"]) for one in entries]
        with self._lock:
            self.accepted += event_ids
        self.batches.put(event_ids)
        self.answer_now.wait(60)
        return all_successful(entries)


def wait_until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["before the answer", "before the settlement"])
def test_a_relay_killed_between_publish_and_settle_loses_nothing_and_doubles_only_what_was_in_flight(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, moment: str
) -> None:
    promised = seeds.promise(app, seeds.ticks(40))
    endpoint = HeldEndpoint()
    with sqs_endpoint(endpoint) as url:
        doomed = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("relay_process.py")), database.app_url, f"{url}/ticks"],
            env=os.environ | {"AWS_ENDPOINT_URL": url},
            stdout=subprocess.DEVNULL,
        )
        try:
            in_flight = {event_id for _ in range(2) for event_id in endpoint.batches.get(timeout=60)}
            if moment == "before the settlement":
                with owner.transaction():
                    owner.execute("SELECT FROM outbox FOR UPDATE")
                    endpoint.answer_now.set()
                    in_flight = set(promised)
                    blocked = (
                        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'doomed' AND wait_event_type = 'Lock'"
                    )
                    wait_until(lambda: app.execute(blocked).fetchone() is not None)
                    doomed.kill()
                    doomed.wait(30)
                    with psycopg.connect(database.admin_url) as admin:
                        admin.execute(
                            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                            " WHERE application_name = 'doomed'"
                        )
            doomed.kill()
            doomed.wait(30)
        finally:
            doomed.kill()
            doomed.wait(30)
            endpoint.answer_now.set()
    rows = seeds.outbox(app)
    assert {(row["state"], row["delivery_attempts"]) for row in rows.values()} == {("in_flight", 1)}

    bench = Bench(lambda: app)
    assert bench.run().claimed == 0  # the dead relay's lease still holds
    seeds.pass_time(app)
    assert numbers(bench.run()) == (40, 40, 0, 0, 0)
    received = Counter([*endpoint.accepted, *(message.event_id for message in bench.fake.sent)])
    assert set(received) == set(promised)
    assert {event_id for event_id, times in received.items() if times > 1} <= in_flight
    assert max(received.values()) == 2
    assert {row["delivery_attempts"] for row in seeds.outbox(app).values()} == {2}
    assert [failure[1:3] for failure in seeds.failed_attempts(app)] == [(1, "doomed")] * 40


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A cluster to crash; it comes back on the same port."""
    with PostgresServer(tmp_path / "data", password="secret", port=free_port(), fsync=False) as server:
        with connect(server.url(), application_name="test") as connection:
            migrate(connection, read_migrations(MIGRATIONS))
        yield server


def test_postgres_down_while_publishing_is_a_clear_error_and_the_next_run_delivers_everything(
    own_postgres: PostgresServer,
) -> None:
    url = own_postgres.url()
    database = Database(lambda: url, application_name="relay")
    promised = seeds.promise(database.connection(), seeds.ticks(30))

    def crash(message: Message) -> None:
        if message.event_id == promised[0]:
            own_postgres.stop("immediate")

    bench = Bench(database.connection, script=crash)
    with pytest.raises(DatabaseUnavailable, match=r"Postgres at postgres@127\.0\.0\.1:\d+/postgres cannot be used"):
        bench.run()
    assert bench.telemetry.totals["EventsPublished"] == 0
    assert bench.fake.sent

    own_postgres.start()
    rows = seeds.outbox(database.connection())
    assert {row["state"] for row in rows.values()} == {"in_flight"}
    seeds.pass_time(database.connection())
    second = Bench(database.connection)
    assert numbers(second.run()) == (30, 30, 0, 0, 0)
    database.close()


def test_postgres_restarted_while_publishing_costs_nothing(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    database = Database(lambda: url, application_name="relay")
    promised = seeds.promise(database.connection(), seeds.ticks(30))

    def restart(message: Message) -> None:
        if message.event_id == promised[0]:
            own_postgres.stop("immediate")
            own_postgres.start()

    bench = Bench(database.connection, script=restart)
    bench.while_asleep = lambda _nap: time.sleep(0.2)  # the restart takes its time, whatever the relay's clock says
    assert numbers(bench.run()) == (30, 30, 0, 0, 0)
    assert {row["state"] for row in seeds.outbox(database.connection()).values()} == {"delivered"}
    database.close()


class AnswerLost:
    """A connection that breaks once a statement with these words is committed, and before its answer is there."""

    def __init__(self, url: str, words: str) -> None:
        self._database = Database(lambda: url, application_name="relay")
        self._words = words
        self._lost = False

    def __call__(self) -> Any:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database.connection(), name)

    def execute(self, query: Any, *arguments: Any) -> Any:
        connection = self._database.connection()
        answer = connection.execute(query, *arguments)
        if self._words in query and not self._lost:
            self._lost = True
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer


def test_a_settlement_whose_answer_is_lost_counts_once_and_as_what_it_was(
    app: Connection[Any], database: TestDatabase
) -> None:
    seeds.promise(app, seeds.ticks(30))
    with AnswerLost(database.app_url, "settled AS (") as connection:
        bench = Bench(connection)
        assert numbers(bench.run()) == (30, 30, 0, 0, 0)
    assert (bench.telemetry.totals["EventsPublished"], bench.telemetry.totals["LeaseLost"]) == (30, 0)
    assert len(bench.fake.sent) == 30


def test_a_backlog_that_cannot_be_counted_does_not_hide_what_was_done(
    app: Connection[Any], database: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    seeds.promise(app, seeds.ticks(30))
    with AnswerLost(database.app_url, "min(created_at)") as connection:
        bench = Bench(connection)
        assert bench.run().published == 30
    assert "OutboxPending" not in bench.telemetry.totals
    assert bench.telemetry.totals["RelayDuration"] >= 0
    assert "the backlog is unknown" in caplog.text


def test_a_lock_that_outlasts_the_invocation_is_named_and_what_was_sent_is_settled_when_it_goes(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds.promise(app, seeds.ticks(30))
    monkeypatch.setattr(ledger_module, "LAST_SECONDS", 597)  # of 600: three are left
    monkeypatch.setattr(ledger_module, "RECONNECT_SECONDS", 0)  # the clock stands still, and the lock is held for long
    own = Database(lambda: database.app_url, application_name="relay")

    def lock(_message: Message) -> None:
        owner.execute("SELECT FROM outbox FOR UPDATE")

    bench = Bench(own.connection, script=lock)
    with owner.transaction():
        with pytest.raises(DatabaseUnavailable, match="does somebody hold a lock on the outbox"):
            bench.run()
        assert {row["state"] for row in seeds.outbox(app).values()} == {"in_flight"}
    while {row["state"] for row in seeds.outbox(app).values()} != {"delivered"}:
        time.sleep(0.02)
    assert bench.run().claimed == 0
    assert len(bench.fake.sent) == 30
    own.close()


def test_a_database_that_is_away_when_the_time_is_over_is_not_waited_for(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_postgres.url()
    database = Database(lambda: url, application_name="relay")
    seeds.promise(database.connection(), seeds.ticks(30))
    monkeypatch.setattr(ledger_module, "LAST_SECONDS", 599)
    monkeypatch.setattr(ledger_module, "RECONNECT_SECONDS", 1e6)

    def crash(_message: Message) -> None:
        if own_postgres.running:
            own_postgres.stop("immediate")

    bench = Bench(database.connection, script=crash)
    bench.while_asleep = lambda _nap: time.sleep(0.01)
    with pytest.raises(DatabaseUnavailable, match="before the invocation's time was over"):
        bench.run()
    database.close()


def test_a_probe_that_nothing_was_there_for_is_not_used_up(app: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(1))
    app.execute("UPDATE outbox SET next_attempt_at = now() + interval '60 s'")
    app.execute(
        "INSERT INTO circuit_breakers (name, state, consecutive_failures, opened_at, retry_at, last_error)"
        " VALUES ('ticks', 'open', 3, now(), now(), 'away')"
    )
    bench = Bench(lambda: app)
    assert bench.run().claimed == 0
    seeds.promise(app, seeds.ticks(10)[1:])
    assert bench.run().published == 9
    assert breaker_states(app) == {"ticks": "closed"}


def breaker_states(connection: Connection[Any]) -> dict[str, str]:
    return dict(connection.execute("SELECT name, state FROM circuit_breakers").fetchall())


def test_a_settlement_that_fails_counts_nothing(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.promise(app, seeds.ticks(3))
    owner.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no more''; END'"
    )
    owner.execute(
        "CREATE TRIGGER refuses BEFORE UPDATE ON outbox FOR EACH ROW WHEN (new.delivered_at IS NOT NULL)"
        " EXECUTE FUNCTION refuse()"
    )
    bench = Bench(lambda: app)
    with pytest.raises(psycopg.errors.RaiseException, match="no more"):
        bench.run()
    assert bench.telemetry.totals["EventsPublished"] == 0
    assert {row["state"] for row in seeds.outbox(app).values()} == {"in_flight"}
