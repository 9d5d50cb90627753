"""Raw payloads, events and messages are stored together or not at all, once each, within bounds."""

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from threading import Barrier
from threading import Event as Signal
from typing import Any

import psycopg
import pytest
from psycopg import Connection, Cursor
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.fakes import FakeSource
from tests.integration.ingestion.runs import SourceBug, raw_payload, run

from control_plane.ingestion import service
from control_plane.ingestion.source import Fetched
from control_plane.ingestion.store import (
    LARGEST_RAW_PAYLOAD,
    QUERIES,
    Look,
    LookOutcome,
    RawPayload,
    Stored,
    store_events,
)
from control_plane.model.errors import SourceError
from control_plane.ops.timeline import LARGEST_SHOWN_PAYLOAD, read_timeline
from control_plane.platform.database import connect
from domains import EVENT_TYPES
from local_cloud.postgres import PostgresServer

# Atomic: together or not at all


def test_an_error_inside_the_transaction_leaves_nothing(app: Connection[Any]) -> None:
    raw = raw_payload()
    with contextlib.suppress(SourceBug), app.transaction():
        looks = [replace(look, raw_payload_id=raw.id) for look in seeds.ticks(3)]
        assert len(store_events(app, [raw], looks).events) == 3
        raise SourceBug
    assert seeds.counts(app) == (0, 0, 0)


@pytest.mark.parametrize("table", ["raw_payloads", "events", "outbox"])
@pytest.mark.parametrize("end", ["BEFORE", "AFTER"])
def test_a_connection_that_dies_at_any_statement_leaves_nothing(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, table: str, end: str
) -> None:
    owner.execute(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'"
    )
    owner.execute(f"CREATE TRIGGER deadly {end} INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION die()".encode())
    with pytest.raises(psycopg.OperationalError):
        run(app, FakeSource({"AAPL": seeds.bars(3)}))
    with connect(database.app_url, application_name="test") as fresh:
        assert seeds.counts(fresh) == (0, 0, 0)
        owner.execute(f"DROP TRIGGER deadly ON {table}".encode())
        assert run(fresh, FakeSource({"AAPL": seeds.bars(3)})).ingested == 3
        assert seeds.counts(fresh) == (1, 3, 3)


def test_storing_never_commits_by_itself(app: Connection[Any], owner: Connection[Any]) -> None:
    with app.transaction():
        store_events(app, [raw_payload()], seeds.ticks(3))
        assert seeds.counts(owner) == (0, 0, 0)
    assert seeds.counts(owner) == (1, 3, 3)


def test_every_event_has_a_message_that_holds_all_of_it(app: Connection[Any]) -> None:
    run(
        app,
        FakeSource({"AAPL": seeds.bars(3), "NOPE": SourceError("NOPE", "rate_limited", "slow down")}),
        "AAPL",
        "NOPE",
    )
    rows = app.execute(
        "SELECT event_id, topic, outbox.payload_json, events.trace_id, raw_payload_id"
        " FROM events FULL JOIN outbox USING (event_id)"
    ).fetchall()
    assert len(rows) == 4
    for event_id, topic, message, trace_id, _ in rows:
        event = EVENT_TYPES.parse_event(message)
        assert (event.event_id, event.trace_id) == (event_id, trace_id)
        assert topic == EVENT_TYPES.find(event.event_type, event.schema_version).topic
    assert len({row[3] for row in rows}) == 1
    assert app.execute("SELECT count(*) FROM events JOIN raw_payloads ON raw_payload_id = id").fetchone() == (3,)


def test_storing_says_what_became_of_each_look(app: Connection[Any]) -> None:
    looks = seeds.ticks(5)
    with app.transaction():
        assert store_events(app, [], []).looks == []
        assert [one.outcome for one in store_events(app, [], looks[:3]).looks] == [LookOutcome.NEW] * 3
        stored = store_events(app, [], looks)
    assert [one.outcome for one in stored.looks] == [LookOutcome.DUPLICATE] * 3 + [LookOutcome.NEW] * 2
    assert [event.event_id for event in stored.events] == [look.event_id(0) for look in looks[3:]]


def test_storing_outside_a_transaction_is_refused(app: Connection[Any]) -> None:
    with pytest.raises(ValueError, match=r"connection\.transaction\(\)"):
        store_events(app, [], seeds.ticks(1))


# Idempotent ingestion: the same observation is one event


def test_the_same_bars_again_are_no_new_events(app: Connection[Any]) -> None:
    source = FakeSource({"AAPL": seeds.bars(10)})
    assert run(app, source).ingested == 10
    again = run(app, source)
    assert (again.fetched, again.ingested, again.duplicates) == (10, 0, 10)
    assert seeds.counts(app) == (2, 10, 10)


def test_a_corrected_bar_is_exactly_one_more_event(app: Connection[Any]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(10)}))
    corrected = [*seeds.bars(9), seeds.bar(9, price=99.0)]
    again = run(app, FakeSource({"AAPL": corrected}))
    assert (again.ingested, again.duplicates) == (1, 9)
    assert seeds.counts(app) == (2, 11, 11)


def test_an_observation_repeated_in_one_answer_is_one_event(app: Connection[Any]) -> None:
    result = run(app, FakeSource({"AAPL": [seeds.bar(0), seeds.bar(0), seeds.bar(1)]}))
    assert (result.fetched, result.ingested, result.duplicates) == (3, 2, 1)
    assert seeds.counts(app) == (1, 2, 2)


def test_concurrent_runs_store_each_bar_once_without_deadlock(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    symbols = ["AAPL", "IBM", "MSFT", "GOOG"]
    runners, rounds = 4, 5
    start = Barrier(runners)
    # Each row takes a while, so that runs in different orders are sure to meet.
    owner.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.0005); RETURN new; END'"
    )
    owner.execute("CREATE TRIGGER dawdles BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION dawdle()")

    def keep_ingesting(place: int) -> int:
        own_order = symbols[place:] + symbols[:place]
        ingested = 0
        with connect(database.app_url, application_name="test") as connection:
            for number in range(rounds):
                source = FakeSource(dict.fromkeys(symbols, seeds.bars(20, start=20 * number)))
                start.wait(60)
                ingested += run(connection, source, *own_order).ingested
        return ingested

    with ThreadPoolExecutor(runners) as pool:
        ingested = sum(pool.map(keep_ingesting, range(runners)))
    assert ingested == len(symbols) * rounds * 20
    assert seeds.counts(app) == (runners * rounds * len(symbols), ingested, ingested)


# Set-based


class CountingCursor(Cursor[Any]):
    executed = 0

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        CountingCursor.executed += 1
        return super().execute(*args, **kwargs)

    def executemany(self, query: Any, params_seq: Any, **kwargs: Any) -> None:
        CountingCursor.executed += len(list(params_seq))
        super().executemany(query, params_seq, **kwargs)


def test_the_number_of_statements_does_not_grow_with_the_bars(app: Connection[Any]) -> None:
    app.cursor_factory = CountingCursor

    def statements(symbol: str, bars: int) -> int:
        CountingCursor.executed = 0
        assert run(app, FakeSource({symbol: seeds.bars(bars)}), symbol).ingested == min(bars, 60)
        return CountingCursor.executed

    assert statements("AAPL", 1) == statements("IBM", 60) == 11
    # The statements: clock, breaker, newest, isolation, locks, what was erased, raw payloads, clock, ends of chains,
    # events, fetches counted.


# Postgres goes away in the middle


class CrashingSource(FakeSource):
    """A source that crashes Postgres when it is asked for CRASH."""

    crash: Callable[[], None]

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        if symbol == "CRASH":
            self.crash()
        return super().fetch(symbol, since, asked_at)


def test_the_run_after_a_crash_of_postgres_stores_the_rest(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_LOOKS_PER_TRANSACTION", 20)
    monkeypatch.setattr(service, "MAX_PARALLEL_FETCHES", 1)
    symbols = ["FIRST", "CRASH", "LAST"]
    source = CrashingSource(dict.fromkeys(symbols, seeds.bars(20)))
    stopped = Signal()

    def crash() -> None:
        own_postgres.stop("immediate")
        stopped.set()

    source.crash = crash
    with connect(own_postgres.url(), application_name="test") as connection:
        with pytest.raises(psycopg.OperationalError) as broken:
            run(connection, source, *symbols)
        assert "server closed the connection" in str(broken.value) or "terminating connection" in str(broken.value)
    assert stopped.wait(30)  # The run does not wait for its threads.
    own_postgres.start()
    source.crash = lambda: None
    with connect(own_postgres.url(), application_name="test") as connection:
        raws, stored, messages = seeds.counts(connection)
        assert (raws, stored) in {(0, 0), (1, 20), (2, 40)}  # only whole symbols from before the crash
        assert messages == stored
        result = run(connection, source, *symbols)
        assert result.ingested == 60 - stored
        assert seeds.counts(connection)[1:] == (60, 60)


# How much one transaction holds


def test_a_transaction_is_bounded(app: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, int]] = []

    def store_and_note(connection: Connection[Any], raws: Sequence[RawPayload], looks: Sequence[Look]) -> Stored:
        batches.append((len({look.entity_id for look in looks}), len(looks)))
        return store_events(connection, raws, looks)

    monkeypatch.setattr(service, "store_events", store_and_note)
    monkeypatch.setattr(service, "_LOOKS_PER_TRANSACTION", 70)
    monkeypatch.setattr(service, "MAX_ENTITIES", 3)
    market = dict.fromkeys("ABC", seeds.bars(30)) | dict.fromkeys("DEFGHIJ", seeds.bars(1)) | {"K": seeds.bars(60)}
    assert run(app, FakeSource(market), *market).ingested == 3 * 30 + 7 + 60
    assert max(entities for entities, _ in batches) == 3
    assert max(looks for _, looks in batches) <= 70
    assert sum(entities for entities, _ in batches) == len(market)  # Each symbol is stored whole, in one transaction.


def test_more_entities_than_a_transaction_may_lock_are_refused(app: Connection[Any]) -> None:
    looks = [replace(seeds.ticks(1)[0], entity_id=f"E{number}") for number in range(501)]
    with app.transaction(force_rollback=True), pytest.raises(ValueError, match="501 entities in one transaction"):
        store_events(app, [], looks)


def test_a_large_ingestion_is_committed_in_parts_a_symbol_whole(
    app: Connection[Any], owner: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_LOOKS_PER_TRANSACTION", 50)
    # The database refuses the third symbol and all after it; what came before was committed.
    owner.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN"
        " IF (SELECT count(*) FROM public.events) >= 60 THEN RAISE EXCEPTION ''no more''; END IF; RETURN new; END'"
    )
    owner.execute("CREATE TRIGGER refuses BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()")
    with pytest.raises(psycopg.errors.RaiseException, match="no more"):
        run(app, FakeSource(dict.fromkeys("ABCD", seeds.bars(30))), *"ABCD")
    stored = app.execute("SELECT count(*) FROM events GROUP BY entity_id").fetchall()
    assert stored == [(30,), (30,)]
    assert seeds.counts(app) == (2, 60, 60)


def test_more_than_five_thousand_events_are_stored(app: Connection[Any]) -> None:
    seeds.store(app, [replace(look, source="fake") for look in seeds.ticks(1)])
    days = seeds.bars(5_200)
    result = run(app, FakeSource({"AAPL": days, "IBM": days}), "AAPL", "IBM")
    assert result.ingested == 5_199 + 60  # AAPL is asked from its stored bar on, IBM for its most recent hour.
    assert seeds.counts(app) == (2, 5_260, 5_260)


# The cost of finding where to continue


def visited(plan: Any) -> int:
    """Returns how many rows a plan read from tables, including those it filtered out."""
    touched = 0
    if "Relation Name" in plan:
        discarded = sum(value for name, value in plan.items() if name.startswith("Rows Removed"))
        touched = int((plan["Actual Rows"] + discarded) * plan["Actual Loops"])
    return touched + sum(visited(part) for part in plan.get("Plans", []))


def test_200000_failures_do_not_hide_the_newest_tick(app: Connection[Any], owner: Connection[Any]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(100), "MSFT": seeds.bars(100)}), "AAPL", "MSFT")
    owner.execute(
        "INSERT INTO events (event_id, event_type, source, entity_id, series, occurred_at, ingested_at, schema_version,"
        " trace_id, payload_json)"
        " SELECT gen_random_uuid(), 'SOURCE_FETCH_FAILED', 'fake', 'AAPL', '1m', now() + number * interval '1 second',"
        " now(), 1, gen_random_uuid(), '{}' FROM generate_series(1, 200000) AS number"
    )
    owner.execute("ANALYZE events")
    asked = {"source": "fake", "event_type": "MARKET_TICK_INGESTED", "series": "1m"}
    steps = seeds.plan(app, QUERIES["newest_occurrence"], {"entity_ids": ["AAPL", "MSFT"], **asked})
    assert "events_one_per_revision" in steps
    assert visited(json.loads(steps)[0]["Plan"]) == 2


def test_the_end_of_a_chain_is_found_by_probes(app: Connection[Any], owner: Connection[Any]) -> None:
    owner.execute(
        "INSERT INTO events (event_id, event_type, source, entity_id, series, occurred_at, ingested_at, schema_version,"
        " trace_id, payload_json)"
        " SELECT gen_random_uuid(), 'SOURCE_FETCH_FAILED', 'fake', entity_id, '', %s + number * interval '1 minute',"
        " now(), 1, gen_random_uuid(), '{}' FROM generate_series(1, 20000) AS number,"
        " unnest(ARRAY['AAPL', 'MSFT', NULL]) AS entity_id",
        [seeds.FIRST_BAR],
    )
    owner.execute(
        "INSERT INTO repeated_looks SELECT entity_id, source, event_type, series, occurred_at, now() FROM events"
    )
    owner.execute("ANALYZE events, repeated_looks")
    many = 600
    asked = {
        "sources": ["fake"] * many,
        "event_types": ["SOURCE_FETCH_FAILED"] * many,
        "entity_ids": ["AAPL", "MSFT", None] * (many // 3),
        "series": [""] * many,
        "occurred_at": [seeds.bar(1 + number // 3).occurred_at for number in range(many)],
    }
    steps = seeds.plan(app, QUERIES["chain_heads"], asked)
    # Each probe reads an event and a repeated look; plans show averages, which older servers round to whole rows.
    assert 2 * many * 0.95 <= visited(json.loads(steps)[0]["Plan"]) <= 3 * many
    assert {"events_one_per_revision", "repeated_looks_key"} == set(re.findall(r'"Index Name": "(\w+)"', steps))


# The most that one answer can cost


def test_the_database_refuses_a_raw_payload_beyond_its_bound(app: Connection[Any]) -> None:
    too_large = replace(raw_payload(), payload={"text": "x" * LARGEST_RAW_PAYLOAD})
    with pytest.raises(psycopg.errors.CheckViolation, match="raw_payloads_are_bounded"), app.transaction():
        store_events(app, [too_large], [])


def test_a_timeline_says_that_it_omits_a_large_payload(app: Connection[Any]) -> None:
    raw = replace(raw_payload(), payload={"text": "x" * (LARGEST_SHOWN_PAYLOAD + 1)})
    with app.transaction():
        stored = store_events(app, [raw], [replace(look, raw_payload_id=raw.id) for look in seeds.ticks(1)])
    timeline = read_timeline(app, stored.events[0].event_id)
    assert timeline is not None
    assert timeline.raw_payload is not None
    assert timeline.raw_payload["payload_json"] is None
    assert "more than the 1048576 that are shown" in timeline.raw_payload["omitted"]
