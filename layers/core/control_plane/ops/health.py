"""Reads whether all is well, at a cost that hardly grows with the number of problems."""

from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.ops.status import read_consumer_lag
from control_plane.ops.timeline import QUERIES
from control_plane.platform.backlog import limit_statements, oldest_pending_age
from control_plane.platform.breakers import read_breakers

STATEMENT_TIMEOUT_SECONDS: Final = 2.0
"""How long a statement may take: a caller waits for the answer, and a database that takes longer is not healthy."""
MOST_COUNTED: Final = 1000
"""How many dead letters, and how many of the newest messages, health looks at."""


@dataclass(frozen=True, slots=True)
class Health:
    """Health as read from the database at one moment."""

    oldest_pending_age_seconds: float
    """The age of the live flow's oldest pending delivery, by its promise."""
    open_breakers: int
    """How many breakers that are in use are not closed."""
    dead_letters: int
    """How many dead letters are open, counted up to :data:`MOST_COUNTED`."""
    late_consumers: int
    """How many consumers have left a delivered message unprocessed for too long."""
    stalled_operations: int
    """How many operations should be at work and have made no step for five minutes."""


def read_health(connection: Connection[Any], *, max_processing_age_seconds: float = 300) -> Health:
    """Reads health; a consumer is late if it has not processed a message this long after its delivery.

    Raises psycopg.errors.QueryCanceled if the database takes too long to answer.
    """
    with connection.transaction():
        limit_statements(connection, STATEMENT_TIMEOUT_SECONDS)
        age = oldest_pending_age(connection)
        breakers = read_breakers(connection)
        row = connection.execute(QUERIES["count_open_dead_letters"].sql, {"limit": MOST_COUNTED}).fetchone()
        lag = read_consumer_lag(connection, newest=MOST_COUNTED)
        stalled = connection.execute(QUERIES["count_stalled_operations"].sql).fetchone()
    assert row is not None, "an aggregate has a row"
    assert stalled is not None, "an aggregate has a row"
    return Health(
        oldest_pending_age_seconds=age,
        open_breakers=sum(breaker.is_guarded and not breaker.is_closed for breaker in breakers),
        dead_letters=int(row[0]),
        late_consumers=sum(each.oldest_age_seconds > max_processing_age_seconds for each in lag),
        stalled_operations=int(stalled[0]),
    )
