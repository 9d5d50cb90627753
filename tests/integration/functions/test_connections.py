"""Functions whose Postgres goes away and comes back, and whose URL is a secret."""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import psycopg
import pytest
from moto import mock_aws
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from tests.conftest import PASSWORD
from tests.integration.functions.invoked import Load, failures, look, record_of, tick

from control_plane.ingestion.store import store_events
from control_plane.model.errors import ConfigurationError, DatabaseUnavailable
from control_plane.platform.aws import SecretUnavailable
from control_plane.platform.database import connect
from local_cloud.postgres import PostgresServer

# Postgres, gone and back


def test_postgres_down_at_the_start_loses_nothing(load: Load, own_postgres: PostgresServer) -> None:
    url = own_postgres.url("acp_test")
    own_postgres.stop("immediate")
    event = {"Records": [record_of(tick())]}
    signal_lab = load("signal_lab", DATABASE_URL=url)
    for _ in range(2):
        # The error is raised and not answered, so the whole batch stays on its queue.
        signal_lab.fails(DatabaseUnavailable, "Connection refused", event=event)
    own_postgres.start()
    assert own_postgres.url("acp_test") == url
    assert failures(signal_lab(event)) == []


def test_postgres_down_between_invocations_loses_nothing(
    load: Load, own_postgres: PostgresServer, endpoint_url: str
) -> None:
    url = own_postgres.url("acp_test")
    sqs = boto3.client("sqs", endpoint_url=endpoint_url)
    queue = sqs.create_queue(QueueName=f"ticks-{uuid.uuid4()}")["QueueUrl"]
    sqs.close()
    relay = load(
        "relay",
        DATABASE_URL=url,
        CLOUD_ENDPOINT_URL=endpoint_url,
        SUBSCRIPTION_QUEUE_URLS=json.dumps({"signal_lab": queue}),
    )
    assert relay()["claimed"] == 0
    with connect(url, application_name="test") as connection, connection.transaction():
        store_events(connection, [], [look()])
    own_postgres.stop("immediate")
    for _ in range(2):
        relay.fails(DatabaseUnavailable, "Connection refused")
    own_postgres.start()
    assert relay()["published"] == 1


def test_a_restart_of_postgres_between_two_invocations_goes_unnoticed(load: Load, own_postgres: PostgresServer) -> None:
    signal_lab = load("signal_lab", DATABASE_URL=own_postgres.url("acp_test"))
    assert failures(signal_lab({"Records": [record_of(tick())]})) == []
    own_postgres.stop("immediate")
    own_postgres.start()
    assert failures(signal_lab({"Records": [record_of(tick(minute=1))]})) == []
    assert signal_lab.errors == []


# The URL as a secret


@dataclass
class Secret:
    """A secret of the local Secrets Manager."""

    client: Any
    arn: str

    def put(self, text: str) -> None:
        self.client.put_secret_value(SecretId=self.arn, SecretString=text)


@pytest.fixture
def cloud() -> Iterator[None]:
    """An SQS and a Secrets Manager within the test's process."""
    with mock_aws():
        yield


@pytest.fixture
def secret(cloud: None) -> Iterator[Secret]:
    client = boto3.client("secretsmanager")
    answer = client.create_secret(Name=f"database-{uuid.uuid4()}", SecretString="to be put")
    yield Secret(client, answer["ARN"])
    client.close()


def test_the_url_secret_may_be_text_or_json(load: Load, database: Any, cloud: None, secret: Secret) -> None:
    parts = conninfo_to_dict(database.app_url)
    rds = {"username": parts["user"], "engine": "postgres", "dbInstanceIdentifier": "prices"}
    rds |= {name: parts[name] for name in ("password", "host", "port", "dbname")}
    as_json = [json.dumps(fields) for fields in ({"url": database.app_url, "role": "acp_test"}, rds)]
    for text in (database.app_url, f" {database.app_url}\n", *as_json):
        secret.put(text)
        signal_lab = load("signal_lab", DATABASE_SECRET_ARN=secret.arn)
        assert failures(signal_lab({"Records": [record_of(tick())]})) == []


def test_a_secret_that_does_not_exist_is_named(load: Load, cloud: None) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:nowhere-AbCdEf"
    function = load("signal_lab", DATABASE_SECRET_ARN=arn)
    function.fails(SecretUnavailable, arn, "ResourceNotFoundException")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"password": PASSWORD}),
        json.dumps({"url": [PASSWORD]}),
        f'{{"url": "{PASSWORD}',
        f"the password is {PASSWORD}",
        json.dumps({"url": f"mysql://acp_test:{PASSWORD}@127.0.0.1/database"}),
    ],
)
def test_a_secret_without_a_url_is_named_and_not_shown(load: Load, cloud: None, secret: Secret, text: str) -> None:
    secret.put(text)
    function = load("signal_lab", DATABASE_SECRET_ARN=secret.arn)
    function.fails(ConfigurationError, secret.arn, "postgresql://")


@pytest.fixture
def rotating(postgres: PostgresServer, database: Any) -> Iterator[Callable[[str], str]]:
    """Returns a function that sets a role's password, ends its sessions, and returns its new URL."""
    role = sql.Identifier("rotating")
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE acp_consume").format(role))

        def rotate(password: str) -> str:
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
            admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'rotating'")
            return postgres.url("rotating", database.name, password)

        yield rotate
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_rotated_secret_is_picked_up_with_the_next_connection(
    load: Load, cloud: None, secret: Secret, rotating: Callable[[str], str]
) -> None:
    secret.put(rotating(f"old-{PASSWORD}"))
    signal_lab = load("signal_lab", DATABASE_SECRET_ARN=secret.arn)
    assert failures(signal_lab({"Records": [record_of(tick())]})) == []
    new_url = rotating(f"new-{PASSWORD}")
    event = {"Records": [record_of(tick(minute=1))]}
    signal_lab.fails(DatabaseUnavailable, "rotating@", "password authentication failed", event=event)
    secret.put(new_url)
    assert failures(signal_lab(event)) == []
