"""Subscriptions are brought in line with the template while ingestion and relays are at work."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import SUBSCRIPTIONS, TestDatabase
from tests.integration import seeds
from tests.integration.redriving import redrive

from control_plane.ingestion.store import store_events
from control_plane.model.lifecycle import Accepted, MessageFault
from control_plane.model.subscription import Subscription
from control_plane.ops.dead_letters import DeadLetterFilter, read_dead_letters
from control_plane.ops.subscriptions import (
    REMOVED,
    SubscriptionError,
    SubscriptionReport,
    sync_subscriptions,
)
from control_plane.platform.database import connect

FROM_NOW = SUBSCRIPTIONS | {"detector": Subscription("market.ticks")}
FROM_BEGINNING = SUBSCRIPTIONS | {"detector": Subscription("market.ticks", from_beginning=True)}
ONLY_SIGNAL_LAB = {"signal_lab": SUBSCRIPTIONS["signal_lab"]}


def pending(connection: Connection[Any], subscription: str) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pending_deliveries WHERE subscription = %s", [subscription]
    ).fetchone()
    assert row is not None
    count: int = row[0]
    return count


def test_syncing_unchanged_subscriptions_changes_nothing(owner: Connection[Any]) -> None:
    assert sync_subscriptions(owner, SUBSCRIPTIONS) == SubscriptionReport()


# Added


def test_a_new_subscription_starts_now(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    assert sync_subscriptions(owner, FROM_NOW) == SubscriptionReport(added=("detector",))
    assert pending(app, "detector") == 0
    seeds.store(app, [seeds.tick(3)])
    assert (pending(app, "detector"), pending(app, "signal_lab")) == (1, 4)
    assert sync_subscriptions(owner, FROM_NOW) == SubscriptionReport()


def test_a_new_subscription_may_start_from_the_beginning(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = seeds.store(app, [*seeds.ticks(3), *seeds.failures(2)])
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    report = sync_subscriptions(owner, FROM_BEGINNING)
    assert report == SubscriptionReport(added=("detector",), backfilled=3)
    claim = seeds.claim(app, subscriptions=["detector"])
    assert set(seeds.settle(app, claim, Accepted("m"))) == set(event_ids[:3])
    assert sync_subscriptions(owner, FROM_BEGINNING) == SubscriptionReport()


def test_a_backfill_is_recorded_as_an_operation(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    sync_subscriptions(owner, FROM_BEGINNING)
    [(operation_id, kind, state, chosen, requested_by)] = app.execute(
        "SELECT operation_id, kind, state, filter, requested_by FROM operations"
    ).fetchall()
    assert (kind, state, requested_by) == ("backfill", "done", "acp_owner")
    assert chosen == {"subscription": "detector", "topic": "market.ticks"}
    assert app.execute(
        "SELECT DISTINCT operation_id, payload_bytes > 0 FROM pending_deliveries WHERE subscription = 'detector'"
    ).fetchall() == [(operation_id, True)]


def test_a_subscription_keeps_its_topic(app: Connection[Any], owner: Connection[Any]) -> None:
    changed = {"signal_lab": Subscription("system.events"), "detector": Subscription("market.ticks")}
    with pytest.raises(SubscriptionError, match=r"signal_lab is for topic market\.ticks.*another name"):
        sync_subscriptions(owner, changed)
    assert app.execute("SELECT name, topic FROM subscriptions WHERE removed_at IS NULL ORDER BY 1").fetchall() == [
        ("signal_lab", "market.ticks"),
        ("system_events", "system.events"),
    ]


# Removed


def test_a_removed_subscriptions_pending_messages_become_dead_letters(
    app: Connection[Any], owner: Connection[Any]
) -> None:
    event_ids = seeds.store(app, [*seeds.ticks(1), *seeds.failures(3)])
    report = sync_subscriptions(owner, ONLY_SIGNAL_LAB)
    assert report == SubscriptionReport(removed=("system_events",), dead_lettered=3)
    letters = read_dead_letters(app, limit=10)
    assert {letter.event_id for letter in letters} == set(event_ids[1:])
    assert {(letter.subscription, letter.reason) for letter in letters} == {("system_events", REMOVED)}
    assert (pending(app, "system_events"), pending(app, "signal_lab")) == (0, 1)


def test_a_removed_subscription_gets_no_further_messages(app: Connection[Any], owner: Connection[Any]) -> None:
    sync_subscriptions(owner, ONLY_SIGNAL_LAB)
    with app.transaction():
        stored = store_events(app, [], seeds.failures(2))
    assert stored.unsubscribed == {"system.events": 2}
    assert pending(app, "system_events") == 0


def test_a_rolled_back_template_loses_nothing(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = seeds.store(app, seeds.failures(3))
    sync_subscriptions(owner, ONLY_SIGNAL_LAB)
    assert sync_subscriptions(owner, SUBSCRIPTIONS) == SubscriptionReport(added=("system_events",))
    redrive(owner, DeadLetterFilter(reason=REMOVED))
    assert set(seeds.settle(app, seeds.claim(app), Accepted("m"))) == set(event_ids)


def test_a_returning_subscription_is_not_backfilled(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    sync_subscriptions(owner, FROM_BEGINNING)
    sync_subscriptions(owner, SUBSCRIPTIONS)
    report = sync_subscriptions(owner, FROM_BEGINNING)
    assert report == SubscriptionReport(added=("detector",), backfilled=0)


def test_a_claim_of_a_removed_subscription_settles_nothing(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.failures(1))
    claim = seeds.claim(app)
    sync_subscriptions(owner, ONLY_SIGNAL_LAB)
    assert seeds.settle(app, claim, MessageFault("too large")) == []
    assert [letter.reason for letter in read_dead_letters(app, limit=10)] == [REMOVED]


# Concurrent changes


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def sync_in(
    pool: ThreadPoolExecutor, database: TestDatabase, wanted: dict[str, Subscription]
) -> Future[SubscriptionReport]:
    def run() -> SubscriptionReport:
        with connect(database.owner_url, application_name="syncing") as connection:
            return sync_subscriptions(connection, wanted)

    return pool.submit(run)


@pytest.mark.parametrize(("wanted", "from_before"), [(FROM_NOW, 0), (FROM_BEGINNING, 2)])
def test_adding_a_subscription_waits_for_ingestion_under_way(
    app: Connection[Any],
    database: TestDatabase,
    pool: ThreadPoolExecutor,
    wanted: dict[str, Subscription],
    from_before: int,
) -> None:
    with app.transaction():
        store_events(app, [], seeds.ticks(2))
        adding = sync_in(pool, database, wanted)
        seeds.wait_until_waiting(database, "syncing")
    assert adding.result(30).backfilled == from_before
    seeds.store(app, [seeds.tick(2)])
    # What was under way counts as earlier; nothing after it is missed.
    assert pending(app, "detector") == from_before + 1


def test_ingestion_waiting_for_a_new_subscription_delivers_to_it(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, pool: ThreadPoolExecutor
) -> None:
    def ingest() -> None:
        with connect(database.app_url, application_name="ingesting") as connection, connection.transaction():
            store_events(connection, [], seeds.ticks(2))

    with owner.transaction():
        sync_subscriptions(owner, FROM_NOW)
        ingesting = pool.submit(ingest)
        seeds.wait_until_waiting(database, "ingesting")
    ingesting.result(30)
    assert (pending(app, "detector"), pending(app, "signal_lab")) == (2, 2)


def test_ingestion_and_changes_at_random_miss_nothing(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, pool: ThreadPoolExecutor
) -> None:
    def ingest() -> None:
        with connect(database.app_url, application_name="ingesting") as connection:
            for minute in range(60):
                with connection.transaction():
                    store_events(connection, [], [seeds.tick(minute)])

    ingesting = pool.submit(ingest)
    while not ingesting.done():
        for number in range(3):
            wanted = SUBSCRIPTIONS | {f"late_{number}": Subscription("market.ticks", from_beginning=True)}
            sync_subscriptions(owner, SUBSCRIPTIONS)
            sync_subscriptions(owner, wanted)
    ingesting.result(30)
    wanted = SUBSCRIPTIONS | {"last": Subscription("market.ticks", from_beginning=True)}
    sync_subscriptions(owner, wanted)
    assert (pending(app, "signal_lab"), pending(app, "last")) == (60, 60)
    # Each was added during ingestion, and no message is both in the live flow and the backfill.
    twice = app.execute(
        "SELECT subscription, id FROM outbox_states WHERE subscription LIKE 'late%'"
        " GROUP BY subscription, id HAVING count(*) > 1"
    ).fetchall()
    assert twice == []


def test_two_changes_at_once_wait_for_each_other(
    owner: Connection[Any], database: TestDatabase, pool: ThreadPoolExecutor
) -> None:
    with owner.transaction():
        sync_subscriptions(owner, FROM_BEGINNING)
        other = sync_in(pool, database, FROM_BEGINNING)
        seeds.wait_until_waiting(database, "syncing")
    assert other.result(30) == SubscriptionReport()


def test_removing_a_subscription_waits_for_a_redrive_under_way(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, pool: ThreadPoolExecutor
) -> None:
    seeds.store(app, seeds.failures(1))
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    with owner.transaction():
        redrive(owner, DeadLetterFilter())
        removing = sync_in(pool, database, ONLY_SIGNAL_LAB)
        seeds.wait_until_waiting(database, "syncing")
    assert removing.result(30).dead_lettered == 1
    assert pending(app, "system_events") == 0
