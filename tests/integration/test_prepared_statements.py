"""Statements that repeat are prepared where nobody shares the session, and a batch's session is checked once."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.poolers import Front
from tests.integration.test_sessions import set_default

from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform import database as functions
from control_plane.platform.database import CHECKED_SECONDS, Database, connect
from control_plane.platform.session import check_session
from local_cloud.postgres import PostgresServer


def prepared(connection: Connection[Any]) -> int:
    for number in range(20):
        connection.execute("SELECT %s + 1", [number])
    row = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert row is not None
    return int(row[0])


def test_statements_that_repeat_are_prepared_in_a_session_of_its_own(database: TestDatabase) -> None:
    with connect(database.app_url, application_name="test", prepares=True) as connection:
        assert prepared(connection) == 1


def test_nothing_is_prepared_behind_a_pooler(postgres: PostgresServer, database: TestDatabase) -> None:
    for name, value in (("DateStyle", "ISO"), ("search_path", "public")):
        set_default(database, name, value)
    with (
        Front(postgres.port) as pooler,
        connect(pooler.url(database.app_url), application_name="test", prepares=True) as connection,
    ):
        assert prepared(connection) == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Connection[Any]]:
    """The sessions that were checked, in order."""
    made: list[Connection[Any]] = []

    def noted(connection: Connection[Any]) -> bool:
        made.append(connection)
        return check_session(connection)

    monkeypatch.setattr(functions, "check_session", noted)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def of_function(database: TestDatabase, clock: Clock) -> Iterator[Database]:
    opened = Database(lambda: database.app_url, application_name="test", check_schema=False, monotonic=clock)
    with closing(opened):
        yield opened


def test_the_next_message_of_a_batch_takes_the_session_unasked(
    of_function: Database, clock: Clock, checks: list[Connection[Any]]
) -> None:
    first = of_function.connection()
    assert of_function.same_connection() is first
    assert len(checks) == 1
    clock.now += CHECKED_SECONDS
    assert of_function.same_connection() is first
    assert len(checks) == 2, "it was idle for long enough to be lost"
    assert of_function.connection() is first
    assert len(checks) == 3, "a new invocation asks, whatever its clock says"


def test_a_session_that_broke_or_is_in_a_transaction_is_not_the_next_messages(
    database: TestDatabase, of_function: Database
) -> None:
    first = of_function.connection()
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [first.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        first.execute("SELECT 1")
    second = of_function.same_connection()
    assert second.execute("SELECT 1").fetchone() == (1,)
    second.execute("BEGIN")
    third = of_function.same_connection()
    assert third is not second
    assert third.execute("SELECT 1").fetchone() == (1,)


def test_a_session_that_was_never_opened_is_opened(of_function: Database) -> None:
    assert of_function.same_connection().execute("SELECT 1").fetchone() == (1,)


def test_a_database_that_is_away_is_named_for_the_next_message_too(clock: Clock) -> None:
    away = Database(
        lambda: "postgresql://nobody@127.0.0.1:1/nowhere", application_name="test", check_schema=False, monotonic=clock
    )
    with pytest.raises(DatabaseUnavailable):
        away.same_connection()
