"""A rebuild of SignalLab: the same rows from the same events, while messages come in and readers read."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.history import running

from control_plane.ingestion.store import Look, store_events
from control_plane.model.contract import Event
from control_plane.model.domain import Consumer
from control_plane.operations.history.erasure import Erasure
from control_plane.operations.history.rebuild import Rebuild, accept
from control_plane.operations.kind import Operation, OperationConflict, OperationRefused, State
from control_plane.operations.service import cancel_operation, resume_operation, start_operation
from control_plane.platform.database import connect
from domains import DOMAINS, EVENT_TYPES
from domains.finance import signal_lab

CONSUMERS = [consumer for domain in DOMAINS for consumer in domain.consumers]
REBUILD = Rebuild(CONSUMERS, EVENT_TYPES)
WANTED = {"subscription": "signal_lab"}
TABLES = signal_lab.REBUILD.tables


def looks(number: int, *, revisions: int = 2, entity: str = "AAPL") -> list[Look]:
    """Returns looks at so many bars, each at so many prices."""
    return [
        replace(
            look,
            payload=look.payload.model_copy(update={"price": 100.25 + revision / 8}),
            observed_at=seeds.FIRST_BAR + revision * seeds.MINUTE,
        )
        for look in seeds.ticks(number, entity_id=entity)
        for revision in range(revisions)
    ]


def stored(app: Connection[Any], given: list[Look]) -> list[Event]:
    with app.transaction():
        return list(store_events(app, [], given).events)


def consumed(connection: Connection[Any], events: list[Event]) -> None:
    for event in events:
        signal_lab.consume(connection, event)


def rows(connection: Connection[Any], schema: str = "public") -> dict[str, list[str]]:
    return {
        table: [
            row[0] for row in connection.execute(f"SELECT held::text FROM {schema}.{table} AS held ORDER BY 1".encode())
        ]
        for table in TABLES
    }


def catalogue(admin: Connection[Any]) -> list[Any]:
    """Returns what there is of the consumer's tables and of their views, without the tables' own numbers."""
    return admin.execute(
        "SELECT relname, relkind, relacl::text, obj_description(oid), pg_get_viewdef(oid)::text,"
        " (SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY 1) FROM pg_index WHERE indrelid = oid)::text,"
        " (SELECT array_agg(conname || pg_get_constraintdef(c.oid) ORDER BY conname)"
        " FROM pg_constraint AS c WHERE conrelid = pg_class.oid)::text,"
        " (SELECT array_agg((attname, attnotnull, attacl, col_description(attrelid, attnum))::text ORDER BY attnum)"
        " FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0)::text"
        " FROM pg_class WHERE relname LIKE 'signal_lab%' AND relkind IN ('r', 'v') ORDER BY relname, relnamespace"
    ).fetchall()


def until(owner: Connection[Any], maintain: Connection[Any], phase: str, kind: Rebuild = REBUILD) -> Operation:
    """Starts a rebuild and makes its steps until it has come to a phase."""
    operation = running.plan(owner, maintain, kind, WANTED)
    running.start(owner, operation)
    while running.read(owner, operation.operation_id).cursor.get("phase") != phase:
        running.step(maintain, kind, operation.operation_id, most=7)
    return running.read(owner, operation.operation_id)


@pytest.mark.parametrize("wanted", [{}, {"subscription": "actions"}, {"subscription": "signal_lab", "and": 1}])
def test_a_filter_that_is_none_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(OperationRefused, match="one of those that can be rebuilt"):
        REBUILD.parse(wanted)


def test_the_declared_tables_are_those_that_the_database_knows(owner: Connection[Any]) -> None:
    declared = {(table, one.name) for one in CONSUMERS if one.rebuild is not None for table in one.rebuild.tables}
    assert set(owner.execute("SELECT table_name, consumer FROM rebuildable").fetchall()) == declared


def test_the_same_fold_makes_the_same_rows(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    events = stored(app, looks(20))
    luck = random.Random(7)
    consumed(app, luck.sample(events, len(events)) + events[:5])
    before = rows(owner)
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        (oid,) = admin.execute("SELECT 'signal_lab_bars'::regclass::oid").fetchone() or (0,)
        as_it_was = catalogue(admin)
        ended = running.run(owner, maintain, REBUILD, WANTED, most=7)
        assert (ended.state, ended.total, ended.done) == (State.DONE, 40, 40)
        assert all(one["digest"] == one["rebuilt_digest"] for one in ended.cursor["tables"].values())
        assert rows(owner) == before
        assert len(before["signal_lab_bars"]) == 20
        assert catalogue(admin) == as_it_was
        assert admin.execute("SELECT 'signal_lab_bars'::regclass::oid").fetchone() != (oid,)
        left = admin.execute(
            "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text IN ('shadow', 'retired')"
        )
        assert left.fetchall() == []
    consumed(app, stored(app, looks(25)))
    assert owner.execute("SELECT count(*) FROM signal_lab_returns").fetchone() == (25,)
    assert owner.execute("SELECT count(*) FROM rebuilds").fetchone() == (0,)


def test_a_row_that_was_changed_behind_its_back_is_mended_once_that_is_accepted(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    consumed(app, stored(app, looks(5)))
    right = rows(owner)
    owner.execute("UPDATE signal_lab_bars SET price = 1 WHERE occurred_at = %s", [seeds.FIRST_BAR])
    wrong = rows(owner)
    operation = until(owner, maintain, "acceptance")
    assert operation.cursor["awaiting"] == "acceptance"
    waiting = running.step(maintain, REBUILD, operation.operation_id)
    assert (waiting.is_finished, waiting.next_at is not None) == (False, True)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="its difference is not accepted"):
        maintain.execute("SELECT swap_rebuild(%s)", [operation.operation_id])
    assert rows(owner) == wrong
    with connect(database.url("acp_command"), application_name="test") as command:
        accept(command, operation.operation_id, accepted_by="root")
        with pytest.raises(OperationConflict):
            accept(command, operation.operation_id, accepted_by="root")
    running.finish(maintain, REBUILD, operation.operation_id)
    assert rows(owner) == right


def test_what_is_consumed_meanwhile_is_in_both(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    before, during, after = (stored(app, looks(5, entity=entity)) for entity in ("AAPL", "IBM", "MSFT"))
    consumed(app, before)
    operation = until(owner, maintain, "fold")
    consumed(app, during)  # stored before it began, and processed since
    late = stored(app, looks(5, entity="GOOG"))
    consumed(app, late)
    running.step(maintain, REBUILD, operation.operation_id)
    consumed(app, after)
    assert owner.execute("SELECT count(*) FROM shadow.signal_lab_bars WHERE entity_id = 'GOOG'").fetchone() == (5,)
    running.finish(maintain, REBUILD, operation.operation_id)
    ended = running.read(owner, operation.operation_id)
    assert (ended.state, ended.cursor["phase"]) == (State.DONE, "swapped")
    assert owner.execute("SELECT count(*) FROM signal_lab_bars").fetchone() == (20,)


def test_an_effect_under_way_is_waited_for(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    (event,) = stored(app, looks(1, revisions=1))
    operation = running.plan(owner, maintain, REBUILD, WANTED)
    running.start(owner, operation)
    with connect(database.url("acp_consume"), application_name="consuming") as consuming:
        with consuming.transaction():
            signal_lab.consume(consuming, event)
            stepping = threading.Thread(target=running.step, args=(maintain, REBUILD, operation.operation_id))
            stepping.start()
            seeds.wait_until_waiting(database, "operations")
        stepping.join(30)
    running.finish(maintain, REBUILD, operation.operation_id)
    assert running.read(owner, operation.operation_id).state is State.DONE
    assert owner.execute("SELECT count(*) FROM signal_lab_bars").fetchone() == (1,)


def test_readers_never_see_fewer_rows_and_nothing_consumed_is_lost(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    consumed(app, stored(app, looks(60)))
    stop = threading.Event()
    seen: list[int] = []
    arrived: list[Event] = []

    def read() -> None:
        with connect(database.url("acp_reader"), application_name="reading") as reader:
            while not stop.is_set():
                ((bars, returns),) = reader.execute(
                    "SELECT (SELECT count(*) FROM signal_lab_bars), (SELECT count(*) FROM signal_lab_returns)"
                ).fetchall()
                assert bars == returns
                seen.append(bars)

    def consume() -> None:
        with connect(database.url("acp_consume"), application_name="consuming") as consuming:
            number = 0
            while not stop.is_set() or number < 20:
                with connect(database.app_url, application_name="storing") as storing:
                    events = stored(storing, looks(2, entity=f"S{number}"))
                for event in (*events, *events):
                    signal_lab.consume(consuming, event)
                arrived.extend(events)
                number += 1

    threads = [threading.Thread(target=target) for target in (read, consume)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            ended = running.run(owner, maintain, REBUILD, WANTED, most=20)
            assert (ended.state, ended.cursor["phase"]) == (State.DONE, "swapped")
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert owner.execute("SELECT count(*) FROM signal_lab_bars").fetchone() == (60 + len(arrived) // 2,)
    live = rows(owner)
    running.run(owner, maintain, REBUILD, WANTED)
    assert rows(owner) == live


def test_a_reader_that_stays_does_not_make_others_wait_for_long(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    consumed(app, stored(app, looks(3)))
    operation = until(owner, maintain, "swap")
    with connect(database.url("acp_reader"), application_name="reading") as reader:
        with reader.transaction():
            reader.execute("SELECT FROM signal_lab_bars")
            held_off = running.step(maintain, REBUILD, operation.operation_id)
            assert (held_off.is_finished, held_off.cursor["phase"]) == (False, "swap")
            assert held_off.next_at is not None
        running.finish(maintain, REBUILD, operation.operation_id)
    assert running.read(owner, operation.operation_id).state is State.DONE


def test_a_cancelled_rebuild_leaves_nothing_behind(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    consumed(app, stored(app, looks(5)))
    before = rows(owner)
    operation = until(owner, maintain, "compare")
    with connect(database.url("acp_command"), application_name="test") as command, command.transaction():
        REBUILD.cancel(command, operation)
        command.execute(
            "SELECT cancel_operation(%s, 'root', 0)",
            [operation.operation_id],
        )
    assert rows(owner) == before
    assert owner.execute("SELECT to_regclass('shadow.signal_lab_bars')").fetchone() == (None,)
    consumed(app, stored(app, looks(7)))
    assert running.run(owner, maintain, REBUILD, WANTED).state is State.DONE


def test_a_shadow_that_refuses_spoils_the_rebuild_and_not_the_consumer(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    consumed(app, stored(app, looks(3)))
    operation = until(owner, maintain, "fold")
    owner.execute("ALTER TABLE shadow.signal_lab_bars ADD CHECK (entity_id <> 'IBM')")
    consumed(app, stored(app, looks(2, entity="IBM")))
    assert owner.execute("SELECT count(*) FROM signal_lab_bars WHERE entity_id = 'IBM'").fetchone() == (2,)
    with pytest.raises(OperationRefused, match="could not write to the shadow tables"):
        running.step(maintain, REBUILD, operation.operation_id)


@pytest.mark.parametrize("phase", ["fold", "compare", "swap"])
def test_a_failed_rebuild_begins_anew_when_it_is_resumed(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase, phase: str
) -> None:
    consumed(app, stored(app, looks(10)))
    operation = until(owner, maintain, phase)
    fail(maintain, operation)
    # The consumer has to write to its own tables alone, of old bars and of new ones.
    consumed(app, stored(app, [*looks(3, revisions=3), *looks(4, entity="IBM")]))
    right = rows(owner)
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        maintain.execute("SELECT swap_rebuild(%s)", [operation.operation_id])
    assert owner.execute("SELECT is_equal, accepted_by, spoiled_by IS NOT NULL FROM rebuilds").fetchall() == [
        (None, None, True)
    ]
    with connect(database.url("acp_command"), application_name="test") as command:
        resumed = resume_operation(command, operation.operation_id, by="root").after
    assert (resumed.state, resumed.done, resumed.cursor) == (State.RUNNING, 0, {})
    running.finish(maintain, REBUILD, operation.operation_id)
    ended = running.read(owner, operation.operation_id)
    assert (ended.state, ended.cursor["phase"]) == (State.DONE, "swapped")
    assert rows(owner) == right


def test_nothing_is_erased_beside_the_shadows_of_a_failed_rebuild(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    consumed(app, stored(app, looks(3)))
    failed = until(owner, maintain, "compare")
    fail(maintain, failed)
    erasure = running.plan(owner, maintain, Erasure([]), {"entity_id": "AAPL"})
    with connect(database.url("acp_command"), application_name="test") as command:
        with pytest.raises(OperationConflict, match=f"{failed.operation_id} of signal_lab, which is failed"):
            start(command, erasure)
        cancel_operation(command, [REBUILD], failed.operation_id, by="root")
        start(command, erasure)
    assert running.read(owner, erasure.operation_id).state is State.RUNNING


def fail(maintain: Connection[Any], operation: Operation) -> None:
    maintain.execute(
        "UPDATE operations SET state = 'failed', finished_at = now(), error = 'no luck' WHERE operation_id = %s",
        [operation.operation_id],
    )


def start(command: Connection[Any], operation: Operation) -> None:
    assert operation.plan_hash is not None
    start_operation(command, operation.operation_id, plan_hash=operation.plan_hash, started_by="root", reason="why")


def test_what_retention_has_deleted_cannot_be_rebuilt_from(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> None:
    events = stored(app, looks(3, revisions=1))
    consumed(app, events)
    owner.execute("DELETE FROM processed_events WHERE event_id = %s", [events[0].event_id])
    with pytest.raises(OperationRefused, match="1 of signal_lab_bars"):
        running.plan(owner, maintain, REBUILD, WANTED)


def test_a_mended_fold_is_what_the_rebuild_uses(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    consumed(app, stored(app, looks(4, revisions=1)))

    def doubled(connection: Connection[Any], events: Any) -> None:
        signal_lab.fold(
            connection,
            [
                event.model_copy(update={"payload": {**event.payload, "volume": event.payload["volume"] * 2}})
                for event in events
            ],
        )

    mended = Rebuild([with_fold(doubled)], EVENT_TYPES)
    operation = until(owner, maintain, "acceptance", mended)
    with connect(database.url("acp_command"), application_name="test") as command:
        accept(command, operation.operation_id, accepted_by="root")
    running.finish(maintain, mended, operation.operation_id)
    assert owner.execute("SELECT DISTINCT volume FROM signal_lab_bars").fetchall() == [(2400,)]


def with_fold(fold: Callable[[Connection[Any], Any], None]) -> Consumer:
    (consumer,) = [one for one in CONSUMERS if one.name == "signal_lab"]
    assert consumer.rebuild is not None
    return replace(consumer, rebuild=replace(consumer.rebuild, fold=fold))


def test_maintenance_rebuilds_only_for_an_operation_at_work(owner: Connection[Any], maintain: Connection[Any]) -> None:
    operation = running.plan(owner, maintain, REBUILD, WANTED)
    for call in ("begin_rebuild", "swap_rebuild"):
        for operation_id in (operation.operation_id, UUID(int=1)):
            with pytest.raises(errors.ObjectNotInPrerequisiteState):
                maintain.execute(f"SELECT {call}(%s)".encode(), [operation_id])
