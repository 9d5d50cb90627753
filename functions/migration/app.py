"""MigrationFunction: brings the database's schema up to this code's; a second run changes nothing."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from control_plane.ops.migrations import migrate, read_migrations
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry

MIGRATIONS = Path(__file__).parent / "migrations"

telemetry = Telemetry("migration")


@cache
def database() -> Database:
    """One connection per environment, as the owner; it is the schema that is to be mended, so it is not checked."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database,
        endpoint_url=settings.cloud_endpoint_url,
        application_name="acp-migration",
        check_schema=False,
    )


@function(telemetry)
def handler(_event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Applies what is missing. Returns ``{applied: [versions], version}``."""
    report = migrate(database().connection(), read_migrations(MIGRATIONS))
    telemetry.count("MigrationsApplied", len(report.applied))
    telemetry.logger.info("migrated", applied=report.applied, version=report.version)
    return asdict(report)
