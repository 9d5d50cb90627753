"""Pieces of a backfill: each observation is stored once, the live flow is left no gap, and a kill loses nothing."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from bokeh_sampledata import stocks
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.fakes import FakeSource, RecordingTelemetry
from tests.integration.ingestion.runs import POLICY, run
from tests.operations_of import operation_of

from acp_cli.backfill_command import file_wanted
from acp_cli.observation_files import ReadFile, read_file
from control_plane.ingestion.backfill import PieceStorer, Window, read_piece
from control_plane.ingestion.file_source import FileSource
from control_plane.ingestion.rebuild import rebuild_observations
from control_plane.ingestion.source import Fetched
from control_plane.model.backfill import History, Reach
from control_plane.model.errors import SourceError
from control_plane.operations import service
from control_plane.operations.backfill.kind import Backfill, PieceFailed, backfill_wanted
from control_plane.operations.backfill.pieces import keep_piece
from control_plane.operations.engine import Engine
from control_plane.operations.kind import Operation, OperationConflict, OperationRefused, State
from control_plane.operations.rows import read_operation
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES
from domains.finance.price_file import BARS
from local_cloud.roles import COMMAND, INGEST, MAINTAIN

NOW = seeds.FIRST_BAR + timedelta(days=10)
DAY = timedelta(days=1)
HISTORY = History("fake", {"1m": Reach(timedelta(days=29), timedelta(days=7)), "1d": Reach(None, timedelta(days=365))})
WHOLE = os.environ.get("WHOLE_BACKFILL") == "1"
"""Whether all real days are filled in: about 16,000, in place of a few hundred."""


class Past(FakeSource):
    """A source with a past: bars of one minute; it remembers what it was asked."""

    def __init__(self, bars: Mapping[str, Any]) -> None:
        super().__init__(bars)
        self.windows: list[tuple[str, datetime, datetime]] = []

    def fetch_window(self, symbol: str, since: datetime, until: datetime, interval: str, asked_at: datetime) -> Fetched:
        self.windows.append((symbol, since, until))
        fetched = self.fetch(symbol, since, asked_at)
        return replace(fetched, observations=tuple(one for one in fetched.observations if one.occurred_at < until))


class Deployment:
    """The functions' parts in one process: IngestionFunction's pieces, the operation's steps, the API's uploads."""

    def __init__(self, database: TestDatabase, source: Past) -> None:
        self._opened = [connect(database.url(role), application_name="test") for role in (INGEST, MAINTAIN, COMMAND)]
        self.ingest, self.maintain, self.command = self._opened
        self.source = source
        self.asked: list[Mapping[str, Any]] = []
        self.kind = Backfill([HISTORY], self.ask, now=lambda: NOW)

    def close(self) -> None:
        for connection in self._opened:
            connection.close()

    def ask(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(event)
        storer = PieceStorer(self.ingest, RecordingTelemetry(), event_types=EVENT_TYPES)
        piece = read_piece(json.loads(json.dumps(event)))
        if isinstance(piece, Window):
            return storer.store_window(piece, self.source, POLICY).to_dict()
        return storer.store_file_piece(piece, self.source).to_dict()

    def plan(self, wanted: Mapping[str, Any]) -> Operation:
        chosen = self.kind.parse(wanted)
        planned = self.kind.plan(self.maintain, operation_of("backfill", chosen))
        assert planned.is_complete
        return operation_of("backfill", chosen, plan=planned.plan)

    def step(self, operation: Operation, *, most: int = 1) -> tuple[Operation, bool]:
        asked = self.kind.prepare(operation, most=most, seconds=60)
        with self.maintain.transaction():
            stepped = self.kind.step(self.maintain, operation, most=most, seconds=60, prepared=asked)
        progress = {
            "total": operation.total,
            "done": operation.done + stepped.done,
            "skipped": operation.skipped + stepped.skipped,
            "cursor": json.loads(json.dumps(stepped.cursor)),
        }
        return replace(operation, progress=progress), stepped.is_finished

    def run(self, wanted: Mapping[str, Any]) -> Operation:
        operation, is_finished = self.plan(wanted), False
        while not is_finished:
            operation, is_finished = self.step(operation, most=3)
        return operation

    def upload(self, read: ReadFile) -> None:
        for number, part in enumerate(read.parts, 1):
            keep_piece(self.command, file=read.sha256, number=number, body=part.body)


@pytest.fixture
def source() -> Past:
    return Past({"AAPL": seeds.bars(30), "IBM": seeds.bars(10)})


@pytest.fixture
def deployment(database: TestDatabase, source: Past) -> Iterator[Deployment]:
    deployment = Deployment(database, source)
    yield deployment
    deployment.close()


def wanted(*symbols: str, since: datetime = seeds.FIRST_BAR, until: datetime | None = None, **more: Any) -> Any:
    return backfill_wanted(
        symbols or ("AAPL",),
        since=since.isoformat(),
        until=None if until is None else until.isoformat(),
        interval=more.pop("interval", "1m"),
        **more,
    )


def counts(connection: Connection[Any]) -> tuple[int, int, int]:
    """Returns how many ticks, messages of ticks and pending deliveries there are."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM events WHERE event_type = 'MARKET_TICK_INGESTED'),"
        " (SELECT count(*) FROM outbox WHERE topic = 'market.ticks'), (SELECT count(*) FROM pending_deliveries)"
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


# Windows of a source


def test_each_bar_is_stored_once_and_again_adds_none(deployment: Deployment, owner: Connection[Any]) -> None:
    first = deployment.run(wanted("AAPL", "IBM"))
    assert (first.total, first.done, first.skipped) == (4, 4, 0), "two symbols, two windows of a week"
    assert first.cursor["ingested"] == counts(owner)[0] == 40
    again = deployment.run(wanted("AAPL", "IBM"))
    assert (again.cursor["ingested"], again.cursor["stale"]) == (0, 0)
    assert counts(owner)[0] == 40


def test_a_piece_that_was_stored_and_not_recorded_is_done_again_and_adds_none(
    deployment: Deployment, owner: Connection[Any]
) -> None:
    operation = deployment.plan(wanted())
    deployment.kind.prepare(operation, most=1, seconds=60)  # killed before its progress was committed
    assert counts(owner)[0] == 30
    is_finished = False
    while not is_finished:
        operation, is_finished = deployment.step(operation)
    assert operation.done == operation.total
    assert (operation.cursor["ingested"], counts(owner)[0]) == (0, 30)


def test_a_piece_has_one_trace_which_its_repetition_shares(deployment: Deployment, owner: Connection[Any]) -> None:
    deployment.run(wanted("AAPL", "IBM", until=seeds.FIRST_BAR + DAY))
    deployment.run(wanted("AAPL", "IBM", until=seeds.FIRST_BAR + DAY))
    assert owner.execute("SELECT count(DISTINCT trace_id) FROM raw_payloads").fetchone() == (2,)


def test_what_is_not_published_is_stored_whole_and_promised_to_nobody(
    deployment: Deployment, owner: Connection[Any]
) -> None:
    deployment.run(wanted(publish=False))
    assert counts(owner) == (30, 30, 0), "the messages wait for a replay"
    deployment.run(wanted(publish=True))
    assert counts(owner) == (30, 30, 0), "a duplicate is no event, so nothing is published later either"


def test_a_window_behind_the_newest_bar_is_fetched_as_asked(deployment: Deployment, source: Past) -> None:
    run(deployment.ingest, source)
    until = seeds.FIRST_BAR + 20 * seeds.MINUTE
    deployment.run(wanted(until=until))
    assert source.windows == [("AAPL", seeds.FIRST_BAR, until)]


def test_a_window_beyond_the_newest_bar_leaves_the_live_flow_no_gap(
    deployment: Deployment, source: Past, owner: Connection[Any]
) -> None:
    source.bars["AAPL"] = seeds.bars(5)
    run(deployment.ingest, source)
    source.bars["AAPL"] = seeds.bars(60)
    deployment.run(wanted(since=seeds.FIRST_BAR + 40 * seeds.MINUTE))
    assert counts(owner)[0] == 60, "the next run begins at the newest bar, so what lies between was fetched as well"


def test_what_is_not_published_ends_where_the_live_flow_goes_on(
    deployment: Deployment, source: Past, owner: Connection[Any]
) -> None:
    source.bars["AAPL"] = seeds.bars(5)
    run(deployment.ingest, source)
    source.bars["AAPL"] = seeds.bars(60)
    deployment.run(wanted(publish=False))
    assert counts(owner)[0] == 5
    promised = counts(owner)[2]
    run(deployment.ingest, source)
    assert counts(owner)[0] == 60
    assert counts(owner)[2] == 12 * promised, "every later bar is published"


def test_a_source_that_does_not_answer_is_asked_again(deployment: Deployment, source: Past) -> None:
    operation = deployment.plan(wanted("IBM", "AAPL", until=seeds.FIRST_BAR + DAY))
    answer = source.bars["AAPL"]
    source.bars["AAPL"] = SourceError("AAPL", "rate_limited", "the source asks for fewer requests (HTTP 429)")
    operation, is_finished = deployment.step(operation, most=5)
    assert (operation.done, is_finished) == (1, False), "what is done before it is recorded"
    with pytest.raises(PieceFailed, match=r"AAPL: .*fewer requests"):
        deployment.step(operation)
    source.bars["AAPL"] = answer
    operation, is_finished = deployment.step(operation)
    assert (operation.done, is_finished) == (2, True)


def test_a_symbol_that_the_source_does_not_know_is_skipped_and_named(deployment: Deployment) -> None:
    done = deployment.run(wanted("GONE", "AAPL", until=seeds.FIRST_BAR + DAY))
    assert (done.done, done.skipped) == (1, 1)
    failed = {"piece": 1, "symbol": "GONE", "kind": "unknown_symbol", "reason": "not traded here"}
    assert done.cursor["failed"] == [failed]


def test_nothing_is_fetched_while_the_sources_breaker_is_open(
    deployment: Deployment, source: Past, owner: Connection[Any]
) -> None:
    operation = deployment.plan(wanted())
    owner.execute(
        "INSERT INTO circuit_breakers (name, state, consecutive_failures, opened_at, retry_at)"
        " VALUES ('fake', 'open', 3, now(), now() + interval '1 hour')"
    )
    with pytest.raises(PieceFailed, match="breaker of fake is open"):
        deployment.step(operation)
    assert source.windows == []


def test_a_rate_spreads_the_pieces(deployment: Deployment) -> None:
    operation = replace(deployment.plan(wanted()), rate=0.5)
    asked = deployment.kind.prepare(operation, most=100, seconds=60)
    stepped = deployment.kind.step(deployment.maintain, operation, most=100, seconds=60, prepared=asked)
    assert stepped.done == 1
    assert stepped.next_at is not None
    assert stepped.next_at > datetime.now(UTC) + timedelta(seconds=1)


def test_a_pause_and_a_cancel_wait_for_no_source(
    deployment: Deployment, source: Past, owner: Connection[Any], telemetry: Telemetry
) -> None:
    due: list[Callable[[UUID], Any]] = []

    def ask(event: Mapping[str, Any]) -> Mapping[str, Any]:
        while due:
            due.pop()(UUID(event["operation_id"]))
        return deployment.ask(event)

    kind = Backfill([HISTORY], ask, now=lambda: NOW)
    deployment.command.execute("SET lock_timeout = '500ms'")
    engine = Engine(deployment.maintain, [kind], telemetry)
    asked = wanted(until=seeds.FIRST_BAR + DAY)
    requested = service.request_operation(
        deployment.command, [kind], kind="backfill", wanted=asked, requested_by="root"
    ).after

    def work(command: Callable[[UUID], Any] | None = None) -> Operation:
        due.extend([command] if command else [])
        engine.work()
        operation = read_operation(deployment.command, requested.operation_id)
        assert operation is not None
        return operation

    plan_hash = work().plan_hash or ""
    service.start_operation(
        deployment.command, requested.operation_id, plan_hash=plan_hash, started_by="root", reason="a gap"
    )
    paused = work(lambda it: service.pause_operation(deployment.command, it, by="root"))
    assert (paused.state, paused.done, paused.failures) == (State.PAUSED, 0, 0), "its piece will be asked for again"
    service.resume_operation(deployment.command, requested.operation_id, by="root")
    cancelled = work(lambda it: service.cancel_operation(deployment.command, [kind], it, by="root"))
    assert (cancelled.state, cancelled.done, cancelled.failures) == (State.CANCELLED, 0, 0)
    assert len(source.windows) == 2
    assert counts(owner)[0] == 30, "what is stored stays, once"


# Files


def csv_file(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["symbol", "occurred_at", "interval", "open", "high", "low", "close", "volume", "currency"])
        writer.writerows(rows)
    return path


def real_days(symbol: str, most: int | None) -> Iterator[Sequence[object]]:
    """Yields a stock's days as rows of a file; each begins when New York opens, in summer an hour earlier by UTC."""
    data = getattr(stocks, symbol)
    for day in range(len(data["date"][:most])):
        local = datetime.combine(datetime.fromisoformat(data["date"][day]), time(9, 30), ZoneInfo("America/New_York"))
        values = [data[name][day] for name in ("open", "high", "low", "close", "volume")]
        yield [symbol, local.isoformat(), "1d", *values, "USD"]


def test_each_real_day_of_a_file_is_stored_once_with_its_instant(
    deployment: Deployment, owner: Connection[Any], tmp_path: Path
) -> None:
    rows = [
        row for symbol in ("AAPL", "FB", "GOOG", "IBM", "MSFT") for row in real_days(symbol, None if WHOLE else 150)
    ]
    read = read_file(csv_file(tmp_path / "days.csv", rows), BARS)
    assert (read.bad_rows, read.observations) == ([], len(rows))
    asked = file_wanted(read, observed_at="2013-03-02T00:00:00Z")
    for place in range(2):
        deployment.upload(read)
        done = deployment.run(asked)
        assert (done.cursor["ingested"], done.cursor["duplicates"]) == ((len(rows), 0), (0, len(rows)))[place]
    stored = owner.execute(
        "SELECT entity_id, occurred_at, series, revision, (payload_json ->> 'price')::float8 FROM events"
    ).fetchall()
    expected = {
        (row[0], datetime.fromisoformat(str(row[1])).astimezone(UTC), "1d", 0, float(str(row[6]))) for row in rows
    }
    assert len(stored) == len(rows)
    assert {(entity, at.astimezone(UTC), *rest) for entity, at, *rest in stored} == expected
    assert owner.execute("SELECT count(*) FROM backfill_pieces").fetchone() == (0,), "an ingested file is forgotten"


def test_an_older_file_beats_no_newer_one(deployment: Deployment, owner: Connection[Any], tmp_path: Path) -> None:
    day = ["AAPL", "2013-02-28T14:30:00Z", "1d", 1, 2, 1]
    newer = read_file(csv_file(tmp_path / "newer.csv", [[*day, 1.5, 10, "USD"]]), BARS)
    older = read_file(csv_file(tmp_path / "older.csv", [[*day, 1.25, 10, "USD"]]), BARS)
    for read, observed_at in ((newer, "2013-03-02T00:00:00Z"), (older, "2013-03-01T00:00:00Z")):
        deployment.upload(read)
        done = deployment.run(file_wanted(read, observed_at=observed_at))
    assert done.cursor["stale"] == 1
    assert owner.execute("SELECT payload_json ->> 'price' FROM events").fetchall() == [("1.5",)]


def test_a_file_must_not_run_ahead_of_the_live_flow(
    deployment: Deployment, owner: Connection[Any], source: Past, tmp_path: Path
) -> None:
    run(deployment.ingest, source)
    ahead = (seeds.FIRST_BAR + DAY).isoformat()
    read = read_file(csv_file(tmp_path / "ahead.csv", [["AAPL", ahead, "1m", 1, 2, 1, 1.5, 10, "USD"]]), BARS)
    deployment.upload(read)
    done = deployment.run(file_wanted(read, observed_at=NOW.isoformat(), source="fake"))
    assert (done.skipped, counts(owner)[0]) == (1, 30)
    assert "run ahead of fake" in done.cursor["failed"][0]["reason"]


def test_observations_of_a_file_are_rebuilt_with_the_same_ids(
    deployment: Deployment, owner: Connection[Any], tmp_path: Path
) -> None:
    read = read_file(csv_file(tmp_path / "days.csv", list(real_days("IBM", 20))), BARS)
    deployment.upload(read)
    deployment.run(file_wanted(read, observed_at="2013-03-02T00:00:00Z"))
    rebuilt = {one.event_id for one in rebuild_observations(owner, FileSource("file"), EVENT_TYPES, entity_id="IBM")}
    assert rebuilt == {row[0] for row in owner.execute("SELECT event_id FROM events")}


def test_a_file_is_planned_only_once_all_its_pieces_are_there(deployment: Deployment, tmp_path: Path) -> None:
    read = read_file(csv_file(tmp_path / "days.csv", list(real_days("IBM", 20))), BARS)
    asked = file_wanted(read, observed_at="2013-03-02T00:00:00Z")
    with pytest.raises(OperationRefused, match="0 of the file's 1 pieces are there"):
        deployment.plan(asked)
    deployment.upload(read)
    deployment.upload(read)
    assert deployment.plan(asked).plan["observations"] == 20


def test_another_piece_under_the_same_number_is_refused(deployment: Deployment) -> None:
    file = "a" * 64
    assert keep_piece(deployment.command, file=file, number=1, body='[{"entity_id":"A"}]')
    assert not keep_piece(deployment.command, file=file, number=1, body='[{"entity_id":"A"}]')
    with pytest.raises(OperationConflict, match="piece 1 of this file is another one"):
        keep_piece(deployment.command, file=file, number=1, body='[{"entity_id":"B"}]')


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[", "no JSON"),
        ("{}", "a list of 1 to 5000"),
        ("[]", "a list of 1 to 5000"),
        (f'["{"x" * (1 << 20)}"]', "larger than 1048576 bytes"),
        ("[" * 100_000 + "]" * 100_000, "no JSON|a list|refused"),
    ],
)
def test_what_is_no_piece_is_refused(deployment: Deployment, body: str, reason: str) -> None:
    with pytest.raises(OperationRefused, match=reason):
        keep_piece(deployment.command, file="a" * 64, number=1, body=body)


def test_a_piece_that_is_gone_ends_the_operation(
    deployment: Deployment, tmp_path: Path, owner: Connection[Any]
) -> None:
    read = read_file(csv_file(tmp_path / "days.csv", list(real_days("IBM", 20))), BARS)
    deployment.upload(read)
    operation = deployment.plan(file_wanted(read, observed_at="2013-03-02T00:00:00Z"))
    owner.execute("DELETE FROM backfill_pieces")
    with pytest.raises(OperationRefused, match="upload the file again"):
        deployment.step(operation)


def test_cancelling_forgets_the_upload(deployment: Deployment, tmp_path: Path, owner: Connection[Any]) -> None:
    read = read_file(csv_file(tmp_path / "days.csv", list(real_days("IBM", 20))), BARS)
    deployment.upload(read)
    operation = deployment.plan(file_wanted(read, observed_at="2013-03-02T00:00:00Z"))
    deployment.kind.cancel(deployment.command, operation)
    assert owner.execute("SELECT count(*) FROM backfill_pieces").fetchone() == (0,)


def test_a_hostile_piece_is_refused_and_stores_nothing(deployment: Deployment, owner: Connection[Any]) -> None:
    file, body = "a" * 64, json.dumps([{"entity_id": "AAPL", "payload": {}}])
    keep_piece(deployment.command, file=file, number=1, body=body)
    event = {
        "operation_id": str(uuid4()), "file": file, "number": 1, "source": "file", "publish": True,
        "observed_at": "2013-03-02T00:00:00Z",
    }  # fmt: skip
    assert deployment.ask(event)["failures"][0]["symbol"] == "*"
    assert counts(owner) == (0, 0, 0)
