"""TimersFunction: every minute it fails expired actions, wakes the decisions that are due, and anchors the record."""

from functools import cache
from typing import Any

from control_plane.decisions.timers import run_timers
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry

telemetry = Telemetry("timers")


@cache
def database() -> Database:
    """One connection per environment."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database, endpoint_url=settings.cloud_endpoint_url, application_name="acp-timers", role="acp_decide"
    )


@function(telemetry, sample="events/timers.json")
def handler(_event: dict[str, Any], context: LambdaContext) -> dict[str, int]:
    """One run. Returns a TimersReport."""
    report = run_timers(
        database().connection(),
        telemetry,
        remaining_seconds=lambda: context.get_remaining_time_in_millis() / 1000,
    )
    telemetry.logger.info("timers fired", expired=report.expired, woken=report.woken, anchored=report.anchored)
    return report.to_dict()
