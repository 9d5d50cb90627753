"""MigrationFunction: brings the database's schema and its subscriptions in line with what is deployed."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from control_plane.model.deciding import playbook_versions
from control_plane.ops.migrations import read_migrations
from control_plane.ops.upgrade import upgrade
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import MigrationSettings
from control_plane.platform.telemetry import Telemetry
from domains import load_deciding

MIGRATIONS = Path(__file__).parent / "migrations"

telemetry = Telemetry("migration")


@cache
def settings() -> MigrationSettings:
    """Returns the settings, validated once per environment."""
    return MigrationSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection, as the owner.

    It does not check the schema's version, because this function updates the schema.
    """
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-migration",
        role=None,
        check_schema=False,
    )


@function(telemetry, sample="events/migration.json")
def handler(_event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Applies missing migrations and syncs the subscriptions; a second run changes nothing.

    Refuses, and changes nothing, while an open decision is pinned to a playbook's version that this release lacks.

    Returns ``{applied: [versions], version, subscriptions: {added, removed, backfilled, dead_lettered}}``.
    """
    report = upgrade(
        database().connection(),
        read_migrations(MIGRATIONS),
        settings().subscriptions,
        playbooks=playbook_versions(load_deciding()),
    )
    telemetry.count("MigrationsApplied", len(report.schema.applied))
    answer = asdict(report.schema) | {"subscriptions": asdict(report.subscriptions)}
    telemetry.logger.info("migrated", **answer)
    return answer
