"""Dead letters on a real Postgres: they are listed with their reason, and redriven once with fresh attempts."""

import threading
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection, errors
from psycopg.rows import dict_row
from tests.conftest import SUBSCRIPTIONS, TestDatabase
from tests.integration import seeds

from control_plane.model.lifecycle import Accepted, Failed, MessageFault
from control_plane.ops.dead_letters import DeadLetterFilter, RedriveError, RedriveReport, read_dead_letters, redrive
from control_plane.ops.subscriptions import REMOVED, sync_subscriptions
from control_plane.platform.database import connect

EVERYTHING = DeadLetterFilter()


def dead(connection: Connection[Any], count: int = 1, *, reason: str = "too large") -> list[int]:
    """Makes new dead letters of signal_lab; returns their ids in order."""
    known = {letter.id for letter in read_dead_letters(connection, limit=1000)}
    minute = 100 * len(known)
    with connection.transaction():
        seeds.store(connection, [seeds.tick(minute + number) for number in range(count)])
    seeds.settle(connection, seeds.claim(connection), MessageFault(reason))
    return sorted({letter.id for letter in read_dead_letters(connection, limit=1000)} - known)


def redrive_all(owner: Connection[Any]) -> RedriveReport:
    return redrive(owner, EVERYTHING, everything=True, requested_by="kim")


def operations(connection: Connection[Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM operations WHERE kind = 'redrive' ORDER BY requested_at").fetchall()


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
    report = redrive(owner, DeadLetterFilter(subscription="signal_lab"), requested_by="kim", reason="it is up again")
    assert report == RedriveReport(
        dry_run=False, operation_id=report.operation_id, redriven={"signal_lab": 1}, refused={}, not_open=[]
    )
    for attempt in (1, 2):
        claim = seeds.claim(app)
        assert [delivery.message.attempt for delivery in claim.deliveries] == [attempt]
        seeds.settle(app, claim, Failed("once more"))
        seeds.pass_time(app)
    assert seeds.settle(app, seeds.claim(app), Accepted("m")) == [event_id]
    assert app.execute("SELECT operation_id, delivery_attempts FROM deliveries").fetchall() == [
        (report.operation_id, 3)
    ]


def test_a_redrive_is_recorded_as_an_operation(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app, 3)
    chosen = DeadLetterFilter(subscription="signal_lab", reason="large")
    report = redrive(owner, chosen, requested_by="kim", reason="the limit was raised")
    [operation] = operations(app)
    assert operation["operation_id"] == report.operation_id
    assert operation == operation | {"state": "done", "requested_by": "kim", "reason": "the limit was raised"}
    assert operation["filter"] == {"subscription": "signal_lab", "reason": "large"}
    assert operation["progress"] == {"dead_letters": {"signal_lab": 3}, "deliveries": 3}
    assert operation["finished_at"] is not None


def test_a_redrive_keeps_the_old_failures(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    seeds.give_up(app, attempts=2)
    before = seeds.failed_attempts(app)
    redrive_all(owner)
    assert seeds.failed_attempts(app) == before
    assert len(before) == 2


def test_a_dry_run_counts_and_changes_nothing(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app, 3)
    report = redrive(owner, EVERYTHING, everything=True, requested_by="kim", dry_run=True)
    assert report == replace(report, dry_run=True, operation_id=None, redriven={"signal_lab": 3})
    assert len(read_dead_letters(app, limit=10)) == 3
    assert (operations(app), seeds.claim(app).rows) == ([], [])


def test_everything_is_redriven_only_on_request(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app, 2)
    with pytest.raises(RedriveError, match="name ids, a subscription, a reason, or ask for everything"):
        redrive(owner, EVERYTHING, requested_by="kim")
    assert redrive(owner, DeadLetterFilter(ids=[]), requested_by="kim").redriven == {}
    assert len(read_dead_letters(app, limit=10)) == 2
    assert redrive_all(owner).redriven == {"signal_lab": 2}


def test_a_redrive_needs_a_name(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app)
    with pytest.raises(RedriveError, match="who asks"):
        redrive(owner, EVERYTHING, everything=True, requested_by=" ")


def test_ids_that_are_not_open_are_named(app: Connection[Any], owner: Connection[Any]) -> None:
    first, second = dead(app, 2)
    redrive(owner, DeadLetterFilter(ids=[first]), requested_by="kim")
    report = redrive(owner, DeadLetterFilter(ids=[10**9, first, second]), requested_by="kim")
    assert report == replace(report, redriven={"signal_lab": 1}, not_open=[10**9, first])
    assert report.complaints == [
        f"no open dead letter {number} fits: was it redriven already?" for number in (10**9, first)
    ]


def test_an_empty_redrive_records_no_operation(owner: Connection[Any]) -> None:
    report = redrive_all(owner)
    assert (report.operation_id, report.redriven, operations(owner)) == (None, {}, [])


def test_a_letter_that_dies_again_is_open_again(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app)
    first = redrive_all(owner)
    seeds.settle(app, seeds.claim(app), MessageFault("still too large"))
    [letter] = read_dead_letters(app, limit=10)
    assert letter == replace(letter, operation_id=first.operation_id, reason="still too large")
    assert redrive_all(owner).redriven == {"signal_lab": 1}
    assert len(read_dead_letters(app, limit=10, with_resolved=True)) == 2


def test_two_letters_of_one_message_become_one_delivery(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app)
    owner.execute(
        "INSERT INTO dead_letters (outbox_id, subscription, operation_id, promised_at, delivery_attempts, reason)"
        " SELECT outbox_id, subscription, %s, now(), 1, 'a replay died, too' FROM dead_letters",
        [uuid4()],
    )
    report = redrive_all(owner)
    assert report.redriven == {"signal_lab": 2}
    assert len(seeds.claim(app).rows) == 1
    assert operations(app)[0]["progress"]["deliveries"] == 1


def test_letters_of_a_removed_subscription_stay(app: Connection[Any], owner: Connection[Any]) -> None:
    dead(app, 2)
    seeds.store(app, seeds.failures(1))
    assert sync_subscriptions(owner, {"signal_lab": SUBSCRIPTIONS["signal_lab"]}).dead_lettered == 1
    report = redrive_all(owner)
    assert report == replace(report, redriven={"signal_lab": 2}, refused={"system_events": 1})
    [complaint] = report.complaints
    assert complaint.startswith("1 dead letter of subscription system_events stays: it is not active. Deploy")
    [letter] = read_dead_letters(app, limit=10)
    assert letter == replace(letter, subscription="system_events", reason=REMOVED)

    sync_subscriptions(owner, SUBSCRIPTIONS)
    assert redrive_all(owner).redriven == {"system_events": 1}


def test_two_redrives_at_once_redrive_a_letter_once(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    dead(app, 20)
    start, reports = threading.Barrier(4), []

    def run() -> None:
        with connect(database.owner_url, application_name="test") as connection:
            start.wait(30)
            reports.append(redrive_all(connection))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(report.redriven.get("signal_lab", 0) for report in reports) == 20
    assert len(seeds.claim(app).rows) == 20


def test_a_redrive_waits_for_another_of_the_same_letter(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    [letter_id] = dead(app)
    reports: list[RedriveReport] = []

    def run() -> None:
        with connect(database.owner_url, application_name="waiting") as connection:
            reports.append(redrive(connection, DeadLetterFilter(ids=[letter_id]), requested_by="lee"))

    thread = threading.Thread(target=run)
    with owner.transaction():
        redrive(owner, DeadLetterFilter(ids=[letter_id]), requested_by="kim")
        thread.start()
        seeds.wait_until_waiting(database, "waiting")
    thread.join(30)
    assert [(report.redriven, report.not_open) for report in reports] == [({}, [letter_id])]
    assert [operation["requested_by"] for operation in operations(app)] == ["kim"]


def test_the_functions_role_cannot_redrive(app: Connection[Any]) -> None:
    dead(app)
    with pytest.raises(errors.InsufficientPrivilege):
        redrive_all(app)
    assert len(read_dead_letters(app, limit=10)) == 1
