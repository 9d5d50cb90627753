"""Relays and databases crash in the middle of their work."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from queue import Queue
from threading import Event as Signal
from threading import Lock
from typing import Any, Self
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.fakes import all_successful, sqs_endpoint
from tests.integration.relay_bench import Bench, done
from tests.waiting import wait_until

from control_plane.model.errors import DatabaseUnavailable
from control_plane.outbox import session as session_module
from control_plane.outbox.invocation import RelayResult
from control_plane.outbox.publisher import Message
from control_plane.platform.database import Database
from local_cloud.postgres import PostgresServer


class HeldEndpoint:
    """An SQS endpoint that accepts a batch, says so to the test, and holds its answer until told."""

    def __init__(self) -> None:
        self.accepted: list[UUID] = []
        self.batches: Queue[list[UUID]] = Queue()
        self.answer_now = Signal()
        self._lock = Lock()

    def __call__(self, entries: list[dict[str, Any]]) -> tuple[int, Any]:
        event_ids = [UUID(json.loads(one["MessageBody"])["event_id"]) for one in entries]
        with self._lock:
            self.accepted += event_ids
        self.batches.put(event_ids)
        self.answer_now.wait(60)
        return all_successful(entries)


@pytest.mark.parametrize("moment", ["before the answer", "before the settlement"])
def test_killed_relay_loses_nothing_and_doubles_only_in_flight(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, moment: str
) -> None:
    expected = seeds.store(app, seeds.ticks(40))
    endpoint = HeldEndpoint()
    with sqs_endpoint(endpoint) as url:
        doomed = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("relay_process.py")), database.app_url, f"{url}/ticks"],
            env=os.environ | {"AWS_ENDPOINT_URL": url},
            stdout=subprocess.DEVNULL,
        )
        try:
            in_flight = {event_id for _ in range(2) for event_id in endpoint.batches.get(timeout=60)}
            if moment == "before the settlement":
                with owner.transaction():
                    owner.execute("SELECT FROM pending_deliveries FOR UPDATE")
                    endpoint.answer_now.set()
                    in_flight = set(expected)
                    blocked = (
                        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'doomed' AND wait_event_type = 'Lock'"
                    )
                    wait_until(lambda: app.execute(blocked).fetchone() is not None)
                    doomed.kill()
                    doomed.wait(30)
                    with psycopg.connect(database.admin_url) as admin:
                        admin.execute(
                            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                            " WHERE application_name = 'doomed'"
                        )
            doomed.kill()
            doomed.wait(30)
        finally:
            doomed.kill()
            doomed.wait(30)
            endpoint.answer_now.set()
    rows = seeds.deliveries(app)
    assert {(row["state"], row["delivery_attempts"]) for row in rows.values()} == {("in_flight", 1)}

    bench = Bench(lambda: app)
    assert bench.run().claimed == 0  # The dead relay's lease is not over.
    seeds.pass_time(app)
    assert done(bench.run()) == RelayResult(claimed=40, published=40)
    received = Counter([*endpoint.accepted, *(UUID(message.event_id) for message in bench.fake.sent)])
    assert set(received) == set(expected)
    assert {event_id for event_id, times in received.items() if times > 1} <= in_flight
    assert max(received.values()) == 2
    assert {row["delivery_attempts"] for row in seeds.deliveries(app).values()} == {1}  # the lost ones were given back
    assert [failure[1:3] for failure in seeds.failed_attempts(app)] == [(1, "doomed")] * 40


def test_postgres_down_while_publishing_raises_and_next_run_delivers(
    own_postgres: PostgresServer,
) -> None:
    url = own_postgres.url()
    database = Database(lambda: url, application_name="relay")
    expected = seeds.store(database.connection(), seeds.ticks(30))

    def crash(message: Message) -> None:
        if UUID(message.event_id) == expected[0]:
            own_postgres.stop("immediate")

    bench = Bench(database.connection, script=crash)
    with pytest.raises(DatabaseUnavailable, match=r"Postgres at postgres@127\.0\.0\.1:\d+/postgres cannot be used"):
        bench.run()
    assert bench.telemetry.totals["EventsPublished"] == 0
    assert bench.fake.sent

    own_postgres.start()
    rows = seeds.deliveries(database.connection())
    assert {row["state"] for row in rows.values()} == {"in_flight"}
    seeds.pass_time(database.connection())
    second = Bench(database.connection)
    assert done(second.run()) == RelayResult(claimed=30, published=30)
    database.close()


def test_postgres_restarted_while_publishing_costs_nothing(own_postgres: PostgresServer) -> None:
    url = own_postgres.url()
    database = Database(lambda: url, application_name="relay")
    expected = seeds.store(database.connection(), seeds.ticks(30))

    def restart(message: Message) -> None:
        if UUID(message.event_id) == expected[0]:
            own_postgres.stop("immediate")
            own_postgres.start()

    bench = Bench(database.connection, script=restart)
    bench.while_asleep = lambda _nap: time.sleep(0.2)  # The restart takes time, whatever the relay's clock says.
    assert done(bench.run()) == RelayResult(claimed=30, published=30)
    assert {row["state"] for row in seeds.deliveries(database.connection()).values()} == {"delivered"}
    database.close()


class AnswerLost:
    """A connection that breaks after a statement with these words is committed and before its answer arrives."""

    def __init__(self, url: str, words: str) -> None:
        self._database = Database(lambda: url, application_name="relay")
        self._words = words
        self._lost = False

    def __call__(self) -> Any:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database.connection(), name)

    def cursor(self, **options: Any) -> Any:
        return _LosingCursor(self, options)

    def execute(self, query: Any, *arguments: Any) -> Any:
        return self.lose(self._database.connection(), query, *arguments)

    def execute_on_cursor(self, options: dict[str, Any], query: Any, *arguments: Any) -> Any:
        return self.lose(self._database.connection().cursor(**options), query, *arguments)

    def lose(self, executor: Any, query: Any, *arguments: Any) -> Any:
        answer = executor.execute(query, *arguments)
        if self._words in query and not self._lost:
            self._lost = True
            self._database.connection().close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer


class _LosingCursor:
    def __init__(self, owner: AnswerLost, options: dict[str, Any]) -> None:
        self._owner = owner
        self._options = options

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Has nothing to close."""

    def execute(self, query: Any, *arguments: Any) -> Any:
        return self._owner.execute_on_cursor(self._options, query, *arguments)


def test_settlement_with_lost_answer_counts_once(app: Connection[Any], database: TestDatabase) -> None:
    seeds.store(app, seeds.ticks(30))
    with AnswerLost(database.app_url, "FROM settle_deliveries(") as connection:
        bench = Bench(connection)
        assert done(bench.run()) == RelayResult(claimed=30, published=30)
    assert (bench.telemetry.totals["EventsPublished"], bench.telemetry.totals["LeaseLost"]) == (30, 0)
    assert len(bench.fake.sent) == 30


def test_uncountable_backlog_does_not_hide_the_result(
    app: Connection[Any], database: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    seeds.store(app, seeds.ticks(30))
    with AnswerLost(database.app_url, "AS lowest") as connection:
        bench = Bench(connection)
        assert bench.run().published == 30
    assert "OutboxPending" not in bench.telemetry.totals
    assert bench.telemetry.totals["RelayDuration"] >= 0
    assert "the backlog is unknown" in caplog.text


def test_lock_outlasting_the_invocation_is_named_and_sends_settle_later(
    app: Connection[Any], owner: Connection[Any], database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds.store(app, seeds.ticks(30))
    monkeypatch.setattr(session_module, "LAST_SECONDS", 597)  # Three of 600 are left.
    monkeypatch.setattr(session_module, "RECONNECT_SECONDS", 0)  # or the fake clock would never pass it
    own = Database(lambda: database.app_url, application_name="relay")

    def lock(_message: Message) -> None:
        owner.execute("SELECT FROM pending_deliveries FOR UPDATE")

    bench = Bench(own.connection, script=lock)
    with owner.transaction():
        with pytest.raises(DatabaseUnavailable, match="does somebody hold a lock on pending_deliveries"):
            bench.run()
        assert {row["state"] for row in seeds.deliveries(app).values()} == {"in_flight"}
    while {row["state"] for row in seeds.deliveries(app).values()} != {"delivered"}:
        time.sleep(0.02)
    assert bench.run().claimed == 0
    assert len(bench.fake.sent) == 30
    own.close()


def test_relay_does_not_wait_for_database_after_its_time(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_postgres.url()
    database = Database(lambda: url, application_name="relay")
    seeds.store(database.connection(), seeds.ticks(30))
    monkeypatch.setattr(session_module, "LAST_SECONDS", 599)
    monkeypatch.setattr(session_module, "RECONNECT_SECONDS", 1e6)

    def crash(_message: Message) -> None:
        if own_postgres.running:
            own_postgres.stop("immediate")

    bench = Bench(database.connection, script=crash)
    bench.while_asleep = lambda _nap: time.sleep(0.01)
    with pytest.raises(DatabaseUnavailable, match="before the invocation's time was over"):
        bench.run()
    database.close()


def test_a_settlement_that_fails_counts_nothing(app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    owner.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no more''; END'"
    )
    owner.execute("CREATE TRIGGER refuses BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION refuse()")
    bench = Bench(lambda: app)
    with pytest.raises(psycopg.errors.RaiseException, match="no more"):
        bench.run()
    assert bench.telemetry.totals["EventsPublished"] == 0
    assert {row["state"] for row in seeds.deliveries(app).values()} == {"in_flight"}
