"""From a source's answers to raw payloads, events and messages: all of it or nothing, each of it once."""

import contextlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from threading import Event as Signal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection, Cursor
from tests.conftest import MIGRATIONS, SUBSCRIPTIONS, TestDatabase
from tests.integration import seeds
from tests.integration.fakes import FakeSource, RecordingTelemetry

from control_plane.ingestion import service
from control_plane.ingestion.service import IngestionResult, ingest
from control_plane.ingestion.source import Entity, Fetched, Json, Observation, Source, TradingSession
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
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.ops.timeline import LARGEST_SHOWN_PAYLOAD, read_timeline
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import connect
from domains import EVENT_TYPES
from local_cloud.net import free_port
from local_cloud.postgres import PostgresServer

POLICY = BreakerPolicy(failure_threshold=3, cool_down_seconds=1000)


class SourceBug(Exception):
    """What a source's client raises when it trips."""


def raw_payload() -> RawPayload:
    return RawPayload(
        uuid4(),
        source="fake",
        entity_id="AAPL",
        observed_at=seeds.FIRST_BAR,
        window_since=None,
        fetched_at=seeds.FIRST_BAR,
        trace_id=uuid4(),
        payload={},
    )


def run(connection: Connection[Any], source: Source, *symbols: str) -> IngestionResult:
    result = ingest(connection, source, symbols or ("AAPL",), RecordingTelemetry(), POLICY, event_types=EVENT_TYPES)
    assert result.fetched == result.ingested + result.duplicates + result.stale + result.rejected
    return result


def events(connection: Connection[Any], event_type: str) -> list[tuple[str, dict[str, Any]]]:
    """entity_id and payload of each event of a type, in order of time."""
    return connection.execute(
        "SELECT entity_id, payload_json FROM events WHERE event_type = %s ORDER BY occurred_at, entity_id", [event_type]
    ).fetchall()


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


def test_an_observation_that_comes_twice_in_one_answer_is_one_event(app: Connection[Any]) -> None:
    result = run(app, FakeSource({"AAPL": [seeds.bar(0), seeds.bar(0), seeds.bar(1)]}))
    assert (result.fetched, result.ingested, result.duplicates) == (3, 2, 1)
    assert seeds.counts(app) == (1, 2, 2)


def test_concurrent_runs_store_each_bar_once_without_deadlock(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    symbols = ["AAPL", "IBM", "MSFT", "GOOG"]
    runners, rounds = 4, 5
    start = Barrier(runners)
    # Each row takes its time, so that runs in different orders are sure to meet midway.
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


def test_the_number_of_statements_does_not_grow_with_the_number_of_bars(app: Connection[Any]) -> None:
    app.cursor_factory = CountingCursor

    def statements(symbol: str, bars: int) -> int:
        CountingCursor.executed = 0
        assert run(app, FakeSource({symbol: seeds.bars(bars)}), symbol).ingested == min(bars, 60)
        return CountingCursor.executed

    assert statements("AAPL", 1) == statements("IBM", 60) == 9
    # clock, the breaker, newest, isolation, locks, raw payloads, clock, ends of chains, events


# ingest: one symbol's trouble is its own


def test_a_failing_symbol_is_an_event_and_stops_nobody(app: Connection[Any]) -> None:
    source = FakeSource(
        {
            "AAPL": seeds.bars(2),
            "SLOW": SourceError("SLOW", "rate_limited", "asks for fewer\nrequests", raw={"code": 429}),
        }
    )
    result = run(app, source, "SLOW", "AAPL", "NOPE")
    assert (result.ingested, result.failed_symbols) == (2, ["SLOW", "NOPE"])
    assert dict(events(app, "SOURCE_FETCH_FAILED")) == {
        "SLOW": {"symbol": "SLOW", "kind": "rate_limited", "reason": "asks for fewer requests"},
        "NOPE": {"symbol": "NOPE", "kind": "unknown_symbol", "reason": "not traded here"},
    }
    raws = app.execute("SELECT raw.payload_json FROM events JOIN raw_payloads AS raw ON raw_payload_id = raw.id"
                       " WHERE event_type = 'SOURCE_FETCH_FAILED'")  # fmt: skip
    assert {"code": 429} in [row[0] for row in raws]


def test_a_source_that_trips_over_one_symbol_serves_the_others(app: Connection[Any]) -> None:
    result = run(app, FakeSource({"AAPL": seeds.bars(2), "ODD": SourceBug("what is this?")}), "ODD", "AAPL")
    assert (result.ingested, result.failed_symbols) == (2, ["ODD"])
    ((entity_id, payload),) = events(app, "SOURCE_FETCH_FAILED")
    assert (entity_id, payload["kind"]) == ("ODD", "malformed")
    assert payload["reason"] == "SourceBug: what is this?"


class MisdescribingSource(FakeSource):
    """Fetches well, and then stumbles over its own answer."""

    def describe(self, fetched: Fetched) -> Entity:
        if fetched.symbol == "ODD":
            raise SourceBug("no such field")
        return super().describe(fetched)


class MislabellingSource(FakeSource):
    """Describes an entity in words that no event may hold."""

    def describe(self, fetched: Fetched) -> Entity:
        return Entity(fetched.symbol, "equ\x00ity" if fetched.symbol == "ODD" else "equity", None)


class LocalTimeSource(FakeSource):
    """Forgets the time zone."""

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        fetched = super().fetch(symbol, since, asked_at)
        if symbol != "ODD":
            return fetched
        naive = tuple(
            Observation(bar.event_type, bar.occurred_at.replace(tzinfo=None), bar.payload, bar.series)
            for bar in fetched.observations
        )
        return Fetched(fetched.symbol, fetched.raw, naive)


@pytest.mark.parametrize("kind", [MisdescribingSource, MislabellingSource, LocalTimeSource])
def test_an_answer_that_cannot_be_judged_fails_alone_and_is_kept(
    app: Connection[Any], kind: Callable[..., FakeSource]
) -> None:
    result = run(app, kind({"ODD": seeds.bars(2), "AAPL": seeds.bars(3)}), "ODD", "AAPL")
    assert (result.ingested, result.failed_symbols) == (3, ["ODD"])
    ((entity_id, payload),) = events(app, "SOURCE_FETCH_FAILED")
    assert (entity_id, payload["kind"]) == ("ODD", "malformed")
    assert app.execute(
        "SELECT raw.payload_json ->> 'symbol' FROM events JOIN raw_payloads AS raw ON raw_payload_id = raw.id"
        " WHERE event_type = 'SOURCE_FETCH_FAILED'"
    ).fetchall() == [("ODD",)]


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"price": float("nan")}, "payload.price", "nan"),
        ({"price": None}, "payload.price", "None"),
        ({"high": float("inf")}, "payload.high", "inf"),
        ({"volume": -1}, "payload.volume", "-1"),
        ({"currency": ""}, "payload.currency", "''"),
        ({"surprise": 1}, "payload.surprise", "1"),
        ({"currency": "U\x00D"}, "payload.currency", "'U\\x00D'"),
    ],
)
def test_a_bar_that_breaks_the_contract_is_reported_by_field_and_value_and_kept_raw(
    app: Connection[Any], changes: dict[str, Any], field: str, value: str
) -> None:
    source = FakeSource({"AAPL": [seeds.bar(0), seeds.bar(1, **changes), seeds.bar(2)]})
    result = run(app, source)
    assert (result.fetched, result.ingested, result.rejected, result.failed_symbols) == (3, 2, 1, [])
    ((entity_id, payload),) = events(app, "SIGNAL_REJECTED")
    assert (entity_id, payload["rejected_event_type"]) == ("AAPL", "MARKET_TICK_INGESTED")
    assert (payload["field"], payload["value"]) == (field, value)
    assert payload["reason"]
    kept = app.execute(
        "SELECT payload_json ->> 'symbol' FROM raw_payloads WHERE id = (SELECT raw_payload_id FROM events"
        " WHERE event_type = 'SIGNAL_REJECTED')"
    ).fetchone()
    assert kept == ("AAPL",)


def test_a_rejected_bar_that_comes_again_is_no_second_event(app: Connection[Any]) -> None:
    source = FakeSource({"AAPL": [seeds.bar(0), seeds.bar(1, price=float("nan"))]})
    first, second = run(app, source), run(app, source)
    assert (first.rejected, second.rejected) == (1, 1)
    assert len(events(app, "SIGNAL_REJECTED")) == 1
    assert seeds.counts(app) == (2, 2, 2)


def test_an_observation_of_an_unknown_type_is_rejected(app: Connection[Any]) -> None:
    assert run(app, FakeSource({"AAPL": [Observation("WEATHER_CHANGED", seeds.FIRST_BAR, {})]})).rejected == 1
    assert events(app, "SIGNAL_REJECTED")[0][1]["field"] == "event_type"


def test_a_gap_is_an_event(app: Connection[Any]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(1)}))
    until = seeds.bar(100).occurred_at
    source = FakeSource({"AAPL": seeds.bars(3, start=100)}, kept_from=until)
    result = run(app, source)
    assert (result.fetched, result.ingested, result.failed_symbols) == (3, 3, [])
    assert events(app, "SOURCE_GAP_DETECTED") == [
        ("AAPL", {"symbol": "AAPL", "since": "2026-01-05T14:17:00Z", "until": "2026-01-05T16:12:00Z"})
    ]


@pytest.mark.parametrize(
    "odd", [float("nan"), float("-inf"), "NUL \x00", "lone \ud800 surrogate", {"\x00": 1}, [2**70 + 1]], ids=repr
)
def test_a_raw_answer_that_jsonb_would_refuse_is_kept_as_text(app: Connection[Any], odd: Any) -> None:
    source = FakeSource({"AAPL": seeds.bars(1)})
    source.raws["AAPL"] = {"odd": odd}
    assert run(app, source).ingested == 1
    ((stored,),) = app.execute("SELECT payload_json FROM raw_payloads").fetchall()
    assert stored.keys() == {"status", "content_type", "body"}
    assert repr(json.loads(stored["body"])) == repr({"odd": odd})


def test_a_raw_answer_nested_without_end_harms_nobody(app: Connection[Any]) -> None:
    nested: Json = []
    for _ in range(5_000):
        nested = [nested]
    source = FakeSource({"ODD": seeds.bars(1), "AAPL": seeds.bars(2)})
    source.raws["ODD"] = nested
    result = run(app, source, "ODD", "AAPL")
    assert result.ingested >= 2
    assert app.execute("SELECT count(*) FROM raw_payloads").fetchone() == (2,)


def test_the_next_fetch_starts_a_quarter_of_an_hour_before_the_newest_bar(app: Connection[Any]) -> None:
    source = FakeSource({"AAPL": seeds.bars(30), "IBM": []})
    run(app, source, "AAPL", "IBM")
    assert source.asked == {"AAPL": None, "IBM": None}
    run(app, source, "AAPL", "IBM")
    assert source.asked == {"AAPL": seeds.bar(29).occurred_at - timedelta(minutes=15), "IBM": None}


def test_only_the_sources_own_bars_move_the_next_fetch(app: Connection[Any]) -> None:
    source = FakeSource({"AAPL": seeds.bars(2)})
    run(app, source)
    late = FakeSource({"AAPL": [seeds.bar(500, price=None)]})
    run(app, late)  # a rejection, at minute 500
    other = FakeSource({"AAPL": seeds.bars(1, start=900)})
    other.name = "another"
    run(app, other)
    run(app, source)
    assert source.asked["AAPL"] == seeds.bar(1).occurred_at - timedelta(minutes=15)


def test_metrics_count_what_was_committed(app: Connection[Any]) -> None:
    telemetry = RecordingTelemetry()
    source = FakeSource({"AAPL": [seeds.bar(0), seeds.bar(0), seeds.bar(1, price=None)]})
    ingest(app, source, ["AAPL", "NOPE"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert telemetry.totals == {
        "EventsIngested": 3,
        "DuplicateEvents": 1,
        "StaleLooks": 0,
        "SourceFailures": 1,
        "BreakerOpen": 0,
        "OpenSymbols": 0,
    }


def moved_to_now(minutes_ago: Sequence[float]) -> list[Observation]:
    """A bar that started so many minutes ago, each."""
    now = datetime.now(UTC)
    return [
        replace(seeds.bar(number), occurred_at=now - timedelta(minutes=minutes))
        for number, minutes in enumerate(minutes_ago)
    ]


def silence_of(telemetry: RecordingTelemetry) -> float:
    """In minutes."""
    return telemetry.totals["MarketSilence"] / 60


def test_how_long_the_most_silent_open_market_has_had_no_bar_is_measured(app: Connection[Any]) -> None:
    now = datetime.now(UTC)
    new_york = TradingSession(now - timedelta(hours=5), now + timedelta(hours=1))
    london = TradingSession(now - timedelta(hours=2), now + timedelta(hours=4))
    source = FakeSource(
        {
            "AAPL": moved_to_now([30, 1]),
            "HALTED": moved_to_now([200]),
            "BP.L": moved_to_now([70, 40]),
            "SHUT": moved_to_now([900]),
        }
    )
    source.sessions = {"AAPL": new_york, "HALTED": new_york, "BP.L": london}
    telemetry = RecordingTelemetry()
    ingest(app, source, [*source.bars, "NOPE"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert telemetry.totals["OpenSymbols"] == 3
    # One symbol that is not traded does not silence New York; London is the silent one.
    assert silence_of(telemetry) == pytest.approx(40, abs=1)


def test_a_market_that_opened_a_moment_ago_is_not_silent_since_the_evening_before(app: Connection[Any]) -> None:
    now = datetime.now(UTC)
    source = FakeSource({"AAPL": moved_to_now([900])})
    source.sessions = {"AAPL": TradingSession(now - timedelta(minutes=3), now + timedelta(hours=6))}
    telemetry = RecordingTelemetry()
    ingest(app, source, ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert silence_of(telemetry) == pytest.approx(3, abs=1)


def test_an_answer_without_bars_is_silent_since_the_newest_stored_one(app: Connection[Any]) -> None:
    now = datetime.now(UTC)
    source = FakeSource({"AAPL": moved_to_now([50])})
    run(app, source)
    source.bars["AAPL"] = []
    source.sessions = {"AAPL": TradingSession(now - timedelta(hours=3), now + timedelta(hours=3))}
    telemetry = RecordingTelemetry()
    ingest(app, source, ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert silence_of(telemetry) == pytest.approx(50, abs=1)


def test_at_night_there_is_no_silence_to_speak_of(app: Connection[Any]) -> None:
    telemetry = RecordingTelemetry()
    ingest(app, FakeSource({"AAPL": moved_to_now([900])}), ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert "MarketSilence" not in telemetry.totals
    assert telemetry.totals["OpenSymbols"] == 0


def test_of_markets_nobody_answered_for_nothing_is_said(app: Connection[Any]) -> None:
    telemetry = RecordingTelemetry()
    down = FakeSource({"AAPL": SourceError("AAPL", "unreachable", "no route")})
    ingest(app, down, ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert not telemetry.totals.keys() & {"OpenSymbols", "MarketSilence"}


def test_nothing_is_counted_where_nothing_was_committed(app: Connection[Any], owner: Connection[Any]) -> None:
    owner.execute("REVOKE EXECUTE ON FUNCTION insert_events FROM acp_ingest")
    telemetry = RecordingTelemetry()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ingest(app, FakeSource({"AAPL": seeds.bars(1)}), ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert not telemetry.totals
    assert seeds.counts(app) == (0, 0, 0)


def test_a_large_ingestion_is_committed_in_parts_a_symbol_whole(
    app: Connection[Any], owner: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_LOOKS_PER_TRANSACTION", 50)
    # As of the third symbol the database refuses: what is there by then was committed before.
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
    assert result.ingested == 5_199 + 60  # AAPL from its stored bar on, IBM's most recent hour
    assert seeds.counts(app) == (2, 5_260, 5_260)


# A source that hangs, and a run's time that is up


class HangingSource(FakeSource):
    """Does not answer for ``hanging`` until told to."""

    def __init__(self, bars: Mapping[str, Sequence[Observation]]) -> None:
        super().__init__(bars)
        self.hanging = {"HANG"}
        self.hangs = Signal()
        self.answer = Signal()

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        if symbol in self.hanging:
            self.hangs.set()
            assert self.answer.wait(60)
        return super().fetch(symbol, since, asked_at)


@pytest.fixture
def hanging() -> Iterator[HangingSource]:
    source = HangingSource(dict.fromkeys(["HANG", "AAPL", "MSFT"], seeds.bars(3)))
    yield source
    source.answer.set()


def reasons(connection: Connection[Any]) -> dict[str, tuple[str, str]]:
    failed = events(connection, "SOURCE_FETCH_FAILED")
    return {entity_id: (payload["kind"], payload["reason"]) for entity_id, payload in failed}


def test_a_symbol_that_hangs_costs_the_others_nothing(app: Connection[Any], hanging: HangingSource) -> None:
    telemetry = RecordingTelemetry()

    def remaining_seconds() -> float:
        everyone_else_is_stored = telemetry.totals["EventsIngested"] == 6
        return 0 if everyone_else_is_stored and hanging.hangs.is_set() else 100

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "_STORE_EVERY_SECONDS", 0.01)
        result = ingest(
            app,
            hanging,
            ["AAPL", "HANG", "MSFT"],
            telemetry,
            POLICY,
            event_types=EVENT_TYPES,
            remaining_seconds=remaining_seconds,
        )
    assert (result.symbols, result.failed_symbols) == (["AAPL", "HANG", "MSFT"], ["HANG"])
    assert (result.fetched, result.ingested) == (6, 6)
    assert reasons(app) == {"HANG": ("unreachable", "no answer before the run's time was up")}
    hanging.answer.set()
    assert run(app, hanging, "AAPL", "HANG", "MSFT").ingested == 3


def test_symbols_whose_turn_never_came_are_named_in_the_order_given(
    app: Connection[Any], monkeypatch: pytest.MonkeyPatch, hanging: HangingSource
) -> None:
    monkeypatch.setattr(service, "MAX_PARALLEL_FETCHES", 1)
    monkeypatch.setattr(service, "_STORE_EVERY_SECONDS", 0.01)
    symbols = ["HANG", "AAPL", "MSFT"]
    hanging.hanging = set(symbols)
    result = ingest(
        app,
        hanging,
        symbols,
        RecordingTelemetry(),
        POLICY,
        event_types=EVENT_TYPES,
        remaining_seconds=lambda: service.STORING_SECONDS + (0 if hanging.hangs.is_set() else 100),
    )
    assert result.failed_symbols == symbols
    started = symbols[UUID(result.trace_id).int % len(symbols)]
    never_started = dict.fromkeys(symbols, ("unreachable", "the run's time was up before its turn"))
    assert reasons(app) == never_started | {started: ("unreachable", "no answer before the run's time was up")}


def test_what_came_is_stored_while_others_are_still_awaited(
    app: Connection[Any], owner: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_STORE_EVERY_SECONDS", 0.01)

    class Waiting(FakeSource):
        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            deadline = time.monotonic() + 30
            while symbol == "LAST" and seeds.counts(owner)[1] < 3:
                assert time.monotonic() < deadline, "nothing was stored meanwhile"
            return super().fetch(symbol, since, asked_at)

    result = run(app, Waiting({"AAPL": seeds.bars(3), "LAST": seeds.bars(3)}), "AAPL", "LAST")
    assert (result.ingested, result.failed_symbols) == (6, [])


def test_each_run_starts_with_another_symbol_and_asks_for_all(
    app: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_PARALLEL_FETCHES", 1)
    symbols = [chr(ord("A") + number) for number in range(26)]
    for _ in range(3):
        source = FakeSource({})
        result = run(app, source, *symbols)
        first = UUID(result.trace_id).int % len(symbols)
        assert list(source.asked) == symbols[first:] + symbols[:first]
        assert result.symbols == result.failed_symbols == symbols


# Postgres goes away in the middle


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A cluster to crash; it comes back on the same port."""
    with PostgresServer(tmp_path / "data", password="secret", port=free_port(), fsync=False) as server:
        with connect(server.url(), application_name="test") as connection:
            migrate(connection, read_migrations(MIGRATIONS))
            sync_subscriptions(connection, SUBSCRIPTIONS)
        yield server


class CrashingSource(FakeSource):
    """Takes Postgres with it when asked for CRASH."""

    crash: Callable[[], None]

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        if symbol == "CRASH":
            self.crash()
        return super().fetch(symbol, since, asked_at)


def test_a_crash_of_postgres_in_the_middle_is_a_clear_error_and_the_next_run_has_it_all(
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
    assert stopped.wait(30)  # the run does not wait for its threads
    own_postgres.start()
    source.crash = lambda: None
    with connect(own_postgres.url(), application_name="test") as connection:
        raws, stored, messages = seeds.counts(connection)
        assert (raws, stored) in {(0, 0), (1, 20), (2, 40)}  # whole symbols: those that came before the crash
        assert messages == stored
        result = run(connection, source, *symbols)
        assert result.ingested == 60 - stored
        assert seeds.counts(connection)[1:] == (60, 60)


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


# What did not change is not said again

NOON = datetime(2026, 2, 10, 12, tzinfo=UTC)


def run_three_times(connection: Connection[Any], answer: Sequence[Observation]) -> list[int]:
    """Runs of one answer, a minute further forgotten each time; how many events there are after each."""
    numbers = []
    for minute in range(3):
        run(connection, FakeSource({"AAPL": answer}, kept_from=NOON + timedelta(minutes=minute)))
        numbers.append(seeds.counts(connection)[1])
    return numbers


def at_noon(observation: Observation) -> Observation:
    """An hour after what the source has forgotten."""
    return replace(observation, occurred_at=NOON + timedelta(hours=1))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([], id="no bar came"),
        pytest.param([at_noon(seeds.bar(price=None))], id="all bars were rejected"),
        pytest.param([at_noon(Observation("WEATHER_CHANGED", seeds.FIRST_BAR, {}))], id="nothing that we know came"),
    ],
)
def test_a_gap_without_an_accepted_bar_is_one_event(app: Connection[Any], answer: Sequence[Observation]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(1)}))
    run_three_times(app, answer)
    assert [payload["until"] for _, payload in events(app, "SOURCE_GAP_DETECTED")] == ["2026-02-10T00:00:00Z"]


def test_a_gap_before_the_newest_stored_bar_is_one_event(app: Connection[Any]) -> None:
    # The source forgets what lies within the overlap, and has nothing newer than what is stored.
    newest = replace(seeds.bar(), occurred_at=NOON + timedelta(minutes=5))
    run(app, FakeSource({"AAPL": [newest]}))
    first, second, third = run_three_times(app, [newest])
    assert (second, third) == (first, first)


def test_a_gap_that_lasts_is_said_again_the_next_day(app: Connection[Any]) -> None:
    run(app, FakeSource({"AAPL": seeds.bars(1)}))
    for day in (0, 0, 1, 1):
        run(app, FakeSource({"AAPL": []}, kept_from=NOON + timedelta(days=day)))
    assert sorted(payload["until"] for _, payload in events(app, "SOURCE_GAP_DETECTED")) == [
        "2026-02-10T00:00:00Z",
        "2026-02-11T00:00:00Z",
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param([seeds.bar(price=1.0), seeds.bar(price=2.0)], 1, id="two values for one instant"),
        pytest.param([seeds.bar(price=None), seeds.bar(high=None)], 1, id="two refused values for one instant"),
        pytest.param([seeds.bar(price=None), seeds.bar(price=2.0)], 2, id="a refused and a good one"),
        pytest.param(
            [seeds.bar(price=None), replace(seeds.bar(high=None), series="1d")], 2, id="refused ones of two series"
        ),
        pytest.param(
            [seeds.bar(price=None), Observation("WEATHER_CHANGED", seeds.FIRST_BAR, {}, "1m")],
            2,
            id="refused ones of two types",
        ),
    ],
)
def test_an_answer_at_odds_with_itself_is_stored_once(
    app: Connection[Any], answer: Sequence[Observation], said: int
) -> None:
    for _ in range(3):
        assert run(app, FakeSource({"AAPL": answer})).fetched == len(answer)
        assert seeds.counts(app)[1] == said


def test_of_two_values_for_one_instant_the_last_stands(app: Connection[Any]) -> None:
    result = run(app, FakeSource({"AAPL": [seeds.bar(price=1.0), seeds.bar(price=2.0)]}))
    assert (result.fetched, result.ingested, result.duplicates) == (2, 1, 1)
    assert [payload["price"] for _, payload in events(app, "MARKET_TICK_INGESTED")] == [2.0]


SAID = st.lists(
    st.builds(
        lambda minute, changes, series: replace(seeds.bar(minute, **changes), series=series),
        st.integers(0, 2),
        st.sampled_from([{}, {"price": 1.0}, {"price": None}, {"high": float("nan")}, {"surprise": 1}]),
        st.sampled_from(["1m", "1d"]),
    ),
    max_size=6,
)


@given(answer=SAID)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_answer_again_is_never_another_event(app: Connection[Any], answer: list[Observation]) -> None:
    with app.transaction(force_rollback=True):
        run(app, FakeSource({"AAPL": [*seeds.bars(1), *answer]}))
        first, second, third = run_three_times(app, answer)
        assert (second, third) == (first, first)


# One clock for all runs


def test_looks_are_dated_by_the_databases_clock(app: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    then = datetime(2020, 2, 29, 12, tzinfo=UTC)
    monkeypatch.setattr(service, "database_time", lambda _: then)
    source = FakeSource({"AAPL": seeds.bars(30)})
    result = run(app, source, "AAPL", "NOPE")
    assert result.failed_symbols == ["NOPE"]
    for instant in source.asked_at.values():
        assert then <= instant < then + timedelta(minutes=1)
    dated = app.execute("SELECT entity_id, observed_at FROM events").fetchall()
    assert set(dated) == set(source.asked_at.items())


def test_a_symbol_is_dated_when_its_turn_comes(app: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_PARALLEL_FETCHES", 1)

    class Unhurried(FakeSource):
        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            time.sleep(0.02)
            return super().fetch(symbol, since, asked_at)

    source = Unhurried(dict.fromkeys("ABC", seeds.bars(1)))
    run(app, source, *"ABC")
    in_turn = list(source.asked_at.values())
    assert all(later - earlier >= timedelta(seconds=0.02) for earlier, later in pairwise(in_turn))


def test_a_raw_payload_keeps_what_was_asked_and_when(app: Connection[Any]) -> None:
    source = FakeSource({"AAPL": seeds.bars(30)})
    for since in (None, seeds.bar(29).occurred_at - timedelta(minutes=15)):
        run(app, source)
        row = app.execute(
            "SELECT source, entity_id, observed_at, window_since, fetched_at >= observed_at AND fetched_at <= now()"
            " FROM raw_payloads ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        assert row == ("fake", "AAPL", source.asked_at["AAPL"], since, True)


# How much one transaction holds


def test_a_transaction_holds_no_more_than_it_may(app: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert sum(entities for entities, _ in batches) == len(market)  # each symbol whole, in one of them


def test_more_entities_than_a_transaction_may_lock_are_refused(app: Connection[Any]) -> None:
    looks = [replace(seeds.ticks(1)[0], entity_id=f"E{number}") for number in range(501)]
    with app.transaction(force_rollback=True), pytest.raises(ValueError, match="501 entities in one transaction"):
        store_events(app, [], looks)


# Messages that nobody gets


def test_messages_without_a_subscription_are_counted_and_named(app: Connection[Any], owner: Connection[Any]) -> None:
    owner.execute("UPDATE subscriptions SET removed_at = now() WHERE name = 'signal_lab'")
    telemetry = RecordingTelemetry()
    lines = io.StringIO()
    telemetry.logger.registered_handler.setStream(lines)  # type: ignore[attr-defined]
    ingest(app, FakeSource({"AAPL": seeds.bars(3)}), ["AAPL", "NOPE"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert telemetry.totals["UnsubscribedMessages"] == 3
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    warned = [line for line in said if line["message"].startswith("no subscription")]
    assert [(line["topic"], line["messages"]) for line in warned] == [("market.ticks", 3)]
    assert seeds.counts(app) == (2, 4, 4)
    assert app.execute("SELECT DISTINCT subscription FROM pending_deliveries").fetchall() == [("system_events",)]


# What it costs to find where to go on


def visited(plan: Any) -> int:
    """How many rows of tables a plan touched, those it threw away included."""
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


def test_the_end_of_a_chain_is_found_among_many_by_probes(app: Connection[Any], owner: Connection[Any]) -> None:
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
    # An event and a repeated look each; the plan's figures are averages, rounded to whole rows by older servers.
    assert 2 * many * 0.95 <= visited(json.loads(steps)[0]["Plan"]) <= 3 * many
    assert {"events_one_per_revision", "repeated_looks_key"} == set(re.findall(r'"Index Name": "(\w+)"', steps))


# Bounded: what one answer can cost


def test_the_database_refuses_a_raw_payload_beyond_its_bound(app: Connection[Any]) -> None:
    too_large = replace(raw_payload(), payload={"text": "x" * LARGEST_RAW_PAYLOAD})
    with pytest.raises(psycopg.errors.CheckViolation, match="raw_payloads_are_bounded"), app.transaction():
        store_events(app, [too_large], [])


@pytest.mark.parametrize("raw", ["x" * LARGEST_RAW_PAYLOAD, [1e300] * 60_000], ids=["text", "digits"])
def test_an_answer_too_large_to_be_kept_fails_its_symbol_alone(app: Connection[Any], raw: Json) -> None:
    class Large(FakeSource):
        def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
            fetched = super().fetch(symbol, since, asked_at)
            return replace(fetched, raw=raw) if symbol == "IBM" else fetched

    result = run(app, Large({"AAPL": seeds.bars(3), "IBM": seeds.bars(3)}), "AAPL", "IBM")
    assert (result.ingested, result.failed_symbols) == (3, ["IBM"])
    ((entity_id, payload),) = events(app, "SOURCE_FETCH_FAILED")
    assert (entity_id, payload["kind"]) == ("IBM", "malformed")


def test_a_timeline_says_that_a_large_raw_payload_is_left_out(app: Connection[Any]) -> None:
    raw = replace(raw_payload(), payload={"text": "x" * (LARGEST_SHOWN_PAYLOAD + 1)})
    with app.transaction():
        stored = store_events(app, [raw], [replace(look, raw_payload_id=raw.id) for look in seeds.ticks(1)])
    timeline = read_timeline(app, stored.events[0].event_id)
    assert timeline is not None
    assert timeline.raw_payload is not None
    assert timeline.raw_payload["payload_json"] is None
    assert "more than the 1048576 that are shown" in timeline.raw_payload["omitted"]
