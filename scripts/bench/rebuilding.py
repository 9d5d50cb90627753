"""The scenario of a rebuild: a consumer's tables are made again from its events while others read them."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

import psycopg

from bench.figures import Bar, Figure, Measured
from bench.rig import QUERIES, BenchError, Seed
from control_plane.ingestion.store import Look, store_events
from control_plane.operations import service
from control_plane.operations.engine import Engine
from control_plane.operations.kind import State
from control_plane.operations.rows import read_operation
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from domains import load_kinds
from domains.finance.events import MarketTick
from local_cloud.roles import MAINTAIN, READER

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection

    from bench.rig import Database, Rig
    from bench.sizes import Sizes

_READ_SECONDS: Final = 0.05
"""How often a reader counts the rows."""


_STORED_AT_ONCE: Final = 5_000
_ENTITIES: Final = 200
_FIRST: Final = datetime(2015, 1, 2, 14, 30, tzinfo=UTC)


def _store_bars(connection: Connection[Any], numbers: range) -> None:
    """Stores so many bars of 200 entities, as ingestion does; nobody is subscribed."""
    looks = [
        Look(
            MarketTick(
                price=100.5 + number % 7, open=100, high=107, low=99.5, volume=1200, currency="USD", interval="1m"
            ),
            source="bench",
            entity_id=f"E{number % _ENTITIES}",
            entity_type="equity",
            occurred_at=_FIRST + number // _ENTITIES * timedelta(minutes=1),
            observed_at=_FIRST,
            trace_id=UUID(int=1),
            series="1m",
        )
        for number in numbers
    ]
    with connection.transaction():
        store_events(connection, [], looks)


class _Reader:
    """Reads the newest price of an entity and counts its bars, again and again, and keeps what it saw."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.seen: list[int] = []
        self.longest_seconds = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _read(self) -> None:
        with connect(self._url, application_name="bench-reader") as connection:
            while not self._stop.wait(_READ_SECONDS):
                began = time.monotonic()
                self.seen.append(_one(connection, "SELECT count(*) FROM signal_lab_bars WHERE entity_id = 'E1'"))
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)


def rebuild(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures one rebuild of SignalLab: how long it takes, whether digests agree, and what readers see meanwhile."""
    with rig.filled(Seed(0)) as database:
        say(f"{sizes.rebuilt_events:,} processed events")
        with psycopg.connect(database.admin_url, autocommit=True) as admin:
            for start in range(0, sizes.rebuilt_events, _STORED_AT_ONCE):
                _store_bars(admin, range(start, min(start + _STORED_AT_ONCE, sizes.rebuilt_events)))
            admin.execute(QUERIES["process_bars"].sql)
            admin.execute("VACUUM (ANALYZE) events, outbox, processed_events, signal_lab_bars")
            before = _one(admin, "SELECT count(*) FROM signal_lab_bars WHERE entity_id = 'E1'")
        say("the rebuild")
        with _Reader(rig.url_as(READER, database)) as reader:
            seconds, phases = _rebuild(rig, database)
    if not reader.seen or min(reader.seen) < before:
        msg = f"A reader saw {min(reader.seen, default=0)} of {before} rows."
        raise BenchError(msg)
    rate = sizes.rebuilt_events / seconds
    return Measured(
        [
            Figure("rebuilt, with plan, digests and swap", rate, "events/s"),
            Figure("rows that a reader saw ÷ rows before, least", min(reader.seen) / before, "×", Bar("≥", 1)),
            Figure("longest read meanwhile", 1000 * reader.longest_seconds, "ms"),
        ],
        [{"rebuild": {"seconds": seconds, "phases": phases, "reads": len(reader.seen)}}],
        {"events": sizes.rebuilt_events},
    )


def _rebuild(rig: Rig, database: Database) -> tuple[float, dict[str, float]]:
    """Plans, starts and finishes a rebuild; returns its seconds, and those of each phase."""
    kinds = load_kinds()
    phases: dict[str, float] = {}
    began = time.monotonic()
    with (
        connect(database.admin_url, application_name="bench") as command,
        connect(rig.url_as(MAINTAIN, database), application_name="bench") as maintain,
    ):
        operation_id = service.request_operation(
            command, kinds, kind="rebuild", wanted={"subscription": "signal_lab"}, requested_by="bench"
        ).after.operation_id
        engine = Engine(maintain, kinds, Telemetry("bench"))

        def work() -> State:
            at = time.monotonic()
            phase = _phase(command, operation_id)
            engine.work(only=operation_id)
            phases[phase] = phases.get(phase, 0) + time.monotonic() - at
            operation = read_operation(command, operation_id)
            assert operation is not None
            return operation.state

        while work() is State.PLANNING:
            pass
        planned = read_operation(command, operation_id)
        assert planned is not None
        service.start_operation(
            command, operation_id, plan_hash=planned.plan_hash or "", started_by="bench", reason="a measurement"
        )
        while (state := work()) is State.RUNNING:
            if _phase(command, operation_id) == "acceptance":
                msg = "The rebuilt tables have other rows."
                raise BenchError(msg)
        if state is not State.DONE:
            msg = f"The rebuild is {state}."
            raise BenchError(msg)
    return time.monotonic() - began, phases


def _phase(connection: Connection[Any], operation_id: UUID) -> str:
    operation = read_operation(connection, operation_id)
    assert operation is not None
    return str(operation.cursor.get("phase", operation.state))


def _one(connection: Connection[Any], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
