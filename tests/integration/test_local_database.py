"""The local database is brought up to date as MigrationFunction does it, from the checkout alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from samcli.yamlhelper import yaml_parse
from tests.conftest import TestDatabase

from control_plane.platform.database import SCHEMA_VERSION
from local_cloud.database import bring_up_to_date, declared_subscriptions, owner_url, prepare
from local_cloud.errors import AcpError
from local_cloud.postgres import PostgresServer
from local_cloud.run_state import RunState
from local_cloud.workspace import CHECKOUT, Workspace

TEMPLATE = """
Resources:
  MigrationFunction:
    Properties:
      Environment:
        Variables:
          DATABASE_SECRET_ARN: arn
"""


def workspace(folder: Path, subscriptions: str | None) -> Workspace:
    """A checkout whose template has these subscriptions, or none at all."""
    (folder / "db").symlink_to(CHECKOUT / "db")
    variable = "" if subscriptions is None else f"          SUBSCRIPTIONS: '{subscriptions}'\n"
    (folder / "template.yaml").write_text(TEMPLATE + variable)
    return Workspace(folder, folder, folder / "state")


def stored(connection: Connection[Any]) -> dict[str, tuple[str, bool]]:
    rows = connection.execute("SELECT name, topic, removed_at IS NULL FROM subscriptions").fetchall()
    return {name: (topic, is_active) for name, topic, is_active in rows}


def test_a_new_database_gets_the_schema_and_the_subscriptions(empty_database: TestDatabase, tmp_path: Path) -> None:
    checkout = Workspace(CHECKOUT, tmp_path, tmp_path / "state")
    first = bring_up_to_date(checkout, empty_database.owner_url)
    assert (first.schema.version, len(first.schema.applied)) == (SCHEMA_VERSION, SCHEMA_VERSION)
    declared = json.loads(declared_subscriptions(CHECKOUT / "template.yaml"))
    assert sorted(first.subscriptions.added) == sorted(declared)
    assert f"added: {', '.join(first.subscriptions.added)}" in str(first)

    second = bring_up_to_date(checkout, empty_database.owner_url)
    assert str(second) == f"version {SCHEMA_VERSION}; no migrations applied"


def test_a_new_server_is_made_ready_for_the_migrations(tmp_path: Path) -> None:
    """The owner may make no roles, so that every role must be there before."""
    run = RunState()
    with PostgresServer(tmp_path / "data", password=run.superuser_password, fsync=False) as server:
        prepare(server, run)
        report = bring_up_to_date(Workspace(CHECKOUT, tmp_path, tmp_path / "state"), owner_url(server, run))
    assert report.schema.version == SCHEMA_VERSION


def test_the_template_is_where_the_subscriptions_come_from() -> None:
    declared = yaml_parse((CHECKOUT / "template.yaml").read_text())["Resources"]["MigrationFunction"]["Properties"]
    assert declared_subscriptions(CHECKOUT / "template.yaml") == declared["Environment"]["Variables"]["SUBSCRIPTIONS"]


def test_added_and_dropped_subscriptions_are_reported(
    database: TestDatabase, owner: Connection[Any], tmp_path: Path
) -> None:
    other = workspace(tmp_path, '{"signal_lab": "market.ticks", "archive": "market.ticks"}')
    report = bring_up_to_date(other, database.owner_url)
    assert str(report).endswith("no migrations applied; added: archive; removed: system_events")
    assert stored(owner) == {
        "signal_lab": ("market.ticks", True),
        "archive": ("market.ticks", True),
        "system_events": ("system.events", False),
    }


def test_a_template_that_speaks_of_none_changes_none(
    database: TestDatabase, owner: Connection[Any], tmp_path: Path
) -> None:
    bring_up_to_date(workspace(tmp_path, None), database.owner_url)
    assert {is_active for _, is_active in stored(owner).values()} == {True}


def test_a_migration_that_cannot_be_applied_is_named(database: TestDatabase, tmp_path: Path) -> None:
    with pytest.raises(AcpError, match="SUBSCRIPTIONS is"):
        bring_up_to_date(workspace(tmp_path, "[]"), database.owner_url)
