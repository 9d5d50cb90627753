"""Connections for the operations on what is stored."""

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.conftest import make_world, worlds

from control_plane.platform.database import connect

__all__ = ["make_world", "worlds"]


@pytest.fixture
def maintain(database: TestDatabase) -> Iterator[Connection[Any]]:
    """An autocommit connection as acp_maintain, as OperationsFunction has it."""
    with connect(database.url("acp_maintain"), application_name="operations") as connection:
        yield connection
