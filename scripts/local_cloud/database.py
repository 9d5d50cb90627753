"""The local database: its roles, its schema, and the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from samcli.yamlhelper import yaml_parse

from control_plane.model.errors import ControlPlaneError
from control_plane.ops.migrations import read_migrations
from control_plane.ops.upgrade import UpgradeReport, upgrade
from control_plane.platform.settings import MigrationSettings
from local_cloud.build import TEMPLATE
from local_cloud.errors import AcpError

if TYPE_CHECKING:
    from pathlib import Path

    from local_cloud.postgres import PostgresServer
    from local_cloud.run_state import RunState
    from local_cloud.workspace import Workspace

NAME = "control_plane"
OWNER = "acp_owner"
APP = "acp_app"


def owner_url(server: PostgresServer, run: RunState) -> str:
    """For migrations and retention."""
    return server.url(OWNER, NAME, run.owner_password)


def app_url(server: PostgresServer, run: RunState) -> str:
    """For all else."""
    return server.url(APP, NAME, run.app_password)


def prepare(server: PostgresServer, run: RunState) -> None:
    """Make the two roles and the database where they are missing."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for role, password in ((OWNER, run.owner_password), (APP, run.app_password)):
            exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                    sql.SQL("ALTER" if exists else "CREATE"), sql.Identifier(role), sql.Literal(password)
                )
            )
            # Without it a role does not see since when another's session pins the transaction horizon.
            connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(role)))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).fetchone() is None:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(NAME), sql.Identifier(OWNER))
            )


def bring_up_to_date(workspace: Workspace, url: str) -> UpgradeReport:
    """Do what MigrationFunction does, with the checkout's migrations and its template's subscriptions.

    `url` is the owner's. Raises AcpError naming the migration or the subscription that cannot be applied.
    """
    try:
        settings = MigrationSettings.from_environ(
            {"DATABASE_URL": url, "SUBSCRIPTIONS": declared_subscriptions(workspace.checkout / TEMPLATE)}
        )
        with psycopg.connect(url, autocommit=True) as connection:
            return upgrade(
                connection, read_migrations(workspace.checkout / "db" / "migrations"), settings.subscriptions
            )
    except (ControlPlaneError, psycopg.Error) as error:
        msg = f"The database could not be brought up to date: {error}"
        raise AcpError(msg) from error


def declared_subscriptions(template: Path) -> str:
    """The SUBSCRIPTIONS that a template gives MigrationFunction, as they stand there; empty where it gives none."""
    function = yaml_parse(template.read_text(encoding="utf-8"))["Resources"]["MigrationFunction"]["Properties"]
    return str(function["Environment"]["Variables"].get("SUBSCRIPTIONS", ""))
