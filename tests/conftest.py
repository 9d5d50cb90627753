"""Fixtures for all tests: no real cloud is within reach, and each test gets its own clone of a real Postgres."""

import base64
import hashlib
import hmac
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from tests.scratch import scratch_folder

from control_plane.model.subscription import Subscription
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from local_cloud.postgres import SUPERUSER, PostgresServer

# jsonschema checks IRIs with it where it is there. No test has any, and its import takes two seconds.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

MIGRATIONS = Path(__file__).parent.parent / "db" / "migrations"
TEMPLATE = "acp_template"
PASSWORD = "test-password"
ROLES = (
    "acp_ingest", "acp_relay", "acp_consume", "acp_reader", "acp_maintain",
    "acp_detect", "acp_decide", "acp_agent", "acp_gatekeeper", "acp_action", "acp_command",
)  # fmt: skip
"""The functions' roles."""
TEST_ROLE = "acp_test"
"""A role of the tests, for a connection that takes a message its whole way. It may do what all functions may. It may
also make rows due, store bodies of its own, see claims' tokens and hold breakers."""
HELPERS_GRANTS = """
GRANT SELECT ON ALL TABLES IN SCHEMA public TO acp_test;
GRANT INSERT ON events, outbox, pending_deliveries TO acp_test;
GRANT UPDATE ON pending_deliveries, circuit_breakers TO acp_test;
GRANT INSERT, DELETE ON circuit_breakers TO acp_test;
"""
SUBSCRIPTIONS = {"signal_lab": Subscription("market.ticks"), "system_events": Subscription("system.events")}
"""The two subscriptions of the tests; the template has these, and may have more."""
SMALL_LOG = {"max_wal_size": "128MB"}
"""Settings of a cluster that lies in memory."""


def pytest_configure() -> None:
    """Gives SIGINT its default action, for tests and their children: `nohup` and many CI runners ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def no_real_cloud() -> Iterator[None]:
    """Sets credentials that mean nothing, and removes the user's profile and endpoint."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("POWERTOOLS_METRICS_NAMESPACE", "ControlPlane")
        yield


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry("test")


def _quick_to_check(password: str) -> str:
    """A password as Postgres stores it, hashed once instead of 4,096 times, which each connection would repeat."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    client_key, server_key = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    salt64, stored64, server64 = (
        base64.b64encode(value).decode() for value in (salt, hashlib.sha256(client_key).digest(), server_key)
    )
    return f"SCRAM-SHA-256$1:{salt64}${stored64}:{server64}"


def make_roles(connection: Connection[Any]) -> None:
    """Makes the owner, the functions' roles and TEST_ROLE in a cluster."""
    password = sql.Literal(_quick_to_check(PASSWORD))
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(SUPERUSER), password))
    for role in ("acp_owner", TEST_ROLE, *ROLES):
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), password))
    roles = sql.SQL(", ").join(map(sql.Identifier, ROLES))
    connection.execute(sql.SQL("GRANT {} TO {}").format(roles, sql.Identifier(TEST_ROLE)))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One cluster per test process, with the roles and a migrated template database."""
    log = tmp_path_factory.mktemp("postgres") / "data.log"
    with (
        scratch_folder() as folder,
        PostgresServer(folder / "data", password=PASSWORD, fsync=False, settings=SMALL_LOG, log=log) as server,
    ):
        with psycopg.connect(server.url(), autocommit=True) as connection:
            make_roles(connection)
            # A test's trigger may end the session of a role that calls an owner's function.
            connection.execute(sql.SQL("GRANT {} TO acp_owner").format(sql.Identifier(TEST_ROLE)))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER acp_owner").format(sql.Identifier(TEMPLATE)))
        with connect(server.url("acp_owner", TEMPLATE, PASSWORD), application_name="test") as connection:
            migrate(connection, read_migrations(MIGRATIONS))
            sync_subscriptions(connection, SUBSCRIPTIONS)
            connection.execute(HELPERS_GRANTS)
        yield server


@dataclass(frozen=True)
class TestDatabase:
    """One test's own database, with a URL for each role."""

    __test__ = False

    name: str
    app_url: str
    owner_url: str
    admin_url: str

    def url(self, role: str) -> str:
        """Returns the database's URL for one of ROLES."""
        return self.app_url.replace(f"//{TEST_ROLE}:", f"//{role}:")


_numbers = count(1)


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """An empty database, without the schema."""
    yield from _database(postgres, template="template1")


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """A database with the newest schema."""
    yield from _database(postgres, template=TEMPLATE)


@pytest.fixture
def app(database: TestDatabase) -> Iterator[Connection[Any]]:
    """An autocommit connection with the functions' settings, as TEST_ROLE."""
    with connect(database.app_url, application_name="test") as connection:
        yield connection


@pytest.fixture
def owner(database: TestDatabase) -> Iterator[Connection[Any]]:
    """An autocommit connection as the schema's owner."""
    with connect(database.owner_url, application_name="test") as connection:
        yield connection


def _database(server: PostgresServer, *, template: str) -> Iterator[TestDatabase]:
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(
            # WAL_LOG, the default, writes each page twice.
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER acp_owner STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        yield TestDatabase(
            name,
            app_url=server.url(TEST_ROLE, name, PASSWORD),
            owner_url=server.url("acp_owner", name, PASSWORD),
            admin_url=server.url(database=name),
        )
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
