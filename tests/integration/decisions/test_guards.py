"""What the database refuses of decisions, whatever the code does."""

from typing import Any

import psycopg
import pytest
from psycopg import errors
from tests.conftest import TestDatabase
from tests.integration.decisions.guards import REFUSED, SOUND
from tests.integration.decisions.released import release

IMMUTABLE = (
    "artifacts", "decision_steps", "verdicts", "approval_requests", "approvals", "switch_changes", "actions",
    "executions", "outcomes", "agent_scores", "anchors",
)  # fmt: skip


def insert(connection: psycopg.Connection[Any], table: str, row: dict[str, object]) -> None:
    columns, places = ", ".join(row), ", ".join(["%s"] * len(row))
    with connection.transaction():
        connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})".encode(), list(row.values()))


def test_a_row_that_makes_no_sense_is_refused(database: TestDatabase) -> None:
    """Foreign keys and triggers aside, so that each CHECK speaks for itself."""
    for table, constraint, wrong in REFUSED:
        with psycopg.connect(database.admin_url) as connection:
            connection.execute("SET session_replication_role = 'replica'")
            connection.execute(f"DELETE FROM {table}".encode())

            with pytest.raises(errors.CheckViolation) as refused:
                insert(connection, table, SOUND[table] | wrong)
            assert refused.value.diag.constraint_name == constraint
            insert(connection, table, SOUND[table])  # but for that, it would have been taken
            connection.rollback()


@pytest.mark.parametrize("table", IMMUTABLE)
def test_what_is_on_record_is_refused_a_change(database: TestDatabase, table: str) -> None:
    release(database)
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        for statement in (f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
            with pytest.raises(errors.RestrictViolation, match="immutable"):
                owner.execute(statement.encode())
