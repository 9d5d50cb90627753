"""Fixtures of the decisions' tests."""

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.gatekeeper.world import World

from control_plane.platform.database import connect


@pytest.fixture
def world(database: TestDatabase, owner: Connection[Any], app: Connection[Any]) -> Iterator[World]:
    """A database with the paper account in it, and connections as the roles that decide and judge."""
    with (
        connect(database.url("acp_decide"), application_name="test") as decide,
        connect(database.url("acp_gatekeeper"), application_name="test") as gatekeeper,
    ):
        made = World(database, owner, app, decide, gatekeeper)
        made.open_account(entities=("AAPL", "MSFT", "IBM", "GOOG", "FB", "AMZN"))
        yield made
