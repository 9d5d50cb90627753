"""Fixtures that the integration tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import HELPERS_GRANTS, MIGRATIONS, PASSWORD, SUBSCRIPTIONS, make_roles

from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.platform.database import connect
from local_cloud.net import free_port
from local_cloud.postgres import PostgresServer


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server with roles and schema that a test may stop or crash; it restarts on the same port."""
    with PostgresServer(tmp_path / "data", password=PASSWORD, port=free_port(), fsync=False) as server:
        with connect(server.url(), application_name="test") as connection:
            make_roles(connection)
            migrate(connection, read_migrations(MIGRATIONS))
            sync_subscriptions(connection, SUBSCRIPTIONS)
            connection.execute(HELPERS_GRANTS)
        yield server
