"""What a relay that lost its lease, or died, leaves to the next relay."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.relay_bench import MAX_ATTEMPTS, Bench, done, only

from control_plane.model.lifecycle import Failed
from control_plane.outbox import claims
from control_plane.outbox.invocation import RelayResult
from control_plane.outbox.publisher import Message
from control_plane.outbox.relay import CLAIM_BYTES
from control_plane.platform.database import connect


def test_a_relay_that_lost_its_lease_changes_nothing(app: Connection[Any], database: TestDatabase) -> None:
    expected = seeds.store(app, seeds.ticks(5))
    with connect(database.app_url, application_name="second") as connection:
        second = Bench(lambda: connection, name="second", script=only(Failed("by the second"), expected[0]))

        def overtaken(message: Message) -> None:
            if UUID(message.event_id) == expected[0]:
                seeds.pass_time(connection)
                assert done(second.run()) == RelayResult(claimed=5, published=4, failed=1)

        first = Bench(lambda: app, name="first", script=overtaken, claim_size=5)  # 5 in flight: it claims no more
        assert done(first.run()) == RelayResult(claimed=5, released=5)
    assert first.telemetry.totals["LeaseLost"] == 5
    assert first.telemetry.totals["EventsPublished"] == 0
    rows = seeds.deliveries(app)
    assert {row["delivery_attempts"] for row in rows.values()} == {1}  # The lost attempt was given back.
    assert rows[expected[0]]["last_error"] == "by the second"
    assert {rows[event_id]["state"] for event_id in expected[1:]} == {"delivered"}
    second_ids = {UUID(message.event_id) for message in second.fake.sent}
    assert second_ids == set(expected[1:])
    lost = [failure for failure in seeds.failed_attempts(app) if failure[2] == "first"]
    assert [(event_id, attempt) for event_id, attempt, _, _ in lost] == [(event_id, 1) for event_id in expected]
    assert {"lease ran out" in error for _, _, _, error in lost} == {True}


def lose(connection: Connection[Any], name: str) -> list[claims.ClaimedDelivery]:
    """Claims what is due, like a relay that is then killed."""
    claimed = claims.claim(
        connection,
        token=uuid4(),
        claimed_by=name,
        lanes=seeds.limits(10),
        lease_seconds=30,
        max_attempts=MAX_ATTEMPTS,
    )
    seeds.pass_time(connection)
    return list(claimed.deliveries)


def test_attempts_lost_with_their_relays_are_recorded_and_given_back(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    assert [delivery.message.attempt for delivery in lose(app, "doomed-1")] == [1]
    assert lose(app, "marks it suspect") == []
    for number in range(2, 3 * MAX_ATTEMPTS):
        (delivery,) = lose(app, f"doomed-{number}")
        assert (delivery.message.attempt, delivery.message.is_suspect) == (1, True)
    assert done(Bench(lambda: app).run()) == RelayResult(claimed=1, published=1)
    assert {row["state"] for row in seeds.deliveries(app).values()} == {"delivered"}
    assert [(lost, attempt, by) for lost, attempt, by, _ in seeds.failed_attempts(app)] == [
        (event_id, 1, f"doomed-{number}") for number in range(1, 3 * MAX_ATTEMPTS)
    ]


def test_message_that_kills_its_relays_is_dead_lettered(app: Connection[Any]) -> None:
    killer, *_ = seeds.store(app, seeds.ticks(3))
    lose(app, "doomed-1")
    lose(app, "marks them suspect")
    app.execute(
        "UPDATE pending_deliveries SET next_attempt_at = now() + interval '1 hour' FROM outbox"
        " WHERE outbox.id = outbox_id AND event_id = %s",
        [killer],
    )
    assert done(Bench(lambda: app).run()) == RelayResult(claimed=2, published=2)
    seeds.pass_time(app)
    for lost in range(1, MAX_ATTEMPTS * claims.LEASES_PER_ATTEMPT):  # The very first lease was lost before.
        (delivery,) = lose(app, f"killed-{lost}")
        assert delivery.message.attempt == 1 + lost // claims.LEASES_PER_ATTEMPT
    bench = Bench(lambda: app)
    assert done(bench.run()) == RelayResult(claimed=1, dead_lettered=1)
    assert bench.fake.sends == []
    row = seeds.deliveries(app)[killer]
    assert row["state"] == "dead_lettered"
    assert row["last_error"] == f"gave up after 5 attempts: {claims.LEASE_RAN_OUT}"
    assert bench.telemetry.totals["EventsDeadLettered"] == 1


def test_lost_attempt_is_recorded_once_while_waiting_for_room(app: Connection[Any]) -> None:
    stored = [seeds.store_body(app, {"text": "x" * 1000}) for _ in range(3)]

    def claim(room: int) -> claims.Claim:
        return claims.claim(
            app, token=uuid4(), claimed_by="r", lanes=seeds.limits(100, bytes_=room), lease_seconds=30, max_attempts=5
        )

    assert len(claim(CLAIM_BYTES).deliveries) == 3
    seeds.pass_time(app)
    while claim(1).rows:  # One row at a time, because the others do not fit.
        pass
    assert [(event_id, attempt) for event_id, attempt, _, _ in seeds.failed_attempts(app)] == [
        (event_id, 1) for event_id in stored
    ]


def test_a_lowered_limit_ends_what_has_had_as_many_attempts(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    bench = Bench(lambda: app, script=only(Failed("no"), event_id))
    for _ in range(3):
        bench.run()
        seeds.pass_time(app)
    assert done(Bench(lambda: app, max_attempts=2).run()) == RelayResult(claimed=1, dead_lettered=1)
    assert seeds.deliveries(app)[event_id]["last_error"] == "gave up after 3 attempts: no"
    assert len(seeds.failed_attempts(app)) == 3


@pytest.mark.parametrize("relays", [2, 4])
def test_concurrent_relays_publish_two_thousand_rows_once_each(
    app: Connection[Any], database: TestDatabase, relays: int
) -> None:
    expected = seeds.store(app, seeds.ticks(2_000))

    def work(number: int) -> Bench:
        with connect(database.app_url, application_name=f"r{number}") as connection:
            bench = Bench(lambda: connection, name=f"r{number}", claim_size=37, concurrency=4)
            bench.run()
            return bench

    with ThreadPoolExecutor(relays) as pool:
        benches = list(pool.map(work, range(relays)))
    sent = Counter(UUID(message.event_id) for bench in benches for message in bench.fake.sent)
    assert sent == Counter(expected)
    assert {row["state"] for row in seeds.deliveries(app).values()} == {"delivered"}
    assert all(bench.telemetry.totals["LeaseLost"] == 0 for bench in benches)
