"""Operations on what is stored, killed at random in the middle: they go on where they were, and do nothing twice."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
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
from control_plane.platform.database import connect

KILLS = int(os.environ.get("ACP_OPERATION_KILLS", "3"))
"""How many a kind: 25 by `ACP_OPERATION_KILLS=25 pytest tests/integration/history/test_killed.py`."""
LIMIT_SECONDS = 300


@contextmanager
def engine(database: TestDatabase, items: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, host.__file__, database.url("acp_maintain"), str(items)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def survive(
    owner: Connection[Any], database: TestDatabase, operation_id: UUID, *, items: int, meanwhile: Callable[[int], None]
) -> Operation:
    """Kills two engines that are at it, again and again at random, and lets the last one finish."""
    luck = random.Random(11)
    kills = 0
    deadline = time.monotonic() + LIMIT_SECONDS
    while kills < KILLS and running.read(owner, operation_id).state is not State.DONE:
        with engine(database, items), engine(database, items):
            meanwhile(kills)
            time.sleep(luck.uniform(0.02, 0.4))
        kills += 1
    with engine(database, 1000):
        while running.read(owner, operation_id).state is not State.DONE:
            assert time.monotonic() < deadline, running.read(owner, operation_id)
            time.sleep(0.05)
    return running.read(owner, operation_id)


def live(app: Connection[Any], number: int) -> None:
    """Stores and delivers new events of another entity."""
    seeds.store(app, seeds.ticks(number + 3, entity_id=f"L{number}"))
    seeds.settle(app, seeds.claim(app), Accepted("m"))


def test_a_killed_retention_deletes_what_was_planned_and_no_more(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    store_old(app, owner, 300)
    operation = running.plan(owner, maintain, Retention(), {"days": {"events": 365, "raw_payloads": 365}})
    running.start(owner, operation)
    ended = survive(owner, database, operation.operation_id, items=9, meanwhile=lambda number: live(app, number))
    assert ended.done == 301  # with the raw payload
    left = owner.execute("SELECT count(*), count(*) FILTER (WHERE entity_id LIKE 'L%') FROM events").fetchone()
    assert left is not None
    assert left[0] == left[1] > 0


def test_a_killed_erasure_erases_all_of_it_and_nothing_else(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    store_of_entity(app, 150, entity="ZZERASED")
    operation = running.plan(owner, maintain, ERASURE, {"entity_id": "ZZERASED"})
    running.start(owner, operation)
    stored_meanwhile = []

    def meanwhile(number: int) -> None:
        live(app, number)
        stored_meanwhile.extend(seeds.store(app, [seeds.tick(200 + number)]))

    ended = survive(owner, database, operation.operation_id, items=5, meanwhile=meanwhile)
    assert (ended.done, ended.skipped) == (151, 0)
    assert mentions(owner, "ZZERASED") == []
    kept = {row[0] for row in owner.execute("SELECT event_id FROM events WHERE entity_id = 'AAPL'")}
    assert kept == set(stored_meanwhile)
    ((removed,),) = owner.execute("SELECT removed FROM erasures").fetchall()
    assert (removed["events"], removed["raw_payloads"]) == (150, 1)


def test_a_killed_rebuild_makes_the_same_rows_while_messages_come_in(
    app: Connection[Any], owner: Connection[Any], maintain: Connection[Any], database: TestDatabase
) -> None:
    consumed(app, stored(app, looks(200)))
    operation = running.plan(owner, maintain, REBUILD, WANTED)
    running.start(owner, operation)
    stop = threading.Event()
    number = 0

    def consume() -> None:
        nonlocal number
        with connect(database.app_url, application_name="consuming") as consuming:
            while not stop.is_set():
                number += 1
                events = stored(consuming, looks(2, entity=f"S{number}"))
                consumed(consuming, events + events)

    consuming = threading.Thread(target=consume)
    consuming.start()
    try:
        ended = survive(owner, database, operation.operation_id, items=10, meanwhile=lambda _number: None)
    finally:
        stop.set()
        consuming.join(60)
    assert ended.cursor["phase"] == "swapped"
    assert all(one["digest"] == one["rebuilt_digest"] for one in ended.cursor["tables"].values())
    assert owner.execute("SELECT count(*) FROM signal_lab_bars").fetchone() == (200 + 2 * number,)
    live_rows = rows(owner)
    running.run(owner, maintain, REBUILD, WANTED)
    assert rows(owner) == live_rows


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
