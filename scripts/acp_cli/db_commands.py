"""The commands db migrate and db shell."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import NotRunningError
from local_cloud.run_state import RunState, load
from local_cloud.visible import Terminal

PANEL = "The database"
_db = typer.Typer(no_args_is_help=True, help="Migrate the local database, or look into it with psql.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_db, name="db", rich_help_panel=PANEL)


@_db.command("migrate")
def migrate(ctx: typer.Context) -> None:
    """Apply the migrations that are missing, and bring the subscriptions in line with template.yaml."""
    cloud, run = _running_database(ctx)
    report = database.bring_up_to_date(cloud.workspace, database.owner_url(cloud.postgres(run), run))
    Terminal().print(f"schema {report}", soft_wrap=True)


@_db.command("shell")
def shell(
    ctx: typer.Context,
    *,
    owner: Annotated[bool, typer.Option("--owner", help="As the owner, who may change what is stored.")] = False,
    command: Annotated[str | None, typer.Option("-c", "--command", help="Run this SQL and end.")] = None,
) -> None:
    """Open psql on the local database."""
    cloud, run = _running_database(ctx)
    server = cloud.postgres(run)
    url = database.owner_url(server, run) if owner else database.reader_url(server, run)
    psql = server.binaries / "psql"
    sys.stdout.flush()
    # psql replaces this process: it owns the terminal, and its exit code is acp's. The list of processes does not show
    # the URL.
    arguments = ["psql", "--no-psqlrc", *(["--command", command] if command else [])]
    os.execve(psql, arguments, {**os.environ, **_libpq(url)})  # noqa: S606  no shell is the point


def _libpq(url: str) -> dict[str, str]:
    import psycopg  # noqa: PLC0415  for this command alone

    options = psycopg.conninfo.conninfo_to_dict(url)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    return {variable: str(options[name]) for name, variable in names.items()}


def _running_database(ctx: typer.Context) -> tuple[Cloud, RunState]:
    """Returns the running database; the rest of the local cloud may be down. Raises NotRunningError."""
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    run = load(cloud.workspace)
    if run is None or not cloud.postgres(run).running:
        msg = "The local database is not running."
        raise NotRunningError(msg, remedy="Start it with: scripts/acp up")
    return cloud, run
