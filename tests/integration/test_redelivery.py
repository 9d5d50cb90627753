"""What queues were given that are gone is promised anew, and nothing else."""

from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.running_cloud import deliver, give_up

from control_plane.model.lifecycle import Accepted
from control_plane.ops.redelivery import promise_lost
from local_cloud import database as local_database

REASON = "its queues are gone"


@pytest.fixture
def event_ids(app: Connection[Any], owner: Connection[Any]) -> list[UUID]:
    """Ticks that were processed, delivered and given up on, a delivered failure, and a tick that is pending."""
    given_up = seeds.store(app, [seeds.tick(2)])
    give_up(owner, given_up, "no luck")
    delivered = seeds.store(app, seeds.ticks(2)) + seeds.store(app, seeds.failures(1))
    deliver(owner)
    process(app, delivered[0])
    return [*delivered[:2], *given_up, delivered[2], *seeds.store(app, [seeds.tick(3)])]


def process(app: Connection[Any], event_id: UUID) -> None:
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [event_id])


def pending(connection: Connection[Any]) -> dict[UUID, list[tuple[str, bool]]]:
    """Of each event that is pending, for whom, and whether an operation has promised it."""
    found: dict[UUID, list[tuple[str, bool]]] = {}
    for event_id, subscription, of_operation in connection.execute(
        "SELECT event_id, subscription, operation_id IS NOT NULL FROM pending_deliveries"
        " JOIN outbox ON outbox.id = outbox_id ORDER BY outbox_id, 3"
    ):
        found.setdefault(event_id, []).append((subscription, of_operation))
    return found


def test_what_was_delivered_and_not_processed_is_promised_once(
    app: Connection[Any], owner: Connection[Any], event_ids: list[UUID]
) -> None:
    assert promise_lost(owner, requested_by="ada", reason=REASON) == {"signal_lab": 1}
    assert pending(owner) == {event_ids[1]: [("signal_lab", True)], event_ids[4]: [("signal_lab", False)]}
    operation = owner.execute("SELECT kind, state, requested_by, reason, progress FROM operations").fetchall()
    assert operation == [("redrive", "done", "ada", REASON, {"deliveries": 1})]
    assert promise_lost(owner, requested_by="ada", reason=REASON) == {}, "it is pending already"
    assert len(owner.execute("SELECT FROM operations").fetchall()) == 1


def test_what_is_lost_again_is_promised_again(
    app: Connection[Any], owner: Connection[Any], event_ids: list[UUID]
) -> None:
    promise_lost(owner, requested_by="ada", reason=REASON)
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    assert promise_lost(owner, requested_by="ada", reason=REASON) == {"signal_lab": 2}
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    for event_id in (event_ids[1], event_ids[4]):
        process(app, event_id)
    assert promise_lost(owner, requested_by="ada", reason=REASON) == {}


def test_a_subscription_that_is_gone_is_promised_nothing(owner: Connection[Any], event_ids: list[UUID]) -> None:
    owner.execute("UPDATE subscriptions SET removed_at = now() WHERE name = 'signal_lab'")
    assert promise_lost(owner, requested_by="ada", reason=REASON) == {}


def test_a_new_stack_has_it_promised_as_the_owner(
    database: TestDatabase, owner: Connection[Any], event_ids: list[UUID]
) -> None:
    assert local_database.promise_lost(database.owner_url) == 1
    ((requested_by, reason),) = owner.execute("SELECT requested_by, reason FROM operations").fetchall()
    assert requested_by == "acp up"
    assert "queues" in reason
