"""Erasure: whatever is stored about an entity or an observation goes, a tombstone stays, and it does not come back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.decisions import toy
from tests.integration.decisions.released import release
from tests.integration.decisions.world import World, anomaly
from tests.integration.history import running
from tests.integration.history.test_retention import anchored, count
from tests.integration.test_signal_lab import tick

from control_plane.decisions.audit import audit
from control_plane.ingestion.store import RawPayload, store_events
from control_plane.model.lifecycle import Accepted, MessageFault
from control_plane.operations.history.erasure import Erasure
from control_plane.operations.kind import OperationRefused, State
from control_plane.platform.database import connect
from domains import load_forgetting
from domains.finance import detector, paper_account, signal_lab
from domains.finance.paper_account.reconcile import reconcile

ERASURE = Erasure(load_forgetting())
TOMBSTONE = "INSERT INTO decision_tombstones (decision_id, head_seq, head_hash, cause)"


def store(app: Connection[Any], number: int, *, entity: str = "AAPL") -> list[UUID]:
    """Stores events of an entity with a raw payload; one is delivered, one dead-lettered, the others are pending."""
    raw = RawPayload(uuid4(), "fake", entity, seeds.FIRST_BAR, None, seeds.FIRST_BAR, uuid4(), {"of": entity})
    with app.transaction():
        looks = [replace(look, raw_payload_id=raw.id) for look in seeds.ticks(number, entity_id=entity)]
        stored = store_events(app, [raw], looks)
    for outcome in (Accepted("m"), MessageFault("too large")):
        seeds.settle(app, seeds.claim(app, rows=1), outcome)
    for event in stored.events:
        with app.transaction():
            signal_lab.consume(app, event)
    return [event.event_id for event in stored.events]


def mentions(owner: Connection[Any], text: str) -> list[str]:
    """Returns the tables in which a text is found anywhere."""
    tables = owner.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        " AND relname NOT IN ('paper_positions', 'schema_migrations')"
    ).fetchall()
    found = []
    for (table,) in tables:
        wanted = f"{table} AS held WHERE strpos(to_jsonb(held)::text, %(text)s) > 0"
        if table == "artifacts":
            wanted = f"{table} WHERE position(convert_to(%(text)s, 'UTF8') IN bytes) > 0"
        if owner.execute(f"SELECT FROM {wanted} LIMIT 1".encode(), {"text": text}).fetchone() is not None:
            found.append(table)
    return found


@pytest.mark.parametrize(
    "wanted",
    [
        {}, {"source": "fake"}, {"entity_id": ""}, {"entity_id": "A", "event_id": str(uuid4())}, {"event_id": "x"},
        {"event_id": 7}, {"entity_id": "A\x00"}, {"entity_id": "A", "source": "Fake Source"}, {"entity_id": 7},
        {"entity_id": "A", "take_in_again": "yes"}, {"entity_id": "A", "and": 1},
        {"event_id": str(uuid4()), "source": "fake"},
    ],
)  # fmt: skip
def test_a_filter_that_is_none_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(OperationRefused):
        ERASURE.parse(wanted)


def test_nothing_of_an_erased_entity_is_left(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    store(app, 12, entity="ZZERASED")
    others = store(app, 3, entity="IBM")
    operation = running.plan(owner, maintain, ERASURE, {"entity_id": "ZZERASED", "source": "fake"})
    assert operation.plan["what"]["events"] == 12
    assert operation.plan["what"]["dead_letters"] == 2
    assert operation.total == 13
    assert "ZZERASED" not in str(operation.plan)
    running.start(owner, operation)
    running.finish(maintain, ERASURE, operation.operation_id, most=5)
    ended = running.read(owner, operation.operation_id)
    assert (ended.state, ended.done, ended.skipped) == (State.DONE, 13, 0)
    assert mentions(owner, "ZZERASED") == []
    assert {row[0] for row in owner.execute("SELECT event_id FROM events")} == set(others)
    assert count(owner, "signal_lab_bars") == 3
    ((asked, refused, removed),) = owner.execute("SELECT requested_by, is_refused, removed FROM erasures").fetchall()
    assert (asked, refused) == ("kim", True)
    assert (removed["events"], removed["raw_payloads"]) == (12, 1)
    assert removed["consumers_rows"] >= 13


def test_what_was_erased_is_not_taken_in_again(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    store(app, 2, entity="ZZERASED")
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    raw = RawPayload(uuid4(), "other", "ZZERASED", seeds.FIRST_BAR, None, seeds.FIRST_BAR, uuid4(), {"of": "ZZERASED"})
    with app.transaction():
        stored = store_events(app, [raw], [*seeds.ticks(2, entity_id="ZZERASED"), *seeds.ticks(1, entity_id="IBM")])
    assert [look.outcome.value for look in stored.looks] == ["stale", "stale", "new"]
    assert mentions(owner, "ZZERASED") == []


def test_what_may_be_taken_in_again_is(app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]) -> None:
    first = store(app, 2, entity="ZZERASED")
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED", "take_in_again": True})
    assert count(owner, "events") == 0
    assert seeds.store(app, seeds.ticks(2, entity_id="ZZERASED")) == first


def test_another_sources_entity_of_the_same_name_stays(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    store(app, 2)
    other = [replace(look, source="other") for look in seeds.ticks(2)]
    kept = seeds.store(app, other)
    running.run(owner, maintain, ERASURE, {"entity_id": "AAPL", "source": "fake"})
    assert {row[0] for row in owner.execute("SELECT event_id FROM events")} == set(kept)


def test_a_message_that_a_queue_still_holds_changes_nothing(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    with app.transaction():
        (event,) = store_events(app, [], seeds.ticks(1, entity_id="ZZERASED")).events
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    assert not signal_lab.consume(app, event)
    assert count(owner, "signal_lab_bars") == 0


def test_one_observation_goes_with_all_its_revisions(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    first = seeds.ticks(1)[0]
    later = replace(
        first, payload=first.payload.model_copy(update={"price": 100.25}), observed_at=seeds.FIRST_BAR + seeds.MINUTE
    )
    event_ids = seeds.store(app, [first, later, seeds.tick(3)])
    operation = running.plan(owner, maintain, ERASURE, {"event_id": str(event_ids[0])})
    assert operation.plan["what"]["events"] == 2
    running.start(owner, operation)
    running.finish(maintain, ERASURE, operation.operation_id)
    assert [row[0] for row in owner.execute("SELECT event_id FROM events")] == event_ids[2:]
    with app.transaction():
        outcomes = [look.outcome.value for look in store_events(app, [], [later, seeds.tick(4)]).looks]
    assert outcomes == ["stale", "new"]


def test_nothing_stored_is_nothing_to_erase(owner: Connection[Any], maintain: Connection[Any]) -> None:
    with pytest.raises(OperationRefused, match="nothing is stored"):
        running.plan(owner, maintain, ERASURE, {"entity_id": "NOBODY"})


# Decisions


def decided(make_world: Callable[..., World], owner: Connection[Any]) -> list[dict[str, Any]]:
    """Decisions about two entities, closed and anchored; returns the anchors' log lines."""
    world = make_world(deciding=toy.deciding(checker={"costs": 30}))
    for entity in ("ZZERASED", "IBM"):
        world.detect(anomaly(entity=entity))
        world.run()
    lines = anchored(world)
    assert audit(owner, lines).findings == []
    return lines


def test_decisions_about_it_go_whole_and_an_audit_calls_them_erased(
    make_world: Callable[..., World], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    lines = decided(make_world, owner)
    ended = running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED", "source": "toy"})
    assert ended.state is State.DONE
    assert mentions(owner, "ZZERASED") == []
    found = audit(owner, lines)
    assert (found.findings, found.erased, found.decisions) == ([], 1, 1)


@pytest.mark.parametrize(
    "tampering",
    [
        ("DELETE FROM decision_tombstones", "it was anchored, and is missing"),
        ("UPDATE decision_tombstones SET head_seq = head_seq - 1", "another head than was anchored"),
        ("UPDATE decision_tombstones SET head_hash = sha256('')", "another head than was anchored"),
        ("DELETE FROM erasures", "names no erasure that is on record"),
        (
            f"{TOMBSTONE} VALUES (gen_random_uuid(), 3, '', 'retention')",
            "was never anchored or is there",
        ),
        (
            f"{TOMBSTONE} SELECT decision_id, head_seq, head_hash, 'retention' FROM decisions",
            "was never anchored or is there",
        ),
    ],
)
def test_an_audit_tells_an_erasure_from_tampering(
    make_world: Callable[..., World],
    owner: Connection[Any],
    maintain: Connection[Any],
    database: TestDatabase,
    tampering: tuple[str, str],
) -> None:
    lines = decided(make_world, owner)
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    assert audit(owner, lines).findings == []
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")
        admin.execute(tampering[0].encode())
    assert any(tampering[1] in finding.what for finding in audit(owner, lines).findings)


def test_a_decision_that_is_taken_away_without_an_erasure_is_missing(
    make_world: Callable[..., World], owner: Connection[Any], database: TestDatabase
) -> None:
    lines = decided(make_world, owner)
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")
        for table in ("decision_steps", "decisions"):
            admin.execute(f"DELETE FROM {table}".encode())
    found = audit(owner, lines)
    assert found.erased == 0
    assert sum("it was anchored, and is missing" in finding.what for finding in found.findings) == 2


def test_an_open_decision_is_waited_for(
    make_world: Callable[..., World], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    lines = decided(make_world, owner)
    ((closed_at,),) = owner.execute("SELECT closed_at FROM decisions WHERE entity_id = 'ZZERASED'").fetchall()
    owner.execute("UPDATE decisions SET closed_at = NULL WHERE entity_id = 'ZZERASED'")
    operation = running.plan(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    assert operation.plan["decisions_to_wait_for"] == 1
    running.start(owner, operation)
    events = count(owner, "events")
    waiting = running.step(maintain, ERASURE, operation.operation_id)
    assert (waiting.done, waiting.is_finished, waiting.cursor["decisions_to_wait_for"]) == (0, False, 1)
    assert waiting.next_at is not None
    assert count(owner, "events") == events
    owner.execute("UPDATE decisions SET closed_at = %s WHERE entity_id = 'ZZERASED'", [closed_at])
    running.finish(maintain, ERASURE, operation.operation_id)
    assert audit(owner, lines).erased == 1


def test_an_anomaly_that_still_waits_in_a_queue_opens_no_decision(
    make_world: Callable[..., World], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    decided(make_world, owner)
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    late = make_world(deciding=toy.deciding())
    late.detect(anomaly(entity="ZZERASED", told=3))
    late.run()
    assert owner.execute("SELECT FROM decisions WHERE entity_id = 'ZZERASED'").fetchall() == []


def test_an_event_goes_with_the_decisions_that_used_it(
    make_world: Callable[..., World], app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    look = replace(seeds.ticks(1, entity_id="IBM")[0], source="toy")
    (event_id,) = seeds.store(app, [look])
    world = make_world(deciding=toy.deciding())
    for bar in (event_id, uuid4()):
        world.detect(anomaly(entity="IBM", bar_event_id=str(bar), at=datetime.now(UTC)))
        world.run()
    lines = anchored(world)
    running.run(owner, maintain, ERASURE, {"event_id": str(event_id)})
    assert mentions(owner, str(event_id)) == ["processed_events"]  # its id alone, so that it is not processed again
    found = audit(owner, lines)
    assert (found.findings, found.erased, found.decisions) == ([], 1, 1)


def test_an_accounts_books_still_add_up(
    database: TestDatabase, owner: Connection[Any], maintain: Connection[Any], make_world: Callable[..., World]
) -> None:
    world = make_world(deciding=toy.deciding())
    with (
        connect(database.url("acp_action"), application_name="test") as client,
        connect(database.url("acp_consume"), application_name="test") as prices,
    ):
        signal_lab.consume(prices, tick(100.0, minute=0))
        released = release(database)
        assert paper_account.consume(client, released.event)
        signal_lab.consume(prices, tick(101.5, minute=1))
    held = "SELECT cash_micros, quantity_micros FROM paper_accounts JOIN paper_positions USING (account) ORDER BY 2, 1"
    before = owner.execute(held).fetchall()
    assert reconcile(owner) == []
    owner.execute("UPDATE decisions SET closed_at = now(), state = 'scored'")
    anchored(world)
    running.run(owner, maintain, ERASURE, {"entity_id": "AAPL", "source": "yfinance"})
    assert (count(owner, "paper_orders"), count(owner, "actions"), count(owner, "decisions")) == (0, 0, 0)
    assert owner.execute(held).fetchall() == before
    assert reconcile(owner) == []


def test_the_detectors_rows_go_too(
    database: TestDatabase, app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    with app.transaction():
        stored = store_events(app, [], seeds.ticks(30, entity_id="ZZERASED")).events
    for event in stored:
        detector.consume(app, event)
    assert count(owner, "detector_bars") == 30
    running.run(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    assert mentions(owner, "ZZERASED") == []


# Who may


def test_maintenance_erases_only_what_a_started_operation_names(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    store(app, 2)
    operation = running.plan(owner, maintain, ERASURE, {"entity_id": "AAPL"})
    calls = (
        "SELECT * FROM erase_step(%s, 10)", "SELECT forget_finance(%s, '{}')", "SELECT finish_erasure(%s, '{}')",
    )  # fmt: skip
    for call in calls:
        for operation_id in (operation.operation_id, uuid4()):
            with pytest.raises(errors.ObjectNotInPrerequisiteState, match="is no erasure that is running"):
                maintain.execute(call.encode(), [operation_id])
    assert count(owner, "events") == 2


def test_two_at_once_erase_each_row_once(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    store(app, 40, entity="ZZERASED")
    operation = running.plan(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    running.start(owner, operation)

    def work(_number: int) -> None:
        with connect(database.url("acp_maintain"), application_name="operations") as connection:
            running.finish(connection, ERASURE, operation.operation_id, most=3)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    ended = running.read(owner, operation.operation_id)
    assert (ended.state, ended.done, ended.skipped) == (State.DONE, 41, 0)
    assert mentions(owner, "ZZERASED") == []
