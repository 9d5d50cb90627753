"""Whether all is well, at a cost that does not grow with what is not."""

from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.ops.life import QUERIES

STATEMENT_TIMEOUT_MILLISECONDS: Final = 2000
"""Somebody waits for the answer, and a database that takes longer is not well."""


@dataclass(frozen=True, slots=True)
class Health:
    """What tells whether the pipeline flows."""

    oldest_pending_age_seconds: float
    """Of the open promises; with more than a thousand of a topic, of those that are due first."""
    open_breakers: int
    """Of queues and sources, those that are not closed."""


def read_health(connection: Connection[Any]) -> Health:
    """One look."""
    with connection.transaction(), connection.cursor(row_factory=class_row(Health)) as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MILLISECONDS}")
        health = cursor.execute(QUERIES["health"].sql).fetchone()
    assert health is not None, "an aggregate has a row"
    return health
