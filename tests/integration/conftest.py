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

NOT_OF_POSTGRES = {
    # What these test, no Postgres is asked.
    "market",
    "test_aws_out_of_reach.py",
    "test_background_services.py",
    "test_checkout.py",
    "test_ci_run.py",
    "test_consumer_page.py",
    "test_credentials.py",
    "test_domain_page.py",
    "test_hostile_queue.py",
    "test_hostile_secrets.py",
    "test_layer_builds.py",
    "test_proxies.py",
    "test_queue_answers.py",
    "test_queue_contract_moto.py",
    "test_source_contract.py",
    "test_sqs_http.py",
    "test_suite.py",
    # Their statements are those of ingestion and functions, which run.
    "test_hostile_source.py",
    "test_malformed_invocations.py",
    # Their statements are those of deciding and of other functions' tests, which run.
    "test_audit_command.py",
    "test_decision_commands.py",
    "test_finance_models.py",
    "test_refusals.py",
    # Their statements are those of the relay's, ingestion's and deciding's other tests, which run.
    "test_drills.py",
    "test_finance_decisions.py",
    "test_finance_evidence.py",
    "test_pauses.py",
    "test_relay_outages.py",
    "test_relay_time_box.py",
    "test_source_breaker.py",
    "test_timers_metrics.py",
    "test_tls.py",
    # Their statements are those of the API, whose own tests run.
    "test_anomaly_commands.py",
    "test_api_approvals.py",
    "test_api_commands.py",
    "test_approval_commands.py",
    "test_breaker_commands.py",
    "test_dead_letter_commands.py",
    "test_decision_filters.py",
    "test_deployment_status.py",
    "test_openapi.py",
    "test_operations_commands.py",
    "test_page_command.py",
    "test_signal_commands.py",
    "test_wheel.py",
    # These read the documents, or are about the embedded Postgres.
    "test_bench_peers.py",
    "test_deploy_doc.py",
    "test_docs.py",
    "test_embedded_postgres.py",
    "test_local_database.py",
    # Its figures are of the embedded Postgres.
    "test_bench.py",
}
"""Files and folders that another version of Postgres can not break."""

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
        help="leave out what another version of Postgres can not break",
    )


def pytest_configure(config: pytest.Config) -> None:
    # xdist would begin with the files that have the most tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return (config.getoption("--of-postgres") and collection_path.name in NOT_OF_POSTGRES) or None


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
