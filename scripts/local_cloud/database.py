"""The local database: its roles, its schema, and the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from control_plane.model.errors import ControlPlaneError
from control_plane.ops.migrations import migrate, read_migrations
from local_cloud.errors import AcpError

if TYPE_CHECKING:
    from control_plane.ops.migrations import MigrationReport
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


def apply_migrations(workspace: Workspace, url: str) -> MigrationReport:
    """Bring the schema up to date. Raises AcpError naming the migration that fails."""
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            return migrate(connection, read_migrations(workspace.checkout / "db" / "migrations"))
    except (ControlPlaneError, psycopg.Error) as error:
        msg = f"The migrations could not be applied: {error}"
        raise AcpError(msg) from error
