"""The local database: its roles, its schema, and its URLs."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from local_cloud.build import TEMPLATE
from local_cloud.errors import AcpError
from local_cloud.roles import COMMAND, OWNER, READER, SECRETS, SEE_OTHERS_SESSIONS
from local_cloud.template import read_template

if TYPE_CHECKING:
    from pathlib import Path

    from control_plane.ops.upgrade import UpgradeReport
    from local_cloud.postgres import PostgresServer
    from local_cloud.run_state import RunState
    from local_cloud.workspace import Workspace

NAME = "control_plane"


def url(server: PostgresServer, run: RunState, role: str) -> str:
    """Returns the database's URL for one of the roles."""
    return server.url(role, NAME, run.role_passwords[role])


def owner_url(server: PostgresServer, run: RunState) -> str:
    """Returns the owner's URL, for migrations and for a person's changes."""
    return url(server, run, OWNER)


def reader_url(server: PostgresServer, run: RunState) -> str:
    """Returns the reader's URL, for commands that only look."""
    return url(server, run, READER)


def person_url(server: PostgresServer, run: RunState, person: str) -> str:
    """For approvals and switches: a login of the person's own in acp_command, made where it is missing.

    What they do is on record under it. Elsewhere an administrator makes such logins: docs/deploy.md.
    """
    # Slow to import, and not needed by whoever asks for a URL alone.
    import psycopg  # noqa: PLC0415
    from psycopg import sql  # noqa: PLC0415

    login = f"person_{person}"[:63]
    password = hmac.new(run.role_passwords[OWNER].encode(), login.encode(), "sha256").hexdigest()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [COMMAND]).fetchone() is None:
            msg = f"The database has no role {COMMAND}."
            raise AcpError(msg, remedy="Bring it up to date: scripts/acp db migrate")
        exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [login]).fetchone() is not None
        if not exists:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                    sql.Identifier(login), sql.Literal(password), sql.Identifier(COMMAND)
                )
            )
    return server.url(login, NAME, password)


def prepare(server: PostgresServer, run: RunState) -> None:
    """Make the roles and the database where they are missing; a role's own password and settings are set anew."""
    # Slow to import, and not needed by whoever asks for a URL alone.
    import psycopg  # noqa: PLC0415
    from psycopg import sql  # noqa: PLC0415

    with psycopg.connect(server.url(), autocommit=True) as connection:
        for role in SECRETS.values():
            exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None
            connection.execute(
                sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(
                    sql.SQL("ALTER" if exists else "CREATE"),
                    sql.Identifier(role),
                    sql.Literal(run.role_passwords[role]),
                )
            )
            connection.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(sql.Identifier(role)))
            if role in SEE_OTHERS_SESSIONS:
                connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(role)))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).fetchone() is None:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(NAME), sql.Identifier(OWNER))
            )


def bring_up_to_date(workspace: Workspace, url_of_owner: str) -> UpgradeReport:
    """Does the work of MigrationFunction, with the checkout's migrations and its template's subscriptions.

    Raises AcpError that names the migration or the subscription that cannot be applied.
    """
    import psycopg  # noqa: PLC0415 - as above

    from control_plane.model.deciding import playbook_versions  # noqa: PLC0415
    from control_plane.model.errors import ControlPlaneError  # noqa: PLC0415
    from control_plane.ops.migrations import read_migrations  # noqa: PLC0415
    from control_plane.ops.upgrade import upgrade  # noqa: PLC0415
    from control_plane.platform.settings import MigrationSettings  # noqa: PLC0415
    from domains import load_deciding  # noqa: PLC0415

    try:
        settings = MigrationSettings.from_environ(
            {"DATABASE_URL": url_of_owner, "SUBSCRIPTIONS": declared_subscriptions(workspace.checkout / TEMPLATE)}
        )
        with psycopg.connect(url_of_owner, autocommit=True) as connection:
            return upgrade(
                connection,
                read_migrations(workspace.checkout / "db" / "migrations"),
                settings.subscriptions,
                playbooks=playbook_versions(load_deciding()),
            )
    except (ControlPlaneError, psycopg.Error) as error:
        msg = f"The database could not be brought up to date: {error}"
        raise AcpError(msg) from error


def promise_lost(url_of_owner: str) -> int:
    """Have the relay deliver again what no consumer has processed, as the queues that held it are gone. How many."""
    import psycopg  # noqa: PLC0415 - as above

    from control_plane.ops.redelivery import promise_lost as promise  # noqa: PLC0415

    with psycopg.connect(url_of_owner, autocommit=True) as connection:
        promised = promise(connection, requested_by="acp up", reason="the stack was made anew, and its queues with it")
    return sum(promised.values())


def declared_subscriptions(template: Path) -> str:
    """Returns the SUBSCRIPTIONS that a template gives MigrationFunction, unchanged; empty if it gives none."""
    function = read_template(template)["Resources"]["MigrationFunction"]["Properties"]
    return str(function["Environment"]["Variables"].get("SUBSCRIPTIONS", ""))
