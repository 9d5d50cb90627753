"""GET /health: open to all, so it says that something is wrong, and not what."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from control_plane.api.http import RETRY_AFTER_SECONDS, Response
from control_plane.model.errors import ControlPlaneError, SchemaVersionMismatch
from control_plane.ops.health import read_health
from control_plane.platform.database import Database
from control_plane.platform.function import database_failures

type Checks = Mapping[str, Mapping[str, Any]]


def report_health(database: Database, *, max_pending_age_seconds: float) -> Response:
    """200 while all is ``ok``, or ``degraded`` where a person should look; 503 once something is ``failing``."""
    try:
        with database_failures(), database.bounded() as connection:
            health = read_health(connection, max_processing_age_seconds=max_pending_age_seconds)
    except SchemaVersionMismatch as error:
        return _response({"database": {"status": "ok"}, "schema": {"status": "failing"}}, cause=error)
    except ControlPlaneError as error:
        return _response({"database": {"status": "failing"}}, cause=error)
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
        }
    )


def _response(checks: Checks, *, cause: Exception | None = None) -> Response:
    found = {check["status"] for check in checks.values()}
    status = next(status for status in ("failing", "degraded", "ok") if status in found)
    body = {"status": status, "checks": checks}
    if status == "failing":
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, body, {"Retry-After": str(RETRY_AFTER_SECONDS)}, cause=cause)
    return Response(HTTPStatus.OK, body)
