"""MaintenanceFunction: deletes what is beyond its retention, and names whatever keeps Postgres from cleaning up.

Each minute it is asked for one thing only: to fold what was counted.
"""

from functools import cache
from typing import Any

from control_plane.flow.folding import fold
from control_plane.model.errors import MalformedInvocation
from control_plane.ops.maintenance import Maintenance
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import MaintenanceSettings
from control_plane.platform.telemetry import Telemetry

telemetry = Telemetry("maintenance")


@cache
def settings() -> MaintenanceSettings:
    """Returns the settings, validated once per environment."""
    return MaintenanceSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection, as the role that may delete old data."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-maintenance",
        role="acp_maintain",
    )


@function(telemetry, sample="events/maintenance.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Deletes old data for as long as the invocation lasts. Returns a MaintenanceReport.

    For the event ``{"only": "fold"}`` it folds what was counted, and returns ``{"folded": rows}``.
    """
    if (only := event.get("only")) is not None:
        if only != "fold":
            raise MalformedInvocation(f'the event asks for {str(only)[:100]!r} only: it may ask for "fold"')
        return {
            "folded": fold(
                database().connection(), remaining_seconds=lambda: context.get_remaining_time_in_millis() / 1000
            )
        }
    report = (
        Maintenance(
            retention_days=settings().retention_days,
            telemetry=telemetry,
        )
        .run(
            database().connection(),
            remaining_seconds=lambda: context.get_remaining_time_in_millis() / 1000,
        )
        .to_dict()
    )
    telemetry.logger.info("maintained", **report)
    return report
