"""GET /health: anybody may call it, so the answer says that something is wrong, but not what.

An environment reads the database at most every few seconds, however many callers there are, and no caller waits long
for a slow read.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from threading import Event, Thread
from typing import Any, Final

from control_plane.api.http import RETRY_AFTER_SECONDS, Response, failure
from control_plane.model.errors import ControlPlaneError, DatabaseUnavailable, SchemaVersionMismatch
from control_plane.ops.health import read_health
from control_plane.platform.database import Database
from control_plane.platform.function import database_failures

KEEP_SECONDS: Final = 5.0
"""For how many seconds an answer is reused."""

type Checks = Mapping[str, Mapping[str, Any]]


class HealthReporter:
    """Answers /health from a look at the database that is at most ``keep_seconds`` old.

    ``open_database`` makes the database that the looks use; it has already read its URL, because reading a secret has a
    time limit of its own. A caller waits at most ``patience_seconds`` for connecting, checking and reading together. A
    look runs on its own thread, because neither a name server nor libpq, whose shortest time-out is two seconds per
    address, can be relied on to return in time. Only one look runs at a time, so there is only one connection.
    """

    def __init__(
        self,
        open_database: Callable[[], Database],
        *,
        max_pending_age_seconds: float,
        patience_seconds: float,
        keep_seconds: float = KEEP_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_database = open_database
        self._max_pending_age_seconds = max_pending_age_seconds
        self._patience_seconds = patience_seconds
        self._keep_seconds = keep_seconds
        self._monotonic = monotonic
        self._look: _Look | None = None
        self._database: Database | None = None
        self._kept: Response | None = None
        self._kept_at = float("-inf")

    def answer(self) -> Response:
        """Returns 200 while all is ``ok`` or only a breaker is open (``degraded``); 503 if something is ``failing``."""
        if self._kept is not None and self._monotonic() - self._kept_at < self._keep_seconds:
            return self._kept
        try:
            answer = self._look_again()
        except Exception as error:  # noqa: BLE001 - kept like any answer, or each request would meet it anew
            self.close()
            answer = failure(error, with_details=False)
        # The cause is logged once, with the answer that found it.
        self._kept, self._kept_at = replace(answer, cause=None), self._monotonic()
        return answer

    def expire(self) -> None:
        """Makes the next answer look at the database again."""
        self._kept = None

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _look_again(self) -> Response:
        patience_ends = self._monotonic() + self._patience_seconds
        if self._look is not None and not self._look.is_over(self._patience_seconds):
            return _unavailable(self._late())
        try:
            if self._database is None:
                self._database = self._open_database()
                patience_ends = self._monotonic() + self._patience_seconds
        except ControlPlaneError as error:
            return _unavailable(error)
        database = self._database
        self._look = _Look(lambda: report_health(database, max_pending_age_seconds=self._max_pending_age_seconds))
        if not self._look.is_over(max(0.0, patience_ends - self._monotonic())):
            self._database = None
            self._look.abandon(database)
            return _unavailable(self._late())
        response = self._look.result()
        if response.status != HTTPStatus.OK and "schema" not in (response.body or {})["checks"]:
            self.close()  # The next look reads the URL again, because the secret may have been rotated.
        return response

    def _late(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"Postgres did not answer /health within {self._patience_seconds:g} seconds: is it overloaded, or the way "
            "to it blocked?"
        )


class _Look:
    """One look at the database, on a thread of its own."""

    def __init__(self, look: Callable[[], Response]) -> None:
        self._run = look
        self._response: Response | None = None
        self._error: BaseException | None = None
        self._abandoned: Database | None = None
        self._over = Event()
        Thread(target=self._work, name="health", daemon=True).start()

    def is_over(self, within_seconds: float) -> bool:
        """Waits until the look has ended, or the time is up; returns whether it has ended."""
        return self._over.wait(within_seconds)

    def abandon(self, database: Database) -> None:
        """Makes the look close its connection when it ends."""
        self._abandoned = database
        if self._over.is_set():  # The look ended just now and may not have seen that it was abandoned.
            database.close()

    def result(self) -> Response:
        """Returns what the look read, or raises what it raised."""
        if self._error is not None:
            raise self._error
        assert self._response is not None, "it is over"
        return self._response

    def _work(self) -> None:
        try:
            self._response = self._run()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        finally:
            self._over.set()
            if self._abandoned is not None:
                self._abandoned.close()


def report_health(database: Database, *, max_pending_age_seconds: float) -> Response:
    """Returns 200 while all is ``ok`` or a person should look (``degraded``); 503 once something is ``failing``."""
    try:
        with database_failures(), database.bounded() as connection:
            health = read_health(connection, max_processing_age_seconds=max_pending_age_seconds)
    except SchemaVersionMismatch as error:
        return _response({"database": {"status": "ok"}, "schema": {"status": "failing"}}, cause=error)
    except ControlPlaneError as error:
        return _unavailable(error)
    age = health.oldest_pending_age_seconds
    return _response(
        {
            "database": {"status": "ok"},
            "schema": {"status": "ok"},
            "outbox": {
                "status": "ok" if age <= max_pending_age_seconds else "failing",
                "oldest_pending_age_seconds": round(age, 1),
                "max_pending_age_seconds": max_pending_age_seconds,
            },
            "breakers": {"status": "degraded" if health.open_breakers else "ok", "open": health.open_breakers},
            "dead_letters": {"status": "degraded" if health.dead_letters else "ok", "open": health.dead_letters},
            "consumers": {"status": "degraded" if health.late_consumers else "ok", "late": health.late_consumers},
            "operations": {
                "status": "degraded" if health.stalled_operations else "ok",
                "stalled": health.stalled_operations,
            },
        }
    )


def _unavailable(cause: Exception) -> Response:
    return _response({"database": {"status": "failing"}}, cause=cause)


def _response(checks: Checks, *, cause: Exception | None = None) -> Response:
    found = {check["status"] for check in checks.values()}
    status = next(status for status in ("failing", "degraded", "ok") if status in found)
    body = {"status": status, "checks": checks}
    if status == "failing":
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, body, {"Retry-After": str(RETRY_AFTER_SECONDS)}, cause=cause)
    return Response(HTTPStatus.OK, body)
