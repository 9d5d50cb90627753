"""Fixtures of the decisions' tests."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.gatekeeper.world import HELD, World
from tests.judgements import AT

from control_plane.platform.database import connect


@pytest.fixture
def world(database: TestDatabase, owner: Connection[Any], app: Connection[Any]) -> Iterator[World]:
    """A database with the paper account in it, and connections as the roles that decide and judge."""
    with (
        connect(database.url("acp_decide"), application_name="test") as decide,
        connect(database.url("acp_gatekeeper"), application_name="test") as gatekeeper,
    ):
        made = World(database, owner, app, decide, gatekeeper)
        for entity in HELD:
            made.store_bar(80.0, entity=entity, at=AT - timedelta(days=1))
        made.open_account(entities=HELD)
        yield made
