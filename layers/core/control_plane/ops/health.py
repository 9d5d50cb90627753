"""Whether all is well, at a cost that hardly grows with what is not."""

from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.platform.backlog import limit_statements, oldest_pending_age
from control_plane.platform.breakers import read_breakers

STATEMENT_TIMEOUT_SECONDS: Final = 2.0
"""Somebody waits for the answer, and a database that takes longer is not well."""


@dataclass(frozen=True, slots=True)
class Health:
    """Health as read from the database at one moment."""

    oldest_pending_age_seconds: float
    """The age of the oldest pending delivery, by its promise."""
    open_breakers: int
    """How many breakers are not closed, of those that somebody guards with."""


def read_health(connection: Connection[Any]) -> Health:
    """Reads health. Raises psycopg.errors.QueryCanceled where the database takes too long to answer."""
    with connection.transaction():
        limit_statements(connection, STATEMENT_TIMEOUT_SECONDS)
        age = oldest_pending_age(connection)
        breakers = read_breakers(connection)
    return Health(age, sum(breaker.is_guarded and not breaker.is_closed for breaker in breakers))
