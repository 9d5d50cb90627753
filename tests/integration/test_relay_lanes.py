"""Lanes: no subscription waits for another, late commits are found, and a probe is a message that is really sent."""

from threading import Event
from typing import Any
from uuid import UUID

from psycopg import Connection
from tests.conftest import PASSWORD, TestDatabase
from tests.integration import seeds
from tests.integration.relay_bench import SYSTEM, Bench, done
from tests.waiting import wait_until

from control_plane.model.lifecycle import Outcome, QueueFault
from control_plane.outbox.invocation import RelayResult
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message
from control_plane.platform.database import connect
from domains import EVENT_TYPES


def test_small_messages_do_not_wait_for_a_slow_queue(app: Connection[Any]) -> None:
    large = [seeds.store_body(app, {"text": "x" * 900_000}) for _ in range(60)]
    small = seeds.store(app, seeds.failures(5))
    small_are_there = Event()

    def slow(message: Message) -> None:
        if message.subscription == "signal_lab":
            assert small_are_there.wait(10)
        elif len(bench.fake.queues[SYSTEM]) == len(small) - 1:
            small_are_there.set()

    bench = Bench(lambda: app, script=slow, concurrency=4)
    assert bench.run().published == 65
    assert {UUID(message.event_id) for message in bench.fake.sent} == {*large, *small}


def test_new_messages_are_sent_while_another_queue_hangs(app: Connection[Any], database: TestDatabase) -> None:
    seeds.store(app, seeds.ticks(300))
    late = Event()

    def time_passes_until_it_is_there() -> bool:
        bench.clock.sleep(0.05)
        return late.is_set()

    def hang(message: Message) -> None:
        if message.subscription == "system_events":
            late.set()
        elif len(bench.fake.sends) == 1:
            seeds.store(app, seeds.failures(1))
        if message.subscription == "signal_lab":
            wait_until(time_passes_until_it_is_there)

    with connect(database.app_url, application_name="relay") as connection:
        bench = Bench(lambda: connection, script=hang, claim_size=100)
        assert bench.run().published == 301


def test_late_commit_of_an_older_row_is_not_skipped(app: Connection[Any], database: TestDatabase) -> None:
    (first,), (second,) = seeds.ticks(1), seeds.ticks(1, entity_id="MSFT")
    naps_between: list[int] = []
    with connect(database.app_url, application_name="slow writer") as slow:
        bench = Bench(lambda: app)

        def write(nap: int) -> None:
            if nap == 3:
                slow.execute("BEGIN")
                seeds.store(slow, [first])
                seeds.store(app, [second])
            elif len(bench.fake.sent) == 1 and not naps_between:
                slow.execute("COMMIT")
                naps_between.append(nap)
            elif len(bench.fake.sent) == 2 and len(naps_between) == 1:
                naps_between.append(nap)

        bench.while_asleep = write
        assert bench.run(linger=3).published == 2  # Both are sent before the next survey.
    sent = [EVENT_TYPES.parse_event(message.body).entity_id for message in bench.fake.sent]
    assert sent == [second.entity_id, first.entity_id]
    assert naps_between[1] - naps_between[0] <= 2


# Breakers and their probes; test_breakers.py has more


def open_breaker(connection: Connection[Any], name: str = "signal_lab") -> None:
    """Opens a breaker whose probe is due."""
    connection.execute(
        "INSERT INTO circuit_breakers (name, state, consecutive_failures, opened_at, retry_at, last_error)"
        " VALUES (%s, 'open', 3, now(), now(), 'away')",
        [name],
    )


def breaker_states(connection: Connection[Any]) -> dict[str, str]:
    return dict(connection.execute("SELECT name, state FROM circuit_breakers").fetchall())


def test_probe_without_a_message_is_not_used_up(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    app.execute("UPDATE pending_deliveries SET next_attempt_at = now() + interval '60 s'")
    open_breaker(app)
    bench = Bench(lambda: app)
    assert bench.run().claimed == 0
    seeds.store(app, seeds.ticks(10))
    assert bench.run().published == 9
    assert breaker_states(app) == {"signal_lab": "closed"}


def test_exhausted_messages_do_not_use_up_the_probe(app: Connection[Any]) -> None:
    exhausted = seeds.store(app, seeds.ticks(10))
    app.execute("UPDATE pending_deliveries SET delivery_attempts = 5, last_error = 'no'")
    good = seeds.store(app, seeds.ticks(12))
    open_breaker(app)
    bench = Bench(lambda: app)
    assert done(bench.run()) == RelayResult(claimed=12, published=2, dead_lettered=10)
    assert breaker_states(app) == {"signal_lab": "closed"}
    assert {UUID(message.event_id) for message in bench.fake.sent} == set(good)
    rows = seeds.deliveries(app)
    assert {rows[event_id]["last_error"] for event_id in exhausted} == {"gave up after 5 attempts: no"}


def test_oversized_messages_do_not_use_up_the_probe(app: Connection[Any]) -> None:
    for _ in range(3):
        seeds.store_body(app, {"text": "x" * MAX_BATCH_BYTES})
    seeds.store(app, seeds.ticks(2))
    open_breaker(app)
    assert done(Bench(lambda: app).run()) == RelayResult(claimed=5, published=2, dead_lettered=3)
    assert breaker_states(app) == {"signal_lab": "closed"}


def test_a_probe_finds_room_whatever_the_other_lanes_backlog(app: Connection[Any]) -> None:
    for _ in range(30):
        seeds.store_body(app, {"text": "x" * 900_000}, subscriptions=["system_events"])
    seeds.store(app, seeds.ticks(1))
    open_breaker(app)
    probed = Event()

    def slow(message: Message) -> None:
        if message.subscription == "signal_lab":
            probed.set()
        else:
            assert probed.wait(10)

    assert Bench(lambda: app, script=slow).run().published == 31
    assert breaker_states(app) == {"signal_lab": "closed"}


def test_send_begun_before_breaker_opened_does_not_close_it(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(20))
    one_failed = Event()

    def outcome(message: Message) -> Outcome | None:
        if bench.fake.sends[0][1][0] is message:  # The first batch hangs, and is then accepted.
            assert one_failed.wait(10)
            wait_until(lambda: breaker_states(app) == {"signal_lab": "open"})
            bench.clock.sleep(1)
        elif message in bench.fake.sends[1][1]:
            one_failed.set()
            return QueueFault("down")
        return None

    with connect(app.info.dsn + f" password={PASSWORD}", application_name="relay") as connection:
        bench = Bench(lambda: connection, script=outcome, concurrency=2, claim_size=20)
        result = bench.run()
    assert done(result) == RelayResult(claimed=20, published=10, released=10)
    assert breaker_states(app) == {"signal_lab": "open"}
