"""Transactions that got into each other's way: each is done again from its start, a bounded number of times."""

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
"""Postgres rolled the transaction back because of another one's, and asks to be tried again."""

ATTEMPTS: Final = 4
PAUSE_SECONDS: Final = 0.05
"""Before the second attempt, and twice as long before each further one; jittered, so that both do not meet again."""


def retry_conflicts[T](
    work: Callable[[], T], *, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep
) -> T:
    """Returns what ``work`` returns; calls it again where it raises one of CONFLICTS, which the last attempt lets out.

    ``work`` is one whole transaction, with no effect but on the database: it opens it, and begins with reading.
    """
    for attempt in range(1, attempts):
        try:
            return work()
        except CONFLICTS:
            sleep(PAUSE_SECONDS * 2 ** (attempt - 1) * (0.5 + random()))  # noqa: S311 - a jitter is no secret
    return work()
