"""Circuit breakers: one per subscription and per source, kept in Postgres, shared by all functions and by people.

A breaker has the name of the subscription or source that it guards. A closed one opens after a number of consecutive
failures that count as an outage. After a cool-down it lets one caller probe (half-open); the probe's outcome closes it
or opens it again. A person may hold a breaker open. All times are by the database's clock. Nothing here commits: on an
autocommit connection each call is a transaction of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.model.text import readable
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and how long it stays open before a probe."""

    failure_threshold: int
    """The number of consecutive outage failures that opens it; 1 or more."""
    cool_down_seconds: float
    """Seconds that it stays open before a probe, and that a caller has for its probe before another may make one."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """A breaker's state at the moment when it was read."""

    name: str
    state: str = "closed"
    """``closed``, ``open``, ``half_open``."""
    consecutive_failures: int = 0
    opened_at: datetime | None = None
    """When it opened; failed probes since then do not change it. None while it is closed."""
    retry_in_seconds: float | None = None
    """Seconds until a probe may be made, 0 or less if one is due; None if it is closed or held."""
    held_by: str | None = None
    """The person who holds it open."""
    last_error: str | None = None
    """The text of the latest failure; None again once the breaker closes."""
    is_guarded: bool = True
    """Whether a function has used the breaker lately; one that no function uses counts no longer as open."""
    held_reason: str | None = None
    """Why the person holds it; None where they did not say."""

    @property
    def is_closed(self) -> bool:
        """Whether all calls may pass."""
        return self.state == "closed"

    @property
    def probe_is_due(self) -> bool:
        """Whether :meth:`Breakers.try_probe` is worth its round trip."""
        return self.held_by is None and self.retry_in_seconds is not None and self.retry_in_seconds <= 0


class Breakers:
    """A function's breakers: it reads them before its work and reports the outcome after it."""

    def __init__(self, connection: Callable[[], Connection[Any]], policy: BreakerPolicy) -> None:
        self._connection = connection
        self._policy = policy
        self._sound: set[str] = set()

    def read(self, names: Sequence[str]) -> Mapping[str, Breaker]:
        """Returns each name's breaker, closed if none is stored, and stamps the stored ones as in use."""
        with self._connection().cursor(row_factory=class_row(Breaker)) as cursor:
            rows = cursor.execute(QUERIES["guard_breakers"].sql, {"names": list(names)}).fetchall()
        stored = {breaker.name: breaker for breaker in rows}
        breakers = {name: stored.get(name) or Breaker(name) for name in names}
        for name, breaker in breakers.items():
            if breaker.is_closed and not breaker.consecutive_failures:
                self._sound.add(name)
            else:
                self._sound.discard(name)
        return breakers

    def try_probe(self, name: str) -> bool:
        """Returns True to exactly one caller, once the cool-down is over and nobody holds the breaker.

        The breaker is half-open then. The caller tries once and reports the outcome; if it never reports, another
        caller may probe a cool-down later.
        """
        self._sound.discard(name)
        row = self._connection().execute(
            QUERIES["probe_breaker"].sql, {"name": name, "cool_down_seconds": self._policy.cool_down_seconds}
        )
        return row.fetchone() is not None

    def give_back_probe(self, name: str) -> None:
        """Makes a probe due again at once, for any caller, because the one that won it had nothing to send."""
        self._connection().execute(QUERIES["give_back_probe"].sql, {"name": name})

    def is_sound(self, name: str) -> bool:
        """Whether the breaker was closed and without failures when last read; then a success need not be reported."""
        return name in self._sound

    def succeeded(self, name: str, *, began_seconds_ago: float = 0) -> Breaker:
        """Closes the breaker, unless a person holds it or it opened after the work began; returns it.

        Makes no query if the breaker is known to be closed and without failures.
        """
        if name in self._sound:
            return Breaker(name)
        self._connection().execute(QUERIES["close_breaker"].sql, {"name": name, "began_seconds_ago": began_seconds_ago})
        return self.read([name])[name]

    def failed(self, name: str, error: str) -> Breaker:
        """Counts a failure of the outage class and returns the breaker after it."""
        self._sound.discard(name)
        with self._connection().cursor(row_factory=class_row(Breaker)) as cursor:
            breaker = cursor.execute(
                QUERIES["count_failure"].sql,
                {
                    "name": name,
                    "error": readable(error),
                    "failure_threshold": self._policy.failure_threshold,
                    "cool_down_seconds": self._policy.cool_down_seconds,
                },
            ).fetchone()
        assert breaker is not None
        return breaker


def read_breakers(connection: Connection[Any], names: Sequence[str] | None = None) -> list[Breaker]:
    """Returns the breakers of these names, or all, by name. One that never failed and was never held has no row."""
    with connection.cursor(row_factory=class_row(Breaker)) as cursor:
        return cursor.execute(QUERIES["breakers"].sql, {"names": None if names is None else list(names)}).fetchall()


def hold(connection: Connection[Any], name: str, *, by: str, reason: str = "", force: bool = False) -> str | None:
    """Holds a breaker open, whatever succeeds or fails, until it is resumed; ``reason`` is kept with the hold.

    Returns None, or who holds it already: another person's hold is replaced only with ``force``. One's own hold is
    renewed, with the new reason.
    """
    held_reason = readable(reason.strip()) or None
    parameters = {"name": name, "held_by": readable(by), "held_reason": held_reason, "force": force}
    if connection.execute(QUERIES["hold_breaker"].sql, parameters).fetchone() is not None:
        return None
    breaker = next(iter(read_breakers(connection, [name])), None)
    # The holder may have resumed it since then.
    return breaker.held_by if breaker is not None and breaker.held_by is not None else "somebody else"


def resume(connection: Connection[Any], name: str) -> bool:
    """Ends a hold or a cool-down, so that a probe is due at once. Returns False if the breaker is not open."""
    return connection.execute(QUERIES["resume_breaker"].sql, {"name": name}).fetchone() is not None


def forget(connection: Connection[Any], name: str) -> bool:
    """Deletes a breaker; one still in use is stored again at its next failure. Returns False if there is none."""
    return connection.execute(QUERIES["forget_breaker"].sql, {"name": name}).fetchone() is not None
