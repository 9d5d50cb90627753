"""How an invocation keeps to its time, lingers, and hands over."""

from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection
from tests.conftest import PASSWORD, TestDatabase
from tests.integration import seeds
from tests.integration.relay_bench import Bench, done

from control_plane.model.errors import ConfigurationError
from control_plane.outbox import handover
from control_plane.outbox import relay as relay_module
from control_plane.outbox.invocation import POLL_SECONDS, RelayResult
from control_plane.outbox.publisher import Message
from control_plane.platform.database import connect


def test_with_too_little_time_left_nothing_is_claimed(app: Connection[Any]) -> None:
    (event_id,) = seeds.store(app, seeds.ticks(1))
    bench = Bench(lambda: app)
    too_little = bench.fake.send_timeout_seconds + relay_module.SETTLE_SECONDS
    assert bench.run(remaining=too_little).claimed == 0
    row = seeds.deliveries(app)[event_id]
    assert row == row | {"state": "pending", "delivery_attempts": 0}
    assert bench.run(remaining=too_little + 0.1).published == 1


def test_unsent_messages_are_given_back_and_no_send_starts_late(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(100))
    bench = Bench(lambda: app, seconds_per_send=4, lease=600)
    started = bench.clock.now
    result = bench.run(remaining=30)
    # Of 30 s, 2 are kept to settle and 10 for a send, so sends start in the first 18: at 0, 4, 8, 12 and 16 s.
    assert [start - started for start, _ in bench.fake.sends] == [0, 4, 8, 12, 16]
    assert done(result) == RelayResult(claimed=100, published=50, released=50)
    states = Counter((row["state"], row["delivery_attempts"]) for row in seeds.deliveries(app).values())
    assert states == {("delivered", 1): 50, ("pending", 0): 50}
    assert seeds.failed_attempts(app) == []
    assert bench.run().published == 50


def test_no_send_starts_that_could_outlive_its_lease(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(100))
    bench = Bench(lambda: app, seconds_per_send=7, lease=30)
    result = bench.run(remaining=1_000)
    # A claim of 100 rows is 10 sends of 7 s; the sends at 0, 7 and 14 s end before the lease does.
    claims = [start for start, _ in bench.fake.sends]
    assert [start - claims[0] for start in claims[:4]] == [0, 7, 14, 21]
    assert result == replace(result, published=100, failed=0, dead_lettered=0)
    assert result.released > 0
    assert len(bench.fake.sent) == 100


def test_a_lease_shorter_than_a_send_is_refused(app: Connection[Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"LEASE_SECONDS is 10: it must be more than the 10 seconds"):
        Bench(lambda: app, lease=10)


def test_lingering_relay_publishes_later_commits_and_ends_in_time(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    events = seeds.ticks(30)

    def commit_some(nap: int) -> None:
        if nap in {3, 20, 40}:
            seeds.store(app, events[: {3: 10, 20: 20, 40: 30}[nap]])

    bench.while_asleep = commit_some
    started = bench.clock.now
    result = bench.run(remaining=600, linger=55)
    assert result.published == 30
    lingered = bench.clock.now - started
    assert 55 - POLL_SECONDS[1] <= lingered <= 55
    shortest, longest = POLL_SECONDS
    assert bench.naps[0] == pytest.approx(shortest)
    assert max(bench.naps) == pytest.approx(longest)
    assert bench.naps[3] == pytest.approx(shortest)  # After work the relay polls often again.


def test_a_lingering_relay_ends_before_its_invocation_does(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    started = bench.clock.now
    bench.run(remaining=30, linger=600)
    assert bench.clock.now - started <= 30 - relay_module.SETTLE_SECONDS


def test_a_lingering_relay_goes_when_the_next_one_comes(app: Connection[Any], database: TestDatabase) -> None:
    first = Bench(lambda: app, name="first")
    seeds.store(app, seeds.ticks(5))
    with connect(database.app_url, application_name="second") as connection:
        second = Bench(lambda: connection, name="second")
        came = 0.0

        def the_next_one_comes(nap: int) -> None:
            nonlocal came
            if nap == 40:
                came = first.clock.now
                assert lingering(app) == "first"
                second.while_asleep = lambda _nap: None
                second_run.append(second.run(linger=1))
                handover.take_over(app, token=uuid4(), name="third")

        second_run: list[RelayResult] = []
        first.while_asleep = the_next_one_comes
        assert first.run(linger=500).published == 5
    assert len(second_run) == 1
    assert came < first.clock.now <= came + handover.CHECK_SECONDS + POLL_SECONDS[1]
    assert lingering(app) == "third"  # A relay that was relieved does not remove the other one's entry.


def test_a_lingering_relay_removes_its_name_when_it_ends(app: Connection[Any]) -> None:
    bench = Bench(lambda: app)
    seen = []
    bench.while_asleep = lambda _nap: seen.append(lingering(app))
    bench.run(linger=2)
    assert set(seen) == {"r1"}
    assert lingering(app) is None


def test_a_relay_that_only_drains_relieves_nobody(app: Connection[Any]) -> None:
    handover.take_over(app, token=uuid4(), name="on duty")
    Bench(lambda: app).run()
    assert lingering(app) == "on duty"


def test_a_relay_without_the_time_to_claim_relieves_nobody(app: Connection[Any]) -> None:
    handover.take_over(app, token=uuid4(), name="on duty")
    Bench(lambda: app).run(remaining=5, linger=60)
    assert lingering(app) == "on duty"


def test_a_relay_that_is_relieved_under_load_claims_no_more(app: Connection[Any]) -> None:
    events = iter(seeds.ticks(400))
    seeds.store(app, [next(events)])

    def never_ending(message: Message) -> None:
        if bench.clock.now > started + 2:
            handover.take_over(app, token=uuid4(), name="next")
        seeds.store(app, [next(events)])

    with connect(app.info.dsn + f" password={PASSWORD}", application_name="relay") as connection:
        bench = Bench(lambda: connection, script=never_ending, seconds_per_send=0.1)
        started = bench.clock.now
        result = bench.run(linger=300)
    assert result.published < 100
    assert bench.clock.now < started + 10


def lingering(connection: Connection[Any]) -> str | None:
    row = connection.execute("SELECT name FROM relay_handover").fetchone()
    return None if row is None else row[0]


def test_a_relay_without_lingering_drains_and_ends(app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(25))
    bench = Bench(lambda: app, claim_size=10)
    assert bench.run().published == 25
    assert bench.naps == []
