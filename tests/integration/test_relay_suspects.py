"""Suspects: a message that always draws nonsense blocks nobody and ends; an outage charges nobody."""

import time
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.relay_bench import MAX_ATTEMPTS, SYSTEM, Bench, done, only

from control_plane.model.lifecycle import NoVerdict, Outcome, QueueFault
from control_plane.outbox import claims
from control_plane.outbox.invocation import RelayResult
from control_plane.outbox.publisher import Message

SILENCE = NoVerdict("no word of it")


def attempts(connection: Connection[Any]) -> Counter[int]:
    """Returns how many deliveries have made how many attempts."""
    return Counter(row["delivery_attempts"] for row in seeds.deliveries(connection).values())


def nonsense_bench(connection: Connection[Any], culprit: UUID, **options: Any) -> Bench:
    """Makes a relay whose queue answers nonsense to a batch with the culprit in it."""

    def outcome(message: Message) -> Outcome | None:
        batch = next(batch for _, batch in reversed(bench.fake.sends) if message in batch)
        return SILENCE if any(UUID(one.event_id) == culprit for one in batch) else None

    bench = Bench(lambda: connection, script=outcome, failure_threshold=3, **options)
    return bench


def test_one_nonsense_message_among_a_thousand_is_dead_lettered_alone(app: Connection[Any]) -> None:
    stored = seeds.store(app, seeds.ticks(1001))
    culprit = stored[500]
    bench = nonsense_bench(app, culprit, concurrency=2)
    for _ in range(MAX_ATTEMPTS + 1):
        bench.run()
        seeds.pass_time(app)
    rows = seeds.deliveries(app)
    assert Counter(row["state"] for row in rows.values()) == {"delivered": 1000, "dead_lettered": 1}
    assert rows[culprit]["last_error"] == f"gave up after {MAX_ATTEMPTS} attempts: {SILENCE.reason}"
    assert [attempt for event_id, attempt, _, _ in seeds.failed_attempts(app) if event_id == culprit] == [1, 2, 3, 4, 5]
    assert {row["delivery_attempts"] for event_id, row in rows.items() if event_id != culprit} == {1}
    assert bench.relay.run(remaining_seconds=lambda: 600).breakers["signal_lab"] == "closed"


def test_publisher_failing_on_one_message_spares_the_others(app: Connection[Any]) -> None:
    stored = seeds.store(app, seeds.ticks(30))

    def trip(message: Message) -> Outcome | None:
        if UUID(message.event_id) == stored[15]:
            raise RuntimeError("a bug")
        return None

    bench = Bench(lambda: app, script=trip, failure_threshold=3)
    assert done(bench.run()) == RelayResult(claimed=30, published=20, released=10)
    for _ in range(MAX_ATTEMPTS):
        seeds.pass_time(app)
        bench.run()
    rows = seeds.deliveries(app)
    assert Counter(row["state"] for row in rows.values()) == {"delivered": 29, "dead_lettered": 1}
    assert rows[stored[15]]["last_error"] == "gave up after 5 attempts: RuntimeError: a bug"


def test_suspects_are_sent_alone_and_behind_the_others(app: Connection[Any]) -> None:
    suspects = seeds.store(app, seeds.ticks(10))
    bench = Bench(lambda: app, script=only(SILENCE, *suspects), failure_threshold=3)
    assert done(bench.run()) == RelayResult(claimed=10, released=10)
    fresh = seeds.store(app, seeds.ticks(20))
    seeds.pass_time(app)
    bench = Bench(lambda: app)
    assert done(bench.run()) == RelayResult(claimed=20, published=20)
    sends = [[UUID(message.event_id) for message in batch] for _, batch in bench.fake.sends]
    assert sends[0] == fresh
    assert sorted(sends[1:]) == sorted([event_id] for event_id in suspects)


@pytest.mark.parametrize("outcome", [SILENCE, QueueFault("down")], ids=["silence", "refusal"])
def test_an_outage_of_any_length_charges_nobody(app: Connection[Any], outcome: Outcome) -> None:
    seeds.store(app, seeds.ticks(25))
    bench = Bench(lambda: app, script=lambda _message: outcome, failure_threshold=3)
    for _ in range(4 * MAX_ATTEMPTS):
        bench.run()
        seeds.pass_time(app)
        seeds.cool_down(app)
    assert attempts(app) == {0: 25}
    assert Bench(lambda: app).run().published == 25
    assert attempts(app) == {1: 25}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_queue_failing_after_recovery_charges_at_most_one_message(app: Connection[Any], concurrency: int) -> None:
    seeds.store(app, seeds.ticks(25))
    accepts = 0

    def outcome(_message: Message) -> Outcome | None:
        nonlocal accepts
        time.sleep(0.01)  # so that as many sends are under way as there are senders
        accepts -= 1
        return None if accepts >= 0 else SILENCE

    bench = Bench(lambda: app, script=outcome, failure_threshold=3, concurrency=concurrency)
    bench.run()
    accepts = 5
    for _ in range(4 * MAX_ATTEMPTS):
        seeds.pass_time(app)
        seeds.cool_down(app)
        bench.run()
    pending = [row["delivery_attempts"] for row in seeds.deliveries(app).values() if row["state"] != "delivered"]
    assert len(pending) == 20
    assert sum(pending) <= 1


def test_lone_silent_message_is_not_charged_without_other_verdicts(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    bench = Bench(lambda: app, script=lambda _message: SILENCE, failure_threshold=3)
    for _ in range(2 * MAX_ATTEMPTS):
        bench.run()
        seeds.pass_time(app)
        seeds.cool_down(app)
    assert seeds.deliveries(app)[event_id]["delivery_attempts"] == 0


def test_probes_rotate_among_messages(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    bench = Bench(lambda: app, script=lambda _message: SILENCE)
    for _ in range(4):
        bench.run()
        seeds.cool_down(app)
    assert {len(batch) for _, batch in bench.fake.sends[1:]} == {1}
    assert len({batch[0].event_id for _, batch in bench.fake.sends[1:]}) == 3


def test_a_silent_message_does_not_stop_another_subscription(app: Connection[Any]) -> None:
    seeds.store(app, [*seeds.ticks(3), *seeds.failures(4)])
    bench = Bench(lambda: app, script=lambda m: SILENCE if m.subscription == "signal_lab" else None)
    assert done(bench.run()) == RelayResult(claimed=7, published=4, released=3)
    assert len(bench.fake.queues[SYSTEM]) == 4


def test_silent_message_does_not_take_every_probe(app: Connection[Any]) -> None:
    (culprit,) = seeds.store(app, seeds.ticks(1))
    bench = Bench(lambda: app, script=only(SILENCE, culprit), failure_threshold=3)
    for _ in range(3):  # With one message in the lane, silence counts as an outage.
        bench.run()
        seeds.pass_time(app)
    assert bench.run().breakers["signal_lab"] == "open"
    seeds.store(app, seeds.ticks(30)[1:])
    seeds.pass_time(app)
    seeds.cool_down(app)
    bench.run()
    assert bench.run().breakers["signal_lab"] == "closed"
    for _ in range(MAX_ATTEMPTS + 1):
        seeds.pass_time(app)
        bench.run()
    rows = seeds.deliveries(app)
    assert Counter(row["state"] for row in rows.values()) == {"delivered": 29, "dead_lettered": 1}
    assert rows[culprit]["state"] == "dead_lettered"


def test_ten_relays_killed_with_the_same_suspects_dead_letter_none(app: Connection[Any]) -> None:
    suspects = seeds.store(app, seeds.ticks(4))
    bench = Bench(lambda: app, script=only(SILENCE, *suspects), failure_threshold=3)
    bench.run()
    seeds.store(app, seeds.ticks(5)[4:])
    assert Bench(lambda: app).run().published == 1  # others are accepted after they became suspect
    for number in range(10):
        seeds.pass_time(app)
        killed_with = claims.claim(
            app,
            token=uuid4(),
            claimed_by=f"killed-{number}",
            lanes=seeds.limits(10),
            lease_seconds=30,
            max_attempts=MAX_ATTEMPTS,
        )
        assert len(killed_with.deliveries) == len(suspects)
    seeds.pass_time(app)
    assert Bench(lambda: app).run().published == len(suspects)
    rows = seeds.deliveries(app)
    assert {row["state"] for row in rows.values()} == {"delivered"}
    assert [rows[event_id]["delivery_attempts"] for event_id in suspects] == [1 + 10 // claims.LEASES_PER_ATTEMPT] * 4


@pytest.mark.parametrize("culprits", [2, 3])
def test_several_silent_messages_are_given_up_one_after_another(app: Connection[Any], culprits: int) -> None:
    ticks = seeds.ticks(culprits + 20 * culprits)
    silent = seeds.store(app, ticks[:culprits])
    bench = Bench(lambda: app, script=only(SILENCE, *silent), failure_threshold=3)
    for tick in ticks[culprits:]:
        seeds.store(app, [tick])  # These are claimed and accepted together with the silent one.
        bench.run()
        seeds.pass_time(app)
        seeds.cool_down(app)
    rows = seeds.deliveries(app)
    assert {rows[event_id]["state"] for event_id in silent} == {"dead_lettered"}
    assert Counter(row["state"] for row in rows.values()) == {
        "delivered": 20 * culprits,
        "dead_lettered": culprits,
    }
