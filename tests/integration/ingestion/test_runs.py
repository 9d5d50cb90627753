"""A run over many symbols: what it asks for, what it measures, and how it ends when its time is up."""

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Event as Signal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.fakes import FakeSource, RecordingTelemetry
from tests.integration.ingestion.runs import POLICY, events, run

from control_plane.ingestion import service
from control_plane.ingestion.service import ingest
from control_plane.ingestion.source import Fetched, Observation, TradingSession
from control_plane.model.errors import SourceError
from domains import EVENT_TYPES


def test_the_next_fetch_overlaps_the_newest_bar_by_fifteen_minutes(app: Connection[Any]) -> None:
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
    """Returns a bar for each number of minutes, which started that long ago."""
    now = datetime.now(UTC)
    return [
        replace(seeds.bar(number), occurred_at=now - timedelta(minutes=minutes))
        for number, minutes in enumerate(minutes_ago)
    ]


def silence_of(telemetry: RecordingTelemetry) -> float:
    """Returns the measured silence in minutes."""
    return telemetry.totals["MarketSilence"] / 60


def test_the_silence_of_the_most_silent_open_market_is_measured(app: Connection[Any]) -> None:
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
    # One symbol without trades does not make New York silent; London is the silent market.
    assert silence_of(telemetry) == pytest.approx(40, abs=1)


def test_a_market_just_opened_is_not_silent_since_yesterday(app: Connection[Any]) -> None:
    now = datetime.now(UTC)
    source = FakeSource({"AAPL": moved_to_now([900])})
    source.sessions = {"AAPL": TradingSession(now - timedelta(minutes=3), now + timedelta(hours=6))}
    telemetry = RecordingTelemetry()
    ingest(app, source, ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert silence_of(telemetry) == pytest.approx(3, abs=1)


def test_an_answer_without_bars_is_silent_since_the_newest_stored(app: Connection[Any]) -> None:
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


def test_markets_without_an_answer_are_not_reported(app: Connection[Any]) -> None:
    telemetry = RecordingTelemetry()
    down = FakeSource({"AAPL": SourceError("AAPL", "unreachable", "no route")})
    ingest(app, down, ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert not telemetry.totals.keys() & {"OpenSymbols", "MarketSilence"}


def test_nothing_is_counted_without_a_commit(app: Connection[Any], owner: Connection[Any]) -> None:
    owner.execute("REVOKE EXECUTE ON FUNCTION insert_events FROM acp_ingest")
    telemetry = RecordingTelemetry()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ingest(app, FakeSource({"AAPL": seeds.bars(1)}), ["AAPL"], telemetry, POLICY, event_types=EVENT_TYPES)
    assert not telemetry.totals
    assert seeds.counts(app) == (0, 0, 0)


# A source that hangs, and a run whose time is up


class HangingSource(FakeSource):
    """A source that does not answer for ``hanging`` until it is told to."""

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


def test_symbols_that_were_not_reached_are_named_in_order(
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


def test_early_answers_are_stored_before_late_ones_arrive(
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


# Messages without a subscription


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
