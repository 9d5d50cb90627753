"""A rebuild of the detector: the same bars, actions and findings again, and nothing told for it."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.detection import bar, dividend, quiet, split, standing, told
from tests.integration.history import running
from tests.integration.history.test_rebuild import REBUILD

from control_plane.ingestion.store import Look, store_events
from control_plane.model.contract import Event, parse_payload
from control_plane.operations.history.rebuild import accept
from control_plane.operations.kind import Operation, OperationRefused, State
from control_plane.platform.database import connect
from domains.finance import detector
from domains.finance.detector import scoring
from domains.finance.events import MARKET_PAYLOADS

WANTED = {"subscription": "detector"}
TABLES = detector.REBUILD.tables
FALLS_AT = 60


def market(entity: str = "AAPL") -> list[Event]:
    """Looks at a market with a fall, one that was corrected, a range, a split, a dividend, and bars after each."""
    return [
        *quiet(FALLS_AT, entity=entity),
        bar(50.0, FALLS_AT, entity=entity),
        bar(100.0, 61, low=60.0, entity=entity),
        *quiet(5, start=62, entity=entity),
        bar(50.0, 67, entity=entity),
        bar(50.0, 67, entity=entity, opening=49.0, revision=1),
        split(2, minute=67, entity=entity),
        *quiet(5, start=68, base=50.0, entity=entity),
        bar(20.0, 73, entity=entity),
        bar(50.0, 73, entity=entity, revision=1),
        dividend(0.5, minute=74, entity=entity),
        *quiet(5, start=74, base=49.5, entity=entity),
    ]


def stored(app: Connection[Any], events: list[Event]) -> list[Event]:
    """Stores events as ingestion does: each as a look, later revisions as later looks."""
    looks = [
        Look(
            parse_payload(MARKET_PAYLOADS[one.event_type, one.schema_version], one.payload),
            source=one.source,
            entity_id=one.entity_id,
            entity_type=one.entity_type,
            occurred_at=one.occurred_at,
            observed_at=one.observed_at.replace(microsecond=one.revision),
            trace_id=one.trace_id,
            series=one.series,
        )
        for one in events
    ]
    with app.transaction():
        return list(store_events(app, [], looks).events)


@dataclass(frozen=True)
class Stage:
    """A database with the connections of those who have to do with a rebuild of the detector."""

    database: TestDatabase
    app: Connection[Any]
    owner: Connection[Any]
    maintain: Connection[Any]
    detect: Connection[Any]

    def detects(self, events: list[Event]) -> None:
        """Stores events and has the detector consume them in order."""
        detected(self.detect, stored(self.app, events))

    def finishes(self, operation: Operation) -> Operation:
        """Makes the steps that are left of a rebuild; returns it as it ended."""
        running.finish(self.maintain, REBUILD, operation.operation_id)
        return running.read(self.owner, operation.operation_id)

    def told(self) -> list[Any]:
        """Returns what was told: the detector's record of it, and the events."""
        rows = self.owner.execute("SELECT * FROM detector_told ORDER BY source, entity_id, series, occurred_at, kind")
        return [rows.fetchall(), told(self.owner)]

    def until(self, phase: str) -> Operation:
        """Starts a rebuild and makes its steps until it has come to a phase."""
        operation = running.plan(self.owner, self.maintain, REBUILD, WANTED)
        running.start(self.owner, operation)
        while running.read(self.owner, operation.operation_id).cursor.get("phase", "begin") != phase:
            running.step(self.maintain, REBUILD, operation.operation_id, most=7)
        return running.read(self.owner, operation.operation_id)


@pytest.fixture
def stage(
    database: TestDatabase, app: Connection[Any], owner: Connection[Any], maintain: Connection[Any]
) -> Iterator[Stage]:
    """Where DetectorFunction, OperationsFunction and ingestion meet."""
    with connect(database.url("acp_detect"), application_name="detecting") as detect:
        yield Stage(database, app, owner, maintain, detect)


def detected(detect: Connection[Any], events: list[Event]) -> None:
    for event in events:
        detector.consume(detect, event)


def catalogue(admin: Connection[Any]) -> list[Any]:
    """What there is of the detector's tables and views: kinds, privileges, comments, definitions, indexes, columns."""
    return admin.execute(
        "SELECT relname, relkind, relacl::text, obj_description(oid), pg_get_viewdef(oid)::text,"
        " (SELECT array_agg(pg_get_indexdef(indexrelid) ORDER BY 1) FROM pg_index WHERE indrelid = oid)::text,"
        " (SELECT array_agg(conname || pg_get_constraintdef(c.oid) ORDER BY conname)"
        " FROM pg_constraint AS c WHERE conrelid = pg_class.oid)::text,"
        " (SELECT array_agg((attname, attnotnull, attgenerated, col_description(attrelid, attnum))::text"
        " ORDER BY attnum) FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0)::text"
        " FROM pg_class WHERE relname LIKE 'detector%' AND relkind IN ('r', 'v') ORDER BY relname, relnamespace"
    ).fetchall()


def are_equal(operation: Operation) -> bool:
    """Returns whether each table and its shadow had the same rows when they were compared."""
    tables = operation.cursor["tables"]
    return set(tables) == set(TABLES) and all(one["digest"] == one["rebuilt_digest"] for one in tables.values())


@pytest.mark.parametrize("seed", range(3))
def test_the_same_fold_makes_the_same_rows_and_tells_nothing(stage: Stage, seed: int) -> None:
    luck = random.Random(seed)
    events = stored(stage.app, luck.sample(market(), len(market())) if seed else market())
    detected(stage.detect, luck.sample(events, len(events)) + events[:9])
    before = (standing(stage.owner), stage.told())
    assert stage.owner.execute("SELECT FROM detector_anomalies WHERE state = 'detected'").fetchall()
    with psycopg.connect(stage.database.admin_url, autocommit=True) as admin:
        as_it_was = catalogue(admin)
        (oid,) = admin.execute("SELECT 'detector_bars'::regclass::oid").fetchone() or (0,)
        ended = running.run(stage.owner, stage.maintain, REBUILD, WANTED, most=7)
        assert (ended.state, ended.total, ended.done) == (State.DONE, len(events), len(events))
        assert are_equal(ended)
        assert catalogue(admin) == as_it_was
        assert admin.execute("SELECT 'detector_bars'::regclass::oid").fetchone() != (oid,)
    assert (standing(stage.owner), stage.told()) == before
    detected(stage.detect, events)
    assert stage.told() == before[1]


def test_what_live_traffic_finds_meanwhile_is_told_once_and_kept(stage: Stage) -> None:
    stage.detects(quiet(FALLS_AT))
    operation = stage.until("fold")
    fall = stored(stage.app, [bar(50.0, FALLS_AT)])
    detected(stage.detect, fall + fall)
    assert [(one.kind, one.is_withdrawn) for one in told(stage.owner)] == [("return", False)]
    phase = "fold"
    while phase in {"fold", "compare"}:
        phase = running.step(stage.maintain, REBUILD, operation.operation_id, most=7).cursor["phase"]
    assert phase == "swap"
    stage.detects([bar(50.0, 61, low=30.0)])
    assert stage.finishes(operation).state is State.DONE
    assert [one.kind for one in told(stage.owner)] == ["return", "range"]
    assert stage.owner.execute("SELECT kind, state, told FROM detector_anomalies ORDER BY occurred_at").fetchall() == [
        ("return", "detected", 1),
        ("range", "detected", 1),
    ]
    stage.detects([bar(100.0, FALLS_AT, revision=1)])
    assert [one.is_withdrawn for one in told(stage.owner) if one.kind == "return"][:2] == [False, True]


def test_what_is_corrected_meanwhile_is_withdrawn_once_and_found_in_neither(stage: Stage) -> None:
    stage.detects([*quiet(FALLS_AT), bar(50.0, FALLS_AT)])
    operation = stage.until("compare")
    assert stage.owner.execute("SELECT count(*) FROM shadow.detector_findings").fetchone() == (1,)
    stage.detects([bar(100.0, FALLS_AT, revision=1)])
    assert stage.owner.execute("SELECT count(*) FROM shadow.detector_findings").fetchone() == (0,)
    assert are_equal(stage.finishes(operation))
    assert [one.is_withdrawn for one in told(stage.owner)] == [False, True]
    assert stage.owner.execute("SELECT state, told FROM detector_anomalies").fetchall() == [("withdrawn", 2)]


def test_other_thresholds_change_what_is_found_and_tell_nothing_of_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.detects([*quiet(FALLS_AT), bar(50.0, FALLS_AT), *quiet(3, start=61, base=50.0)])
    before = stage.told()
    monkeypatch.setattr(scoring, "RETURN_THRESHOLD", 1e9)
    operation = stage.until("acceptance")
    assert operation.cursor["tables"]["detector_findings"]["rebuilt_rows"] == 0
    assert operation.cursor["tables"]["detector_bars"]["rows"] == 64
    with connect(stage.database.url("acp_command"), application_name="test") as command:
        accept(command, operation.operation_id, accepted_by="root")
    stage.finishes(operation)
    assert stage.told() == before
    assert stage.owner.execute("SELECT state, told, told_as IS NOT NULL FROM detector_anomalies").fetchall() == [
        ("withdrawn", 1, True)
    ]
    stage.detects(quiet(2, start=64, base=50.0))
    assert stage.told() == before


def test_readers_never_see_less_while_the_detector_works(stage: Stage) -> None:
    stage.detects([*quiet(FALLS_AT), bar(50.0, FALLS_AT)])
    stop = threading.Event()

    def read() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        with connect(stage.database.url("acp_reader"), application_name="reading") as reader:
            while not stop.is_set():
                seen += reader.execute(
                    "SELECT (SELECT count(*) FROM detector_bars), (SELECT count(*) FROM detector_anomalies)"
                ).fetchall()
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for number in range(3):
                operation = stage.until("swap")
                stage.detects([*quiet(3, start=61 + 4 * number), bar(50.0, 64 + 4 * number)])
                stage.finishes(operation)
        finally:
            stop.set()
        seen = reading.result(60)
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert min(bars for bars, _ in seen) == FALLS_AT + 1
    assert min(anomalies for _, anomalies in seen) == 1


def test_a_shadow_that_refuses_spoils_the_rebuild_and_what_is_found_is_told(stage: Stage) -> None:
    stage.detects(quiet(FALLS_AT))
    operation = stage.until("fold")
    stage.owner.execute("ALTER TABLE shadow.detector_findings ADD CHECK (false) NOT VALID")
    stage.detects([*quiet(FALLS_AT, entity="IBM"), bar(50.0, FALLS_AT, entity="IBM")])
    assert [one.entity_id for one in told(stage.owner)] == ["IBM"]
    with pytest.raises(OperationRefused, match="could not write to the shadow tables"):
        running.step(stage.maintain, REBUILD, operation.operation_id)


@pytest.mark.parametrize("phase", ["begin", "fold", "compare", "swap"])
def test_a_step_that_dies_before_its_commit_is_made_again(stage: Stage, phase: str) -> None:
    stage.detects(market())
    before = (standing(stage.owner), stage.told())
    operation = stage.until(phase)
    with closing(connect(stage.database.url("acp_maintain"), application_name="dying")) as dying:
        dying.execute("BEGIN")
        REBUILD.step(dying, operation, most=7, seconds=5)
        with psycopg.connect(stage.database.admin_url, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [dying.info.backend_pid])
    assert standing(stage.owner) == before[0]
    ended = stage.finishes(operation)
    assert (ended.state, ended.cursor["phase"]) == (State.DONE, "swapped")
    assert are_equal(ended)
    assert (standing(stage.owner), stage.told()) == before
