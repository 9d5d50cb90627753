"""Engines are killed at random moments, two of them at once: nothing is lost, and nothing is doubled.

Three kills of each kind, or as many as OPERATIONS_KILLS says; some thousand letters, or at least OPERATIONS_LETTERS.
More of either needs pytest's --timeout.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.operations.world import World, deliver_all, make_delivered, make_letters, pending_of

from control_plane.operations.kind import Operation, State
from control_plane.ops.health import read_health

KILLS = int(os.environ.get("OPERATIONS_KILLS", "3"))
LETTERS = int(os.environ.get("OPERATIONS_LETTERS", "0"))
ROOT = Path(__file__).parents[3]


@contextmanager
def engines(database: TestDatabase, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("engine_process.py")), database.url("acp_maintain")],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        yield started
    finally:
        for one in started:
            one.kill()
            one.communicate()


def kill_until_done(world: World, database: TestDatabase, operation_id: UUID, *, at_most: float) -> int:
    """Kills two engines again and again, at random moments; then lets another one finish. Returns how often."""
    kills = 0
    while kills < KILLS and world.read(operation_id).state is State.RUNNING:
        with engines(database, 2):
            time.sleep(random.uniform(0, at_most))
        kills += 1
    deadline = time.monotonic() + 120
    with engines(database, 1):
        while world.read(operation_id).state is State.RUNNING:
            assert time.monotonic() < deadline, world.read(operation_id)
            time.sleep(0.05)
    return kills


def check_counts(operation: Operation, *, done: int) -> None:
    assert (operation.state, operation.error) == (State.DONE, None)
    assert (operation.done, operation.skipped, operation.total) == (done, 0, done)


@pytest.fixture
def small_steps(owner: Connection[Any]) -> None:
    """Makes each step slow enough to be killed in its middle: its transaction waits before it commits."""
    owner.execute(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END'"
    )
    owner.execute(
        "CREATE TRIGGER lingers AFTER UPDATE OF progress ON operations FOR EACH ROW EXECUTE FUNCTION linger()"
    )


@pytest.mark.usefixtures("small_steps")
def test_a_redrive_that_is_killed_anywhere_makes_each_letter_pending_once(
    world: World, owner: Connection[Any], app: Connection[Any], database: TestDatabase
) -> None:
    count = max(4000 + 1200 * KILLS, LETTERS)
    make_letters(owner, count)
    started = world.start(world.plan("redrive", everything=True))
    assert kill_until_done(world, database, started.operation_id, at_most=0.12) >= 1
    check_counts(world.read(started.operation_id), done=count)
    assert owner.execute("SELECT count(*) FROM dead_letters WHERE resolution IS NULL").fetchall() == [(0,)]
    assert pending_of(owner, started.operation_id) == count
    assert read_health(owner).oldest_pending_age_seconds == 0
    assert deliver_all(app) == count


@pytest.mark.usefixtures("small_steps")
def test_a_replay_that_is_killed_anywhere_sends_each_message_once(
    world: World, owner: Connection[Any], app: Connection[Any], database: TestDatabase
) -> None:
    count = 2000 + 600 * KILLS
    make_delivered(owner, count)
    live = seeds.store(app, seeds.ticks(5))
    before = deliver_all(app)
    started = world.start(world.plan("replay", subscription="signal_lab", rate=1000))
    assert kill_until_done(world, database, started.operation_id, at_most=0.25) >= 1
    check_counts(world.read(started.operation_id), done=count + len(live))
    seeds.pass_time(owner)
    assert deliver_all(app) == count + len(live)
    assert before == len(live)
    ((messages,),) = owner.execute(
        "SELECT count(DISTINCT outbox_id) FROM deliveries WHERE operation_id = %s", [started.operation_id]
    ).fetchall()
    assert messages == count + len(live)


@pytest.mark.usefixtures("small_steps")
def test_planning_that_is_killed_anywhere_freezes_each_letter_once(
    world: World, owner: Connection[Any], database: TestDatabase
) -> None:
    count = max(41_000, LETTERS)
    make_letters(owner, count)
    operation_id = world.request("redrive", everything=True)
    for _ in range(KILLS):
        with engines(database, 2):
            time.sleep(random.uniform(0, 0.15))
    deadline = time.monotonic() + 120
    with engines(database, 1):
        while world.read(operation_id).state is State.PLANNING:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    planned = world.read(operation_id)
    assert (planned.state, planned.total) == (State.PLANNED, count)
    assert owner.execute("SELECT count(*) FROM operation_items").fetchall() == [(count,)]
    again = world.plan("redrive", everything=True)
    assert again.plan_hash == planned.plan_hash
