"""Folds what was counted into minutes and totals, so that a reader has little to add up."""

from collections.abc import Callable
from typing import Any, Final

from psycopg import Connection

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
MOST_ROWS: Final = 100_000
"""The most rows that one transaction folds: this takes about a second."""
RESERVE_SECONDS: Final = 60.0
"""No transaction starts when less time than this is left: operations are worked on in what remains."""


def fold(connection: Connection[Any], *, remaining_seconds: Callable[[], float], most: int = MOST_ROWS) -> int:
    """Folds what was counted more than a minute ago; returns how many rows that were.

    ``connection`` is in autocommit mode: each transaction is whole, and a later call goes on. While another fold is at
    work, there is nothing to do. Raises psycopg.Error.
    """
    folded = 0
    while remaining_seconds() >= RESERVE_SECONDS:
        row = connection.execute(QUERIES["fold"].sql, {"most": most}).fetchone()
        assert row is not None, "a function's value is a row"
        folded += row[0]
        if row[0] < most:
            break
    return folded
