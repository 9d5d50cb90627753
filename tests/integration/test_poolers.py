"""Sessions behind poolers that drop what a connection asks for, and on servers that are too old for it."""

import re
from contextlib import closing
from typing import Any

import psycopg
import pytest
from tests.integration.pipeline import bring_up, functions_database, run_through
from tests.integration.poolers import PGBOUNCER_REFUSES, RDS_PROXY_REFUSES, Front
from tests.integration.test_sessions import is_known, put_a_foreign_schema_first, refusal, set_default

from control_plane.model.errors import DatabaseUnavailable, UnsuitableDatabase
from control_plane.platform import database as functions
from control_plane.platform.database import connect
from local_cloud.postgres import PostgresServer

type Database = Any


@pytest.mark.parametrize("refuses", [PGBOUNCER_REFUSES, RDS_PROXY_REFUSES], ids=["PgBouncer", "RDS Proxy"])
def test_pooler_that_refuses_options_still_gets_dates_right(
    postgres: PostgresServer, empty_database: Database, refuses: tuple[str, str]
) -> None:
    set_default(empty_database, "DateStyle", "German, DMY")
    set_default(empty_database, "TimeZone", "Asia/Kathmandu")
    with Front(postgres.port, refuses=refuses) as pooler:
        bring_up(pooler.url(empty_database.owner_url))
        with (
            closing(functions_database(pooler.url(empty_database.app_url))) as app,
            closing(functions_database(pooler.url(empty_database.owner_url))) as owner,
        ):
            run_through(app.connection(), owner.connection())


UNSUITABLE = {
    "IntervalStyle": "iso_8601",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
    "restrict_nonsystem_relation_kind": "view",
    "search_path": "tenant, public",
    "standard_conforming_strings": "off",
    "statement_timeout": "5s",
    "synchronous_commit": "off",
    "transaction_timeout": "5s",
    "control_plane.retention": "on",
}


def test_a_pooler_dropping_options_is_refused_with_a_remedy(postgres: PostgresServer, database: Database) -> None:
    put_a_foreign_schema_first(database)
    unsuitable = {name: value for name, value in UNSUITABLE.items() if is_known(database, name)}
    for name, value in unsuitable.items():
        set_default(database, name, value)
    with Front(postgres.port) as pooler:
        for url, owns in ((database.app_url, False), (database.owner_url, True)):
            mend = refusal(pooler.url(url), *(f"SET {name.lower()} = " for name in unsuitable))
            with psycopg.connect(database.admin_url, autocommit=True) as admin:
                admin.execute(mend.encode())
            with closing(functions_database(pooler.url(url))) as mended:
                mended.connection()
            assert ("acp_owner" in mend) is owns
        with (
            closing(functions_database(pooler.url(database.app_url))) as app,
            closing(functions_database(pooler.url(database.owner_url))) as owner,
        ):
            run_through(app.connection(), owner.connection())


def test_long_timeouts_of_a_pooled_role_are_left_alone(postgres: PostgresServer, database: Database) -> None:
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"):
        set_default(database, name, "2min")
    with Front(postgres.port) as pooler, connect(pooler.url(database.app_url), application_name="test") as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("2min",)


def test_pooled_session_that_somebody_left_changed_is_not_used(postgres: PostgresServer, database: Database) -> None:
    with Front(postgres.port) as pooler, closing(functions_database(pooler.url(database.app_url))) as app:
        connection = app.connection()
        assert app.connection() is connection
        connection.execute("SET statement_timeout = '1s'")
        assert app.connection() is not connection


def test_timeout_too_short_to_look_is_named(postgres: PostgresServer, database: Database) -> None:
    set_default(database, "statement_timeout", "1ms")
    with (
        Front(postgres.port) as pooler,
        pytest.raises((UnsuitableDatabase, DatabaseUnavailable), match=r"SET (the timeout|statement_timeout) = 0"),
    ):
        connect(pooler.url(database.app_url), application_name="test")


def test_server_older_than_15_is_refused_before_migrating(postgres: PostgresServer, empty_database: Database) -> None:
    def as_version_14(answer: bytes) -> bytes:
        return re.sub(rb"server_version\0\d\d", b"server_version\00014", answer)

    with (
        Front(postgres.port, rewrite=as_version_14) as old,
        pytest.raises(UnsuitableDatabase, match="it is version 14, and 15 is the oldest that will do: upgrade it"),
    ):
        bring_up(old.url(empty_database.owner_url))
    with psycopg.connect(empty_database.owner_url) as connection:
        assert connection.execute("SELECT to_regclass('schema_migrations')").fetchone() == (None,)


GERMAN = "Passwort-Authentifizierung für Benutzer »acp_test« fehlgeschlagen"


def test_password_refused_in_another_language_rereads_the_secret(postgres: PostgresServer, database: Database) -> None:
    with Front(postgres.port, refuses_password=GERMAN) as rotated:
        urls = iter([rotated.url(database.app_url), database.app_url])
        with closing(functions.Database(lambda: next(urls), application_name="test")) as app:
            assert app.connection().execute("SELECT current_user").fetchone() == ("acp_test",)
