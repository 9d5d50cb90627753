"""Warm functions whose session died, turned read-only or met another transaction, between or during uses."""

import importlib.util
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import PASSWORD, make_roles
from tests.integration.pipeline import bring_up, functions_database
from tests.integration.seeds import counts, event, store, ticks
from tests.waiting import wait_until

from control_plane.ingestion.store import lock_entities, store_events
from control_plane.model.contract import Event
from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.database import connect
from domains.finance.events import MarketTick
from local_cloud import postgres as cluster
from local_cloud.postgres import PostgresServer
from market_replay import serve

FUNCTIONS = Path(__file__).parents[2] / "functions"
SECONDS = 20


def tick(entity_id: str = "AAPL", price: float = 100.0, revision: int = 0) -> Event:
    payload = MarketTick(price=price, open=price, high=price, low=price, volume=1, currency="USD", interval="1m")
    return event(payload, entity_id=entity_id, revision=revision)


def record(tick: Event) -> dict[str, Any]:
    return {
        "messageId": str(tick.event_id),
        "body": json.dumps(tick.to_message()),
        "eventSource": "aws:sqs",
        "attributes": {},
    }


@dataclass
class Context:
    """What the handler uses of Lambda's context."""

    aws_request_id: str = "request"
    function_name: str = "Function"
    log_stream_name: str = "stream"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


@dataclass
class Warm:
    """One warm environment of a function."""

    app: Any

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self.app.handler(event, Context())
        return result

    def consume(self, *events: Event) -> list[str]:
        """Handles a batch; returns the entities of what must be delivered again."""
        response = self({"Records": [record(event) for event in events]})
        failed = {failure["itemIdentifier"] for failure in response["batchItemFailures"]}
        return [str(event.entity_id) for event in events if str(event.event_id) in failed]

    @property
    def session(self) -> Connection[Any]:
        """The session that the environment keeps."""
        connection: Connection[Any] = self.app.database()._connection
        return connection


type Start = Callable[..., Warm]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    started = []

    def start(name: str, url: str, **variables: str) -> Warm:
        for variable, value in (variables | {"DATABASE_URL": url}).items():
            monkeypatch.setenv(variable, value)
        spec = importlib.util.spec_from_file_location(f"app_of_{name}", FUNCTIONS / name / "app.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        started.append(module)
        return Warm(module)

    yield start
    for module in started:
        module.database().close()


@pytest.fixture
def market_url() -> Iterator[str]:
    with serve() as market:
        yield market.url


def consumed(connection: Connection[Any]) -> set[str]:
    return {row[0] for row in connection.execute("SELECT entity_id FROM signal_lab_latest_prices")}


# Failover


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A writer with the schema, and a standby that follows it."""
    with PostgresServer(tmp_path / "writer", password=PASSWORD, fsync=False) as writer:
        with psycopg.connect(writer.url(), autocommit=True) as admin:
            make_roles(admin)
            admin.execute("CREATE DATABASE control_plane OWNER acp_owner")
            with (tmp_path / "writer" / "pg_hba.conf").open("a") as hba:
                hba.write("host replication all samehost scram-sha-256\n")
            admin.execute("SELECT pg_reload_conf()")
        bring_up(writer.url("acp_owner", "control_plane", PASSWORD))
        copy = tmp_path / "standby"
        copy.mkdir(mode=0o700)
        cluster._hand_over(copy)
        command = [str(writer.binaries / "pg_basebackup"), "-d", writer.url(), "-D", str(copy), "-R", "-c", "fast"]
        backup = cluster._spawn(command, output=subprocess.PIPE)
        output, _ = backup.communicate()
        assert backup.returncode == 0, output
        with PostgresServer(copy, password=PASSWORD, fsync=False) as standby:
            yield writer, standby


def url_of_both(writer: PostgresServer, standby: PostgresServer) -> str:
    hosts = f"127.0.0.1:{writer.port},127.0.0.1:{standby.port}"
    return f"postgresql://acp_test:{PASSWORD}@{hosts}/control_plane"


def fail_over(writer: PostgresServer, standby: PostgresServer) -> None:
    """Makes the standby the writer; the former writer goes on answering, read-only."""
    with psycopg.connect(writer.url(), autocommit=True) as old, psycopg.connect(standby.url(), autocommit=True) as new:
        ((written,),) = old.execute("SELECT pg_current_wal_lsn()")
        wait_until(lambda: new.execute("SELECT pg_last_wal_replay_lsn() >= %s", [written]).fetchone() == (True,))
        assert new.execute("SELECT pg_promote()").fetchone() == (True,)
    set_read_only(writer, "on")


def test_warm_signal_lab_finds_the_new_writer_after_a_failover(
    start: Start, pair: tuple[PostgresServer, PostgresServer]
) -> None:
    writer, standby = pair
    handle = start("signal_lab", url_of_both(writer, standby))
    assert handle.consume(tick("BEFORE")) == []
    fail_over(writer, standby)
    assert handle.consume(tick("AFTER"), tick("NEXT")) == []
    with psycopg.connect(standby.url(database="control_plane")) as connection:
        assert consumed(connection) == {"BEFORE", "AFTER", "NEXT"}


def test_warm_ingestion_finds_the_new_writer_after_a_failover(
    start: Start, pair: tuple[PostgresServer, PostgresServer], market_url: str
) -> None:
    writer, standby = pair
    ingest = start("ingestion", url_of_both(writer, standby), SYMBOLS="AAPL", MARKET_DATA_URL=market_url)
    first = ingest({"symbols": ["AAPL"]})
    fail_over(writer, standby)
    second = ingest({"symbols": ["AAPL", "MSFT"]})
    assert (first["failed_symbols"], second["failed_symbols"]) == ([], [])
    assert second["ingested"] > 0
    with psycopg.connect(standby.url(database="control_plane")) as connection:
        assert counts(connection)[1] == first["ingested"] + second["ingested"]


def test_warm_session_on_a_standby_is_refused_by_name(pair: tuple[PostgresServer, PostgresServer]) -> None:
    _, standby = pair
    with (
        closing(functions_database(standby.url("acp_test", "control_plane", PASSWORD))) as app,
        pytest.raises(DatabaseUnavailable, match="name the writer's endpoint"),
    ):
        app.connection()


def test_only_node_read_only_fails_until_it_writes_again(
    start: Start, pair: tuple[PostgresServer, PostgresServer]
) -> None:
    writer, _ = pair
    handle = start("signal_lab", writer.url("acp_test", "control_plane", PASSWORD))
    assert handle.consume(tick("BEFORE")) == []
    set_read_only(writer, "on")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        handle.consume(tick("MEANWHILE"))
    set_read_only(writer, "off")
    assert handle.consume(tick("MEANWHILE")) == []


def set_read_only(server: PostgresServer, value: str) -> None:
    """Makes every session of the server start its next transaction so, those that are open included."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
        admin.execute("SELECT pg_reload_conf()")
    # The server tells its sessions one after the other, and starts a new one only after it has told them all.
    wait_until(lambda: setting_of_new_session(server) == value)


def setting_of_new_session(server: PostgresServer) -> str:
    with psycopg.connect(server.url(), autocommit=True) as session:
        row = session.execute("SHOW default_transaction_read_only").fetchone()
    assert row is not None
    return str(row[0])


# Between two uses, and in the middle


@pytest.mark.parametrize(
    "what",
    [
        "SET default_transaction_read_only = on",
        "SET search_path = pg_catalog",
        "BEGIN",
        "SELECT pg_terminate_backend(pg_backend_pid())",
    ],
)
def test_warm_session_that_changed_between_two_uses_is_replaced(
    start: Start, database: Any, app: Connection[Any], what: str
) -> None:
    handle = start("signal_lab", database.app_url)
    assert handle.consume(tick("BEFORE")) == []
    before = handle.session
    try:
        before.execute(what.encode())
    except psycopg.errors.AdminShutdown:
        assert before.broken
    assert handle.consume(tick("AFTER")) == []
    assert handle.session is not before
    assert consumed(app) == {"BEFORE", "AFTER"}


def test_warm_session_is_kept_while_nothing_happens_to_it(start: Start, database: Any) -> None:
    handle = start("signal_lab", database.app_url)
    handle.consume(tick())
    before = handle.session
    handle.consume(tick("MSFT"))
    assert handle.session is before


@pytest.mark.parametrize(
    "fate",
    [
        "PERFORM pg_terminate_backend(pg_backend_pid())",
        "SET LOCAL transaction_read_only = on",
        "SET LOCAL idle_in_transaction_session_timeout = 1",
        "SET LOCAL transaction_timeout = 1",
        "PERFORM set_config('default_transaction_read_only', 'on', false); SET LOCAL transaction_read_only = on",
    ],
)
def test_failure_in_the_middle_costs_its_own_message_only(
    start: Start, database: Any, owner: Connection[Any], fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.execute(
        f"CREATE FUNCTION befall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fate}; RETURN NEW; END $$".encode()
    )
    owner.execute(
        "CREATE TRIGGER befall BEFORE INSERT ON signal_lab_bars"
        " FOR EACH ROW WHEN (NEW.entity_id = 'BEFALLEN') EXECUTE FUNCTION befall()"
    )
    handle = start("signal_lab", database.app_url)
    linger_after_each_statement(monkeypatch)
    assert handle.consume(tick("BEFORE"), tick("BEFALLEN"), tick("AFTER")) == ["BEFALLEN"]
    owner.execute("DROP TRIGGER befall ON signal_lab_bars")
    assert handle.consume(tick("BEFALLEN"), tick("LATER")) == []
    assert consumed(owner) == {"BEFORE", "BEFALLEN", "AFTER", "LATER"}


def linger_after_each_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each statement take long enough for timeouts of a millisecond."""
    execute = Connection.execute

    def slow(self: Connection[Any], *arguments: Any, **options: Any) -> Any:
        cursor = execute(self, *arguments, **options)
        time.sleep(0.01)
        return cursor

    monkeypatch.setattr(Connection, "execute", slow)


@pytest.mark.parametrize(
    "fate",
    [
        "PERFORM pg_terminate_backend(pg_backend_pid())",
        "PERFORM set_config('default_transaction_read_only', 'on', false); SET LOCAL transaction_read_only = on",
    ],
)
def test_ingestion_cut_off_midway_stores_all_next_time(
    start: Start, database: Any, owner: Connection[Any], market_url: str, fate: str
) -> None:
    owner.execute(
        f"CREATE FUNCTION befall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fate}; RETURN NULL; END $$".encode()
    )
    owner.execute("CREATE TRIGGER befall AFTER INSERT ON raw_payloads EXECUTE FUNCTION befall()")
    ingest = start("ingestion", database.app_url, SYMBOLS="AAPL", MARKET_DATA_URL=market_url)
    with pytest.raises(DatabaseUnavailable):
        ingest({"symbols": ["AAPL"]})
    assert counts(owner) == (0, 0, 0)
    owner.execute("DROP TRIGGER befall ON raw_payloads")
    result = ingest({"symbols": ["AAPL"]})
    assert result["failed_symbols"] == []
    assert counts(owner)[1] == result["ingested"] > 0


@pytest.fixture
def admin(database: Any) -> Iterator[Connection[Any]]:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        yield connection


def test_batch_cut_off_before_commit_is_stored_by_next_session(
    database: Any, app: Connection[Any], admin: Connection[Any]
) -> None:
    with closing(functions_database(database.app_url)) as ingestion:
        connection = ingestion.connection()
        connection.execute("BEGIN")
        store_events(connection, [], ticks(2))
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            connection.execute("COMMIT")
        assert counts(app) == (0, 0, 0)
        assert len(store(ingestion.connection(), ticks(2))) == 2


# Conflicts


def test_signal_lab_consumes_what_a_deadlock_rolled_back(
    start: Start, database: Any, app: Connection[Any], admin: Connection[Any]
) -> None:
    handle = start("signal_lab", database.app_url)
    assert handle.consume(tick(price=1.0)) == []
    newer = tick(price=2.0, revision=1)
    with ThreadPoolExecutor(1) as pool, connect(database.app_url, application_name="test") as other:
        with other.transaction():
            other.execute("SELECT FROM signal_lab_latest_prices FOR UPDATE")
            handled = pool.submit(handle.consume, newer)
            wait_until(lambda: is_waiting(admin, handle.session))
            # The transaction that has waited longer finds the deadlock and is rolled back; then this returns.
            other.execute(
                "INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s) ON CONFLICT DO NOTHING",
                [newer.event_id],
            )
            assert not handled.done()
            raise psycopg.Rollback
        assert handled.result(SECONDS) == []
    assert app.execute("SELECT price FROM signal_lab_latest_prices").fetchone() == (2.0,)


def test_ingestion_stores_what_a_deadlock_rolled_back(
    start: Start, database: Any, app: Connection[Any], admin: Connection[Any], market_url: str
) -> None:
    ingest = start("ingestion", database.app_url, SYMBOLS="AAPL", MARKET_DATA_URL=market_url)
    ingest({"symbols": ["MSFT"]})
    with ThreadPoolExecutor(1) as pool, connect(database.owner_url, application_name="test") as other:
        with other.transaction():
            other.execute("LOCK TABLE outbox IN SHARE ROW EXCLUSIVE MODE")
            ingested = pool.submit(ingest, {"symbols": ["AAPL"]})
            wait_until(lambda: is_waiting(admin, ingest.session))
            lock_entities(other, {("yfinance-replay", "AAPL")})  # This returns once ingestion has been rolled back.
            assert not ingested.done()
            raise psycopg.Rollback
        result = ingested.result(SECONDS)
    assert result["failed_symbols"] == []
    assert result["ingested"] > 0
    assert app.execute("SELECT count(*) FROM raw_payloads WHERE entity_id = 'AAPL'").fetchone() == (1,)


def is_waiting(admin: Connection[Any], session: Connection[Any]) -> bool:
    return admin.execute("SELECT pg_blocking_pids(%s) <> '{}'", [session.info.backend_pid]).fetchone() == (True,)


def serialization_failure(app: Connection[Any], other: Connection[Any]) -> None:
    app.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    app.execute("SELECT FROM relay_handover")
    other.execute("UPDATE relay_handover SET name = 'other'")
    app.execute("UPDATE relay_handover SET name = 'app'")


def lock_not_available(app: Connection[Any], other: Connection[Any]) -> None:
    with other.transaction():
        other.execute("SELECT FROM relay_handover FOR UPDATE")
        app.execute("SELECT FROM relay_handover FOR UPDATE NOWAIT")


@pytest.mark.parametrize("conflict", [serialization_failure, lock_not_available])
@pytest.mark.parametrize("times", [3, 4])
def test_conflicts_are_retried_a_bounded_number_of_times(
    database: Any, app: Connection[Any], conflict: Callable[[Connection[Any], Connection[Any]], None], times: int
) -> None:
    attempts = 0
    waits: list[float] = []
    with connect(database.app_url, application_name="test") as other:
        other.execute("INSERT INTO relay_handover (token, name) VALUES (gen_random_uuid(), 'first')")

        def work() -> str:
            nonlocal attempts
            attempts += 1
            with app.transaction():
                if attempts <= times:
                    conflict(app, other)
                app.execute("UPDATE relay_handover SET name = 'done'")
            return "done"

        if times < 4:
            assert retry_conflicts(work, sleep=waits.append) == "done"
        else:
            with pytest.raises((psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable)):
                retry_conflicts(work, sleep=waits.append)
        assert attempts == 4
        assert len(waits) == 3
        assert all(early * 0.5 < late for early, late in pairwise(waits))


def test_other_failures_are_not_retried(app: Connection[Any]) -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        app.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        retry_conflicts(work)
    assert calls == 1
