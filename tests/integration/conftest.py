"""Fixtures that the integration tests share, their order, and their selection for another version of Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.conftest import HELPERS_GRANTS, MIGRATIONS, PASSWORD, SUBSCRIPTIONS, make_roles
from tests.scratch import scratch_folder

from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.platform.database import connect
from local_cloud import database as local_database
from local_cloud.net import free_port
from local_cloud.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import TestDatabase
    from tests.integration.running_cloud import RunningCloud

OF_POSTGRES = {
    # Every statement, table, role, guard and migration.
    "test_guards.py",
    "test_migrations.py",
    "test_queries.py",
    "test_role_boundaries.py",
    "test_roles.py",
    "test_schema_guards.py",
    # Sessions: their settings, their loss, and poolers before the server.
    "test_connections.py",
    "test_lost_sessions.py",
    "test_poolers.py",
    "test_sessions.py",
    # What the owner's functions do: a part's main tests, which call each of them.
    "test_audit.py",
    "test_breakers.py",
    "test_counting.py",
    "test_dead_letter_function.py",
    "test_dead_letters.py",
    "test_detector.py",
    "test_engine.py",
    "test_erasure.py",
    "test_export.py",
    "test_folding.py",
    "test_gatekeeper.py",
    "test_gatekeeper_account.py",
    "test_gatekeeper_approvals.py",
    "test_letters.py",
    "test_maintenance.py",
    "test_rebuild.py",
    "test_redrive.py",
    "test_relay_crashes.py",
    "test_relay_delivery.py",
    "test_relay_leases.py",
    "test_replay_operation.py",
    "test_retention.py",
    "test_signal_lab.py",
    "test_storing.py",
    "test_subscriptions.py",
    "test_switch_lock.py",
    "test_tokens.py",
    "test_work.py",
}
"""Files that run on the oldest Postgres. The others ask it what these ask, in more situations, which no version of it
can tell apart."""

LONGEST_FIRST = (
    "test_bench.py",
    "test_layer_builds.py",
    "test_signal_commands.py",
    "test_storing.py",
    "test_lost_sessions.py",
    "test_checkout.py",
    "test_domain_page.py",
    "test_consumer_page.py",
    "test_audit_command.py",
    "test_suite.py",
    "test_finance_models.py",
)
"""Files that take longest, the longest first; one that began last would run while the other process has nothing left.
`scripts/test integration -- --durations 0` shows them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--of-postgres",
        action="store_true",
        help="only what another version of Postgres could break",
    )


def pytest_configure(config: pytest.Config) -> None:
    # xdist would begin with the files that have the most tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_left_out = collection_path.name.startswith("test_") and collection_path.name not in OF_POSTGRES
    return (config.getoption("--of-postgres") and is_left_out) or None


@pytest.fixture
def cloud(
    postgres: PostgresServer, database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningCloud]:
    """A stand-in for the running local cloud, with the test's database and its API; its user is ada."""
    # The commands are imported by those who test them.
    from tests.integration.ops_api.server import ApiServer
    from tests.integration.running_cloud import API_TOKEN, RunningCloud

    monkeypatch.setattr(local_database, "NAME", database.name)
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for variable in ("ACP_URL", "ACP_TOKEN", "ACP_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    server = ApiServer(database, API_TOKEN)
    yield RunningCloud(tmp_path, postgres, server.url)
    server.close()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server with roles and schema that a test may stop or crash; it restarts on the same port."""
    log = tmp_path / "data.log"
    with (
        scratch_folder() as folder,
        PostgresServer(folder / "data", password=PASSWORD, port=free_port(), fsync=False, log=log) as server,
    ):
        with connect(server.url(), application_name="test") as connection:
            make_roles(connection)
            migrate(connection, read_migrations(MIGRATIONS))
            sync_subscriptions(connection, SUBSCRIPTIONS)
            connection.execute(HELPERS_GRANTS)
        yield server
