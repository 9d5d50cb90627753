"""The schema of the tables of a consumer that is being rebuilt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from psycopg import Connection

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@contextmanager
def in_shadow(connection: Connection[Any]) -> Iterator[None]:
    """Has a transaction's statements find a table's shadow before the table itself. Raises psycopg.Error."""
    connection.execute(QUERIES["use_schemas"].sql, {"schemas": "shadow, public"})
    yield
    # After an error the transaction, or the savepoint around this, takes the setting back.
    connection.execute(QUERIES["use_schemas"].sql, {"schemas": "public"})
