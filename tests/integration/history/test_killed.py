"""Operations on what is stored, killed at random in the middle: they go on where they were, and do nothing twice.

Three kills of each kind, or as many as ACP_OPERATION_KILLS says; 25 need pytest's --timeout.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.detection import standing, told
from tests.integration.history import host, running
from tests.integration.history.test_erasure import ERASURE, mentions
from tests.integration.history.test_erasure import store as store_of_entity
from tests.integration.history.test_rebuild import REBUILD, WANTED, consumed, looks, rows, stored
from tests.integration.history.test_rebuild_detector import detected, market
from tests.integration.history.test_rebuild_detector import stored as market_events
from tests.integration.test_maintenance import store_old

from control_plane.model.lifecycle import Accepted
from control_plane.operations.history.retention import Retention
from control_plane.operations.kind import Operation, State
from control_plane.ops.health import Health, read_health
from control_plane.platform.database import connect

KILLS = int(os.environ.get("ACP_OPERATION_KILLS", "3"))
LIMIT_SECONDS = 300
LONGEST_SECONDS = 0.4
"""How long two engines work at most before they are killed."""
STEP_SECONDS = 0.1
"""How long each step takes at least, because it waits before its commit."""
STEPS_A_KILL = 8
"""For how many steps there is work between two kills: twice as many as fit, since a busy machine kills late."""


@dataclass
class Watch:
    """Reads health until the end of its block, as the API's role, on a thread of its own."""

    url: str
    seen: list[Health] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _read(self) -> None:
        with connect(self.url, application_name="health") as connection:
            while not self._stop.wait(0.1):
                self.seen.append(read_health(connection))

    def check(self) -> None:
        """Holds that nothing is wrong in any look but the dead letters that were there before."""
        assert len(self.seen) > KILLS
        before = self.seen[0].dead_letters
        for health in self.seen:
            wrong = health.open_breakers, health.late_consumers, health.stalled_operations
            assert wrong == (0, 0, 0)
            assert health.dead_letters <= before
            assert health.oldest_pending_age_seconds < LIMIT_SECONDS


@pytest.fixture
def watch(database: TestDatabase) -> Watch:
    return Watch(database.url("acp_reader"))


@pytest.fixture(autouse=True)
def slow_steps(owner: Connection[Any]) -> None:
    """Makes each step slow enough to be killed in its middle: its transaction waits before it commits."""
    owner.execute(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN PERFORM pg_sleep({STEP_SECONDS}); RETURN NULL; END'"
    )
    owner.execute(
        "CREATE TRIGGER lingers AFTER UPDATE OF progress ON operations FOR EACH ROW EXECUTE FUNCTION linger()"
    )


@contextmanager
def engines(database: TestDatabase, count: int, items: int) -> Iterator[None]:
    """Starts so many engines, lets them begin together, and kills them at the end of the block."""
    command = [sys.executable, host.__file__, database.url("acp_maintain"), str(items)]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield


def survive(
    owner: Connection[Any], database: TestDatabase, operation_id: UUID, *, items: int, meanwhile: Callable[[int], None]
) -> Operation:
    """Kills two engines that are at it, again and again at random, and lets the last one finish."""
    luck = random.Random(11)
    for number in range(KILLS):
        with engines(database, 2, items):
            meanwhile(number)
            time.sleep(luck.uniform(0.02, LONGEST_SECONDS))
        assert running.read(owner, operation_id).state is State.RUNNING, f"it has ended before kill {number + 1}"
    deadline = time.monotonic() + LIMIT_SECONDS
    with engines(database, 1, 1000):
        while running.read(owner, operation_id).state is not State.DONE:
            assert time.monotonic() < deadline, running.read(owner, operation_id)
            time.sleep(0.05)
    return running.read(owner, operation_id)


def live(app: Connection[Any], number: int) -> list[UUID]:
    """Stores, delivers and consumes new events of another entity, and delivers what else is pending."""
    events = stored(app, looks(number + 3, revisions=1, entity=f"L{number}"))
    seeds.settle(app, seeds.claim(app, rows=1000), Accepted("m"))
    consumed(app, events)
    return [event.event_id for event in events]


def test_a_killed_retention_deletes_what_was_planned_and_no_more(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase, watch: Watch
) -> None:
    items = 9
    count = 100 + STEPS_A_KILL * items * KILLS
    store_old(app, owner, count)
    operation = running.plan(owner, maintain, Retention(), {"days": {"events": 365, "raw_payloads": 365}})
    running.start(owner, operation)
    expected: list[UUID] = []
    with watch:
        ended = survive(
            owner,
            database,
            operation.operation_id,
            items=items,
            meanwhile=lambda number: expected.extend(live(app, number)),
        )
    assert (ended.done, ended.skipped) == (count + 1, 0)  # with the raw payload
    kept = [row[0] for row in owner.execute("SELECT event_id FROM events")]
    assert sorted(kept) == sorted(expected)
    watch.check()


def test_a_killed_erasure_erases_all_of_it_and_nothing_else(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase, watch: Watch
) -> None:
    items = 5
    count = 60 + STEPS_A_KILL * items * KILLS
    store_of_entity(app, count, entity="ZZERASED")
    operation = running.plan(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    running.start(owner, operation)
    expected: list[UUID] = []
    with watch:
        ended = survive(
            owner,
            database,
            operation.operation_id,
            items=items,
            meanwhile=lambda number: expected.extend(live(app, number)),
        )
    assert (ended.done, ended.skipped) == (count + 1, 0)
    assert mentions(owner, "ZZERASED") == []
    kept = [row[0] for row in owner.execute("SELECT event_id FROM events")]
    assert sorted(kept) == sorted(expected)
    ((removed,),) = owner.execute("SELECT removed FROM erasures").fetchall()
    assert (removed["events"], removed["raw_payloads"]) == (count, 1)
    watch.check()


def test_a_killed_rebuild_makes_the_same_rows_while_messages_come_in(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase, watch: Watch
) -> None:
    items = 10
    count = 50 + STEPS_A_KILL * items // 2 * KILLS
    consumed(app, stored(app, looks(count)))
    operation = running.plan(owner, maintain, REBUILD, WANTED)
    running.start(owner, operation)
    stop = threading.Event()
    number = 0

    def consume() -> None:
        nonlocal number
        with connect(database.app_url, application_name="consuming") as consuming:
            while not stop.wait(0.02):
                number += 1
                events = stored(consuming, looks(2, entity=f"S{number}"))
                seeds.settle(consuming, seeds.claim(consuming), Accepted("m"))
                consumed(consuming, events + events)

    consuming = threading.Thread(target=consume)
    consuming.start()
    try:
        with watch:
            ended = survive(owner, database, operation.operation_id, items=items, meanwhile=lambda _number: None)
    finally:
        stop.set()
        consuming.join(60)
    assert ended.cursor["phase"] == "swapped"
    assert all(one["digest"] == one["rebuilt_digest"] for one in ended.cursor["tables"].values())
    assert owner.execute("SELECT count(*) FROM signal_lab_bars").fetchone() == (count + 2 * number,)
    live_rows = rows(owner)
    running.run(owner, maintain, REBUILD, WANTED)
    assert rows(owner) == live_rows
    watch.check()


def test_a_killed_rebuild_of_the_detector_tells_nothing_and_loses_nothing_that_is_found(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    wanted = {"subscription": "detector"}
    with connect(database.url("acp_detect"), application_name="detecting") as detect:
        detected(detect, market_events(app, market()))
    operation = running.plan(owner, maintain, REBUILD, wanted)
    running.start(owner, operation)
    stop = threading.Event()
    luck = random.Random(3)
    entities: list[str] = []

    def detecting() -> None:
        with (
            connect(database.app_url, application_name="storing") as storing,
            connect(database.url("acp_detect"), application_name="detecting") as detect,
        ):
            while not stop.is_set():
                entities.append(f"S{len(entities)}")
                events = market_events(storing, market(entities[-1])[:62])
                *quiet_ones, fall = events
                detected(detect, [*luck.sample(quiet_ones, len(quiet_ones)), fall, fall, quiet_ones[0]])

    thread = threading.Thread(target=detecting)
    thread.start()
    try:
        ended = survive(owner, database, operation.operation_id, items=3, meanwhile=lambda _number: None)
    finally:
        stop.set()
        thread.join(120)
    assert ended.cursor["phase"] == "swapped"
    assert all(one["digest"] == one["rebuilt_digest"] for one in ended.cursor["tables"].values())
    for entity in entities:
        assert [one.kind for one in told(owner) if one.entity_id == entity and not one.is_withdrawn][-1:] == ["range"]
    assert owner.execute(
        "SELECT sum(told), count(*) FILTER (WHERE told = 0 AND state = 'detected') FROM detector_anomalies"
    ).fetchone() == (len(told(owner)), 0)
    before = standing(owner)
    running.run(owner, maintain, REBUILD, wanted)
    assert standing(owner) == before


def test_two_rebuilds_of_one_consumer_do_not_run_at_once(owner: Connection[Any], maintain: Connection[Any]) -> None:
    first, second = (running.plan(owner, maintain, REBUILD, WANTED) for _ in range(2))
    running.start(owner, first)
    with pytest.raises(errors.ExclusionViolation, match="operations_one_at_a_time"):
        running.start(owner, second)
