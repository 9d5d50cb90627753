"""Measures the backlog of pending deliveries, for the relay and for health, at a cost that hardly grows with it."""

from typing import Any, Final

from psycopg import Connection, errors

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

MOST_DEAD_LETTERS: Final = 1000
"""Up to how many dead letters are counted for health and for the alarm."""


def oldest_pending_age(connection: Connection[Any]) -> float:
    """Returns for how many seconds the live flow's oldest pending delivery has been pending; 0 if none is."""
    row = connection.execute(QUERIES["oldest_pending_age"].sql).fetchone()
    assert row is not None, "an aggregate has a row"
    return float(row[0])


def count_pending(connection: Connection[Any], *, timeout_seconds: float) -> int | None:
    """Returns how many deliveries are pending, or None if counting them takes longer than ``timeout_seconds``.

    ``connection`` is in autocommit mode.
    """
    try:
        with connection.transaction():
            limit_statements(connection, timeout_seconds)
            row = connection.execute(QUERIES["count_pending"].sql).fetchone()
    except errors.QueryCanceled:
        return None
    assert row is not None, "an aggregate has a row"
    return int(row[0])


def count_open_dead_letters(connection: Connection[Any], *, most: int = MOST_DEAD_LETTERS) -> int:
    """Returns how many dead letters are open, of every kind, counted up to ``most``."""
    row = connection.execute(QUERIES["count_open_dead_letters"].sql, {"most": most}).fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0])


def limit_statements(connection: Connection[Any], seconds: float) -> None:
    """Makes Postgres cancel each further statement of this transaction after this many seconds."""
    milliseconds = max(1, round(seconds * 1000))  # 0 would mean no limit.
    connection.execute(QUERIES["limit_statements"].sql, {"milliseconds": str(milliseconds)})
