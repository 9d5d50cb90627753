"""Retries of transactions that conflict with others: each is repeated from its start, a limited number of times."""

import time
from collections.abc import Callable
from random import random
from typing import Final

import psycopg

CONFLICTS: Final = (
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
)
"""Errors by which Postgres rolls a transaction back because of another one; it may be tried again."""

ATTEMPTS: Final = 4
PAUSE_SECONDS: Final = 0.05
"""The pause before the second attempt; it doubles each time, with jitter so that the two do not conflict again."""


def retry_conflicts[T](
    work: Callable[[], T], *, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep
) -> T:
    """Calls ``work`` until it raises none of CONFLICTS, at most ``attempts`` times, and returns its result.

    ``work`` must be one whole transaction, which it opens itself, without any effect outside the database. The last
    attempt's error is raised.
    """
    for attempt in range(1, attempts):
        try:
            return work()
        except CONFLICTS:
            sleep(PAUSE_SECONDS * 2 ** (attempt - 1) * (0.5 + random()))  # noqa: S311 - a jitter is no secret
    return work()
