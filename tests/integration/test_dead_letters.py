"""Dead letters on a real Postgres: they are listed with their reason, and redriven once with fresh attempts."""

from dataclasses import replace
from typing import Any

from psycopg import Connection
from tests.conftest import SUBSCRIPTIONS
from tests.integration import seeds
from tests.integration.redriving import redrive

from control_plane.model.lifecycle import Accepted, Failed, MessageFault
from control_plane.operations.kind import Operation
from control_plane.ops.dead_letters import DeadLetterFilter, read_dead_letters
from control_plane.ops.subscriptions import REMOVED, sync_subscriptions

EVERYTHING = DeadLetterFilter()


def dead(connection: Connection[Any], count: int = 1, *, reason: str = "too large") -> list[int]:
    """Makes new dead letters of signal_lab; returns their ids in order."""
    known = {letter.id for letter in read_dead_letters(connection, limit=1000)}
    minute = 100 * len(known)
    with connection.transaction():
        seeds.store(connection, [seeds.tick(minute + number) for number in range(count)])
    seeds.settle(connection, seeds.claim(connection), MessageFault(reason))
    return sorted({letter.id for letter in read_dead_letters(connection, limit=1000)} - known)


def redrive_all(owner: Connection[Any]) -> Operation:
    return redrive(owner, EVERYTHING)


# The list


def test_an_open_dead_letter_is_listed_with_its_reason(app: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    seeds.give_up(app, reason="no luck", attempts=3)
    [letter] = read_dead_letters(app, limit=10)
    assert letter == replace(
        letter,
        event_id=event_id,
        event_type="MARKET_TICK_INGESTED",
        subscription="signal_lab",
        topic="market.ticks",
        delivery_attempts=3,
        reason="gave up after 3 attempts: no luck",
        operation_id=None,
        resolution=None,
    )
    assert 0 <= letter.age_seconds < 60


def test_the_newest_letters_come_first_up_to_the_limit(app: Connection[Any]) -> None:
    ids = dead(app, 5)
    assert [letter.id for letter in read_dead_letters(app, limit=3)] == ids[:1:-1]


def test_a_filter_fits_what_all_its_conditions_fit(app: Connection[Any]) -> None:
    large = dead(app, 2, reason="Too LARGE: 2,000,000 bytes")
    odd = dead(app, 1, reason="an odd 100% character")
    seeds.store(app, seeds.failures(1))
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))

    def found(**conditions: Any) -> list[int]:
        return sorted(letter.id for letter in read_dead_letters(app, DeadLetterFilter(**conditions), limit=10))

    assert found(subscription="signal_lab") == [*large, *odd]
    assert len(found(reason="too large")) == 3
    assert found(reason="too large", subscription="signal_lab") == large
    assert found(reason="100%") == odd
    assert found(reason="%") == odd
    assert found(ids=[large[1], odd[0], 10**9]) == [large[1], *odd]
    assert found(ids=[]) == []
    assert found(ids=odd, reason="too large") == []


def test_a_redriven_letter_is_listed_only_on_request(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app)
    redrive_all(owner)
    assert read_dead_letters(app, limit=10) == []
    [letter] = read_dead_letters(app, limit=10, with_resolved=True)
    assert letter == replace(letter, resolution="redriven", resolved_by="kim")
    assert letter.resolved_at is not None


# Redrive


def test_a_redriven_letter_is_delivered_with_a_fresh_budget(app: Connection[Any], owner: Connection[Any]) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    seeds.give_up(app, attempts=3)
    operation = redrive(owner, DeadLetterFilter(subscription="signal_lab"))
    assert (operation.done, operation.plan["letters"]) == (1, {"signal_lab": 1})
    for attempt in (1, 2):
        claim = seeds.claim(app)
        assert [delivery.message.attempt for delivery in claim.deliveries] == [attempt]
        seeds.settle(app, claim, Failed("once more"))
        seeds.pass_time(app)
    assert seeds.settle(app, seeds.claim(app), Accepted("m")) == [event_id]
    assert app.execute("SELECT operation_id, delivery_attempts FROM deliveries").fetchall() == [
        (operation.operation_id, 3)
    ]


def test_a_redrive_keeps_the_old_failures(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    seeds.give_up(app, attempts=2)
    before = seeds.failed_attempts(app)
    redrive_all(owner)
    assert seeds.failed_attempts(app) == before
    assert len(before) == 2


def test_a_letter_that_dies_again_is_open_again(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app)
    first = redrive_all(owner)
    seeds.settle(app, seeds.claim(app), MessageFault("still too large"))
    [letter] = read_dead_letters(app, limit=10)
    assert letter == replace(letter, operation_id=first.operation_id, reason="still too large")
    assert redrive_all(owner).done == 1
    assert len(read_dead_letters(app, limit=10, with_resolved=True)) == 2


def test_letters_of_a_removed_subscription_stay(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app, 2)
    seeds.store(app, seeds.failures(1))
    assert sync_subscriptions(owner, {"signal_lab": SUBSCRIPTIONS["signal_lab"]}).dead_lettered == 1
    operation = redrive_all(owner)
    assert (operation.done, operation.plan["inactive"]) == (2, {"system_events": 1})
    [letter] = read_dead_letters(app, limit=10)
    assert letter == replace(letter, subscription="system_events", reason=REMOVED)

    sync_subscriptions(owner, SUBSCRIPTIONS)
    assert redrive_all(owner).plan["letters"] == {"system_events": 1}
