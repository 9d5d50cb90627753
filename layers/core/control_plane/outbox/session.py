"""The relay's session with Postgres.

It reconnects while a database restarts, and gives up before the invocation ends.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Timer
from typing import Any, Final

import psycopg
from psycopg import Connection

from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform.database import hang_up

RECONNECT_SECONDS: Final = 5.0
"""How long a relay tries to reconnect to a database that it has lost."""
RECONNECT_PAUSE_SECONDS: Final = 0.2
LAST_SECONDS: Final = 0.5
"""The seconds at the end of an invocation in which it no longer waits for Postgres, so that there is time to report
that."""

_TOO_LATE: Final = (
    "Postgres did not answer before the invocation's time was over: is it overloaded, or does somebody hold a lock on "
    "pending_deliveries? What was sent and is not settled comes again when its lease ends"
)


class Session:
    """One connection, used by one thread; any thread may enter :meth:`ends_in`."""

    def __init__(
        self,
        connect: Callable[[], Connection[Any]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connect = connect
        self._monotonic = monotonic
        self._sleep = sleep
        self._connection: Connection[Any] | None = None
        self._is_late = Event()
        self._closing = Lock()

    def open(self) -> None:
        """Takes a checked connection for a new invocation. Raises DatabaseUnavailable."""
        self._connection = self._connect()

    def connection(self) -> Connection[Any]:
        """Returns the connection, or a new one if the last one broke. Raises DatabaseUnavailable."""
        if self._connection is None:
            opened = self._connect()
            with self._closing:
                self._connection = opened
                if self._is_late.is_set():
                    raise DatabaseUnavailable(_TOO_LATE)
        return self._connection

    @contextmanager
    def ends_in(self, seconds: float) -> Iterator[None]:
        """Makes a statement in the block raise DatabaseUnavailable if it still runs when the time is nearly up.

        Without this, a lock that somebody holds on the table would keep the invocation waiting until Lambda kills it,
        and nothing would be logged. Opening a connection has a time limit of its own.
        """
        self._is_late.clear()
        timer = Timer(max(seconds - LAST_SECONDS, 0), self._end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def execute[T](self, work: Callable[[Connection[Any]], T]) -> T:
        """Runs ``work``; if the connection breaks, runs it again on new connections, for RECONNECT_SECONDS.

        ``work`` must be safe to run twice, as all of the relay's work is. Settlements are fenced; a claim whose answer
        was lost comes back when its lease ends; and a breaker that counts a failure twice only opens sooner. Raises
        psycopg.Error, DatabaseUnavailable.
        """
        give_up_at = self._monotonic() + RECONNECT_SECONDS
        failure = None
        while not self._is_late.is_set():
            try:
                return work(self.connection())
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, DatabaseUnavailable) as error:
                failure = error
                # After a failover the former writer may still answer; only a new connection reaches the new writer.
                with self._closing:
                    if self._connection is not None:
                        self._connection.close()
                    self._connection = None
                if self._is_late.is_set():
                    break
                if self._monotonic() >= give_up_at:
                    raise
                self._sleep(RECONNECT_PAUSE_SECONDS)
        raise DatabaseUnavailable(_TOO_LATE) from failure

    def _end(self) -> None:
        self._is_late.set()
        with self._closing:
            if self._connection is not None:
                hang_up(self._connection)
