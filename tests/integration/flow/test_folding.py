"""Folding moves counts and changes none; nothing lowers one, whatever happens at the same time."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import Connection, errors
from tests.integration import seeds
from tests.integration.flow.counted import Kind, age, counted, fold_now

from control_plane.consumers.once import once
from control_plane.flow.counts import read_counts, read_examples
from control_plane.flow.folding import fold
from control_plane.model.errors import DatabaseUnavailable
from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NotSent, Outcome
from control_plane.platform.database import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import TestDatabase


def test_what_is_younger_than_a_minute_stays(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    before = read_counts(app)
    assert fold_now(owner) == 0
    age(owner)
    assert fold_now(owner) == 1
    assert owner.execute("SELECT count(*) FROM flow_deltas").fetchall() == [(0,)]
    assert [one[:6] for one in read_counts(app)] == [one[:6] for one in before]


def test_a_fold_keeps_durations_and_the_newest_trace(app: Connection[Any], owner: Connection[Any]) -> None:
    for minute in range(3):
        (event_id,) = seeds.store(app, [seeds.tick(minute)])
        with once(app, consumer="x", event_id=event_id):
            pass
        before, examples = read_counts(app), read_examples(app)
        age(owner)
        fold_now(owner)
        after = read_counts(app)
        assert [(one.key, one.n) for one in after] == [(one.key, one.n) for one in before]
        assert [one.seconds or 0 for one in after] == pytest.approx([one.seconds or 0 for one in before])
        assert read_examples(app) == examples
    assert counted(app)["consumer", "x", "processed"] == 3
    assert owner.execute("SELECT sum(n) FROM flow_minutes WHERE stage = 'consumer'").fetchall() == [(3,)]


def test_what_comes_late_joins_its_minute(app: Connection[Any], owner: Connection[Any]) -> None:
    ((at,),) = owner.execute("SELECT date_trunc('minute', now()) - interval '5 minutes'").fetchall()
    for number in range(2):
        seeds.store(app, [seeds.tick(number)])
        owner.execute("ALTER TABLE flow_deltas DISABLE TRIGGER flow_deltas_are_immutable")
        owner.execute("UPDATE flow_deltas SET at = %s", [at])
        owner.execute("ALTER TABLE flow_deltas ENABLE TRIGGER flow_deltas_are_immutable")
        fold_now(owner)
    assert owner.execute("SELECT n FROM flow_minutes").fetchall() == [(2,)]


def test_minutes_are_forgotten_after_seven_days_and_totals_never(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    age(owner, minutes=60 * 24 * 8)
    fold_now(owner)
    assert owner.execute("SELECT count(*) FROM flow_minutes").fetchall() == [(0,)]
    assert counted(app) == {("store", "market.ticks", "stored"): 1}


def test_many_rows_are_folded_in_several_transactions(app: Connection[Any], owner: Connection[Any]) -> None:
    for minute in range(5):
        seeds.store(app, [seeds.tick(minute)])
    age(owner)
    assert fold(owner, remaining_seconds=lambda: 60, most=2) == 5
    assert fold(owner, remaining_seconds=lambda: 60, most=2) == 0
    assert counted(app) == {("store", "market.ticks", "stored"): 5}
    seeds.store(app, [seeds.tick(9)])
    age(owner)
    assert fold(owner, remaining_seconds=lambda: 59) == 0


@pytest.mark.parametrize("most", [0, -1, None])
def test_a_fold_without_a_limit_is_refused(owner: Connection[Any], most: int | None) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        owner.execute("SELECT fold_flow(%s::integer)", [most])


def test_while_one_folds_another_has_nothing_to_do(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase
) -> None:
    seeds.store(app, seeds.ticks(1))
    age(owner)
    with connect(database.owner_url, application_name="test") as other:
        with owner.transaction(force_rollback=True):
            assert fold_now(owner) == 1
            assert fold_now(other) == 0
            assert counted(other) == counted(owner) == {("store", "market.ticks", "stored"): 1}
        assert fold_now(other) == 1


def test_neither_retention_nor_erasure_lowers_a_count(app: Connection[Any], owner: Connection[Any]) -> None:
    event_ids = seeds.store(app, seeds.ticks(4))
    seeds.settle(app, seeds.claim(app, rows=2), Accepted("m"))
    for event_id in event_ids:
        with once(app, consumer="signal_lab", event_id=event_id):
            pass
    before = counted(app)
    for are_erased in (False, True):
        owner.execute("SELECT remove_events(ARRAY(SELECT event_id FROM events), %s)", [are_erased])
    assert owner.execute("SELECT count(*) FROM events").fetchall() == [(0,)]
    assert counted(app) == before


class Trial:
    """Many at once store, settle, consume, roll back, are killed and fold, while others read."""

    SECONDS = 6.0

    def __init__(self, database: TestDatabase, seed: int) -> None:
        self._database = database
        self._seed = seed
        self._stop = threading.Event()
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()
        self.reads = self.folds = self.kills = 0

    def run(self) -> None:
        workers: list[Callable[[random.Random], None]] = [self._work, self._work, self._fold, self._fold, self._kill]
        workers += [self._read, self._read]
        timer = threading.Timer(self.SECONDS, self._stop.set)
        timer.start()
        with ThreadPoolExecutor(len(workers)) as pool:
            futures = [pool.submit(work, random.Random(self._seed + place)) for place, work in enumerate(workers)]
            for future in futures:
                try:
                    future.result()
                finally:
                    if future.exception() is not None:
                        self._stop.set()
        timer.cancel()

    def _work(self, luck: random.Random) -> None:
        while not self._stop.is_set():
            with (
                suppress(psycopg.OperationalError, DatabaseUnavailable),
                connect(self._database.app_url, application_name="worker") as connection,
            ):
                while not self._stop.is_set():
                    with connection.transaction(force_rollback=luck.random() < 0.2):
                        self._step(connection, luck)

    def _step(self, connection: Connection[Any], luck: random.Random) -> None:
        match luck.randrange(4):
            case 0:
                with self._lock:
                    number = next(self._numbers)
                seeds.store(connection, [seeds.look(seeds.tick(0).payload, entity_id=f"E{number}")])
            case 1:
                outcomes: list[Outcome] = [Accepted("m"), Failed("no"), MessageFault("no"), NotSent()]
                outcome = luck.choice(outcomes)
                seeds.settle(connection, seeds.claim(connection, rows=5), outcome)
                seeds.pass_time(connection)
            case 2:
                seeds.claim(connection, rows=2)
                seeds.pass_time(connection)
            case _:
                for (event_id,) in connection.execute(
                    "SELECT event_id FROM events ORDER BY seq DESC LIMIT 3"
                ).fetchall():
                    with once(connection, consumer="x", event_id=event_id):
                        pass

    def _fold(self, luck: random.Random) -> None:
        with connect(self._database.owner_url, application_name="test") as connection:
            while not self._stop.is_set():
                age(connection)
                with connection.transaction(force_rollback=luck.random() < 0.3):
                    self.folds += fold_now(connection, luck.choice([1, 3, 1000])) > 0
                self._stop.wait(luck.random() / 20)

    def _kill(self, luck: random.Random) -> None:
        with psycopg.connect(self._database.admin_url, autocommit=True) as admin:
            while not self._stop.wait(luck.random() / 4):
                killed = admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'worker' ORDER BY random() LIMIT 1"
                ).fetchall()
                self.kills += len(killed)

    def _read(self, _luck: random.Random) -> None:
        with connect(self._database.url("acp_reader"), application_name="test") as connection:
            before: Counter[Kind] = Counter()
            while not self._stop.is_set():
                now = counted(connection)
                fallen = {key: (n, now[key]) for key, n in before.items() if now[key] < n}
                assert not fallen, fallen
                before = now
                self.reads += 1


@pytest.mark.parametrize("seed", [1, 2])
def test_no_count_ever_falls_and_each_is_what_was_committed(
    database: TestDatabase, app: Connection[Any], owner: Connection[Any], seed: int
) -> None:
    trial = Trial(database, seed)
    trial.run()
    assert trial.reads > 20
    assert trial.folds > 5
    assert trial.kills > 2
    age(owner)
    while fold_now(owner):
        pass
    found = counted(app)
    ((stored, published, dead, processed),) = owner.execute(
        "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM deliveries), (SELECT count(*) FROM dead_letters),"
        " (SELECT count(*) FROM processed_events)"
    ).fetchall()
    ((failed,),) = owner.execute("SELECT count(*) FROM delivery_failures WHERE error !~ 'lease ran out'").fetchall()
    ((lost,),) = owner.execute("SELECT count(*) FROM delivery_failures WHERE error ~ '^the lease ran out'").fetchall()
    assert found["store", "market.ticks", "stored"] == stored
    assert found["outbox", "signal_lab", "published"] == published
    assert found["outbox", "signal_lab", "dead_lettered"] + found["outbox", "signal_lab", "exhausted"] == dead
    assert found["outbox", "signal_lab", "failed"] + found["outbox", "signal_lab", "dead_lettered"] == failed
    assert found["outbox", "signal_lab", "lost"] == lost
    assert found["consumer", "x", "processed"] == processed
    with connect(database.url("acp_reader"), application_name="test") as other:
        assert read_counts(other) == read_counts(app)
