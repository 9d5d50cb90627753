"""MaintenanceFunction: deletes what is beyond its retention, and names whatever keeps Postgres from cleaning up."""

from functools import cache
from typing import Any

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
def handler(_event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Deletes old data for as long as the invocation lasts. Returns a MaintenanceReport."""
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
