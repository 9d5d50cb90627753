"""Migrations on real clusters: applied once, whoever runs them, however often, however many at a time."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import MIGRATIONS, TestDatabase

from control_plane.model.errors import ConfigurationError, DatabaseUnavailable, SchemaVersionMismatch
from control_plane.model.subscription import Subscription
from control_plane.ops.migrations import Migration, MigrationError, MigrationReport, migrate, read_migrations
from control_plane.ops.upgrade import upgrade
from control_plane.platform.database import SCHEMA_VERSION, Database, check_schema, connect
from local_cloud.postgres import PostgresServer

ALL = tuple(range(1, SCHEMA_VERSION + 1))


@pytest.fixture
def empty(empty_database: TestDatabase) -> Iterator[Connection[Any]]:
    with connect(empty_database.owner_url, application_name="test") as connection:
        yield connection


def relations(connection: Connection[Any]) -> set[str]:
    return {
        row[0] for row in connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    }


def side_by_side(urls: Sequence[str]) -> list[MigrationReport]:
    start = Barrier(len(urls))

    def run(url: str) -> MigrationReport:
        with connect(url, application_name="test") as connection:
            start.wait(30)
            return migrate(connection, read_migrations(MIGRATIONS))

    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(run, urls))


def test_a_first_run_applies_all_and_a_second_nothing(empty: Connection[Any]) -> None:
    migrations = read_migrations(MIGRATIONS)
    assert migrate(empty, migrations) == MigrationReport(ALL, SCHEMA_VERSION)
    before = relations(empty)
    assert migrate(empty, migrations) == MigrationReport((), SCHEMA_VERSION)
    assert relations(empty) == before


def test_the_code_needs_the_newest_migration() -> None:
    assert read_migrations(MIGRATIONS)[-1].version == SCHEMA_VERSION


@pytest.mark.parametrize("runners", [2, 8])
def test_runners_at_once_on_one_database_apply_each_file_once(empty_database: TestDatabase, runners: int) -> None:
    reports = side_by_side([empty_database.owner_url] * runners)
    assert sorted(version for report in reports for version in report.applied) == list(ALL)
    assert {report.version for report in reports} == {SCHEMA_VERSION}


def test_concurrent_first_migrations_both_succeed_in_a_fresh_cluster(tmp_path: Path) -> None:
    names = [f"first_{number}" for number in range(6)]
    with PostgresServer(tmp_path / "data", password="secret", fsync=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            for name in names:
                admin.execute(f"CREATE DATABASE {name}".encode())
        reports = side_by_side([server.url(database=name) for name in names])
        assert [report.applied for report in reports] == [ALL] * len(names)
        with psycopg.connect(server.url()) as admin:
            assert admin.execute("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'acp_relay'").fetchone() == (False,)


def test_a_run_with_older_files_leaves_a_newer_schema_alone(empty: Connection[Any]) -> None:
    migrations = read_migrations(MIGRATIONS)
    migrate(empty, migrations)
    assert migrate(empty, migrations[:1]) == MigrationReport((), SCHEMA_VERSION)


def test_a_run_takes_up_where_an_earlier_one_stopped(empty: Connection[Any]) -> None:
    migrations = read_migrations(MIGRATIONS)
    migrate(empty, migrations[:1])
    assert migrate(empty, migrations).applied == ALL[1:]


def test_an_edited_applied_file_is_refused_by_name(empty: Connection[Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))
    migrate(empty, read_migrations(folder))
    edited = folder / "0001_control_plane.sql"
    edited.write_text(edited.read_text() + "\n-- a second thought\n")
    with pytest.raises(MigrationError, match=r"0001 \(control_plane\) was edited after it was applied"):
        migrate(empty, read_migrations(folder))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / f"{SCHEMA_VERSION + 2:04}_too_far.sql").write_text("SELECT 1"), "without a gap"),
        (lambda folder: (folder / "0001_again.sql").write_text("SELECT 1"), "each used once"),
        (lambda folder: (folder / "notes.txt").write_text("?"), r"notes\.txt is no migration"),
        (lambda folder: (folder / "3_short.sql").write_text("SELECT 1"), r"3_short\.sql is no migration"),
    ],
    ids=["gap", "number twice", "foreign file", "malformed name"],
)
def test_a_folder_that_is_not_in_order_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    folder = Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))
    spoil(folder)
    with pytest.raises(MigrationError, match=complaint):
        read_migrations(folder)


def test_failing_file_is_rolled_back_and_earlier_ones_stay(empty: Connection[Any]) -> None:
    migrations = [
        Migration(1, "good", "CREATE TABLE kept (id integer)"),
        Migration(2, "bad", "CREATE TABLE half_done (id integer); SELECT 1 / 0"),
    ]
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty, migrations)
    assert {"kept"} == relations(empty) - {"schema_migrations", "schema_migrations_pkey"}
    assert empty.execute("SELECT version FROM schema_migrations").fetchall() == [(1,)]


@pytest.mark.parametrize("applied", range(SCHEMA_VERSION))
def test_outdated_schema_is_refused_with_the_remedy(empty: Connection[Any], applied: int) -> None:
    if applied:
        migrate(empty, read_migrations(MIGRATIONS)[:applied])
    with pytest.raises(
        SchemaVersionMismatch, match=rf"at version {applied}, .* needs {SCHEMA_VERSION}.*acp db migrate"
    ):
        check_schema(empty)


@pytest.mark.parametrize("versions", [1, 8])
def test_database_of_the_older_layout_is_refused_with_remedy(
    empty_database: TestDatabase, empty: Connection[Any], versions: int
) -> None:
    first = Migration(1, "events_and_outbox", "CREATE TABLE outbox (id bigint, delivered_at timestamptz)")
    migrate(empty, [first, *(Migration(number, "later", "SELECT 1") for number in range(2, versions + 1))])
    before = relations(empty)
    remedy = r"older layout.*new, empty database.*MigrationFunction.*scripts/acp down.*scripts/acp up"
    with pytest.raises(MigrationError, match=remedy):
        migrate(empty, read_migrations(MIGRATIONS))
    assert relations(empty) == before
    with pytest.raises(SchemaVersionMismatch, match=remedy):
        Database(lambda: empty_database.app_url, application_name="test").connection()


def test_a_schema_that_is_ahead_is_welcome(empty: Connection[Any]) -> None:
    ahead = Migration(SCHEMA_VERSION + 1, "of_tomorrow", "SELECT 1")
    migrate(empty, [*read_migrations(MIGRATIONS), ahead])
    check_schema(empty)


def test_warm_function_is_refused_until_schema_is_migrated(
    empty_database: TestDatabase, empty: Connection[Any]
) -> None:
    database = Database(lambda: empty_database.app_url, application_name="test")
    for _ in range(2):
        with pytest.raises(SchemaVersionMismatch):
            database.connection()
    migrate(empty, read_migrations(MIGRATIONS))
    assert database.connection().execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    database.close()


def test_a_connection_that_died_is_replaced(database: TestDatabase, owner: Connection[Any]) -> None:
    warm = Database(lambda: database.app_url, application_name="frozen")
    first = warm.connection()
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [first.info.backend_pid])
    second = warm.connection()
    assert second is not first
    assert second.execute("SELECT 1").fetchone() == (1,)
    assert first.closed
    warm.close()


def test_a_server_that_is_down_is_named_without_its_password(database: TestDatabase) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"acp_relay@127\.0\.0\.1:1/nowhere") as refused:
        connect("postgresql://acp_relay:hush-hush@127.0.0.1:1/nowhere", application_name="test")
    assert "hush" not in str(refused.value)
    wrong = database.app_url.replace("test-password", "hush-hush")
    with pytest.raises(DatabaseUnavailable, match="password authentication failed") as refused:
        connect(wrong, application_name="test")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("password", ["hush/hush", "hush@hush", "hush#hush", "hush?hush", "hush:hush", "hush%hush"])
def test_an_unescaped_password_is_refused_without_being_shown(password: str) -> None:
    with pytest.raises((ConfigurationError, DatabaseUnavailable)) as refused:
        connect(f"postgresql://acp_relay:{password}@127.0.0.1:1/acp", application_name="test")
    assert "hush" not in str(refused.value)


def test_an_upgrade_makes_no_schema_without_its_subscriptions(empty_database: TestDatabase) -> None:
    with connect(empty_database.owner_url, application_name="test") as owner:
        with pytest.raises(psycopg.errors.CheckViolation):
            upgrade(owner, read_migrations(MIGRATIONS), {"Not A Name": Subscription("market.ticks")}, playbooks=())
        assert owner.execute("SELECT to_regclass('schema_migrations'), to_regclass('events')").fetchone() == (
            None,
            None,
        )
        upgrade(owner, read_migrations(MIGRATIONS), {"signal_lab": Subscription("market.ticks")}, playbooks=())
        assert owner.execute("SELECT name FROM subscriptions").fetchall() == [("signal_lab",)]


def test_an_upgrade_without_an_open_decisions_playbook_is_refused(database: TestDatabase) -> None:
    migrations, has, lacks = read_migrations(MIGRATIONS), {("toy", "nudging", "1")}, {("toy", "nudging", "2")}
    with connect(database.owner_url, application_name="test") as owner:
        owner.execute("INSERT INTO artifacts (sha256, kind, bytes) VALUES (sha256('p'), 'pins', 'p')")
        owner.execute(
            "SELECT open_decision(gen_random_uuid(), 'toy', 'nudging', '1', sha256('p'), 'wobble', 'toy', 'W', '', "
            "now(), gen_random_uuid(), gen_random_uuid(), false, now(), 0)"
        )
        with pytest.raises(MigrationError, match=r"nudging 1 of toy \(1 open.*Deploy a release that has"):
            upgrade(owner, migrations, {"late": Subscription("market.ticks")}, playbooks=lacks)
        assert owner.execute("SELECT 1 FROM subscriptions WHERE name = 'late'").fetchone() is None
        upgrade(owner, migrations, None, playbooks=has | lacks)
        owner.execute("UPDATE decisions SET closed_at = now()")
        upgrade(owner, migrations, None, playbooks=lacks)
