"""Fixtures of the tests of operations."""

from collections.abc import Iterator

import pytest
from tests.conftest import TestDatabase
from tests.integration.operations.world import World

from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry


@pytest.fixture
def world(database: TestDatabase, telemetry: Telemetry) -> Iterator[World]:
    with (
        connect(database.url("acp_command"), application_name="command") as command,
        connect(database.url("acp_maintain"), application_name="maintain") as maintain,
    ):
        yield World(command, maintain, telemetry)
