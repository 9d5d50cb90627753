"""docs/deploy.md's commands on the local cloud, and a second stack beside the first, whose database nobody migrated."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.e2e.conftest import CHECKOUT, LocalCloud

from acp_cli.postgres import PostgresServer
from acp_cli.workspace import Workspace
from control_plane.platform.database import SCHEMA_VERSION

PASSWORD = "second-password"
SECOND = "second-control-plane"

type Sam = Callable[..., str]


@pytest.fixture(scope="module")
def sam(local_cloud: LocalCloud, tmp_path_factory: pytest.TempPathFactory) -> Sam:
    """SAM CLI as a user runs it, the endpoint apart. Returns what it printed."""
    folder = tmp_path_factory.mktemp("sam")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": local_cloud.endpoint_url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_POLL_DELAY": "1",
        "__SAM_CLI_APP_DIR": str(folder),
    }

    def sam(*arguments: str) -> str:
        completed = subprocess.run(
            [sys.executable, "-m", "samcli", *arguments],
            cwd=CHECKOUT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert completed.returncode == 0, completed.stdout
        return completed.stdout

    return sam


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of its own, without the schema."""
    with PostgresServer(tmp_path_factory.mktemp("second") / "data", password=PASSWORD, fsync=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for role in ("acp_owner", "acp_app"):
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
            connection.execute("CREATE DATABASE control_plane OWNER acp_owner")
        yield server


def physical_ids(local_cloud: LocalCloud, stack: str) -> set[str]:
    answer = local_cloud.client("cloudformation").describe_stack_resources(StackName=stack)
    return {
        resource["PhysicalResourceId"]
        for resource in answer["StackResources"]
        # A stage's name is its API's own affair; what LocalStack does not make is called unknown.
        if resource["ResourceType"] != "AWS::ApiGateway::Stage" and resource["PhysicalResourceId"] != "unknown"
    }


def secrets(local_cloud: LocalCloud, database: PostgresServer) -> Iterator[str]:
    """In RDS's own shape, as the parameters of a deployment."""
    for parameter, role in (("DatabaseSecretArn", "acp_app"), ("DatabaseOwnerSecretArn", "acp_owner")):
        fields: dict[str, Any] = {
            "username": role,
            "password": PASSWORD,
            "engine": "postgres",
            "dbname": "control_plane",
        }
        fields |= {"host": "127.0.0.1", "port": database.port}
        arn = local_cloud.client("secretsmanager").create_secret(
            Name=f"second/{role}", SecretString=json.dumps(fields)
        )["ARN"]
        yield f"{parameter}={arn}"
    token = local_cloud.client("secretsmanager").create_secret(Name="second/token", SecretString="t" * 32)
    yield f"ApiTokenSecretArn={token['ARN']}"


def test_the_commands_of_the_deploy_page_reach_the_stack_that_samconfig_names(sam: Sam) -> None:
    assert f'"version": {SCHEMA_VERSION}' in sam("remote", "invoke", "MigrationFunction", "--config-env", "cloud")
    assert "migrated" in sam("logs", "--config-env", "cloud", "--name", "MigrationFunction")
    assert "RelayFunctionName" in sam("list", "stack-outputs", "--stack-name", "ai-control-plane")


def test_a_second_stack_says_what_it_lacks_works_once_it_has_it_and_goes_without_a_trace(
    sam: Sam, local_cloud: LocalCloud, database: PostgresServer, state: Path
) -> None:
    template = Workspace.from_environ({"ACP_STATE": str(state)}).build / "sam" / "template.yaml"
    first = physical_ids(local_cloud, "ai-control-plane")
    overrides = [
        *secrets(local_cloud, database),
        f"MarketDataUrl={local_cloud.environ['MARKET_DATA_URL']}",
        'IngestionSchedule="rate(1 day)"',
        'RelaySchedule="rate(1 day)"',
    ]
    sam(
        *("deploy", "--config-file", str(CHECKOUT / "samconfig.toml"), "--config-env", "local"),
        *("--template-file", str(template), "--stack-name", SECOND),
        *("--parameter-overrides", *overrides),
    )
    second = physical_ids(local_cloud, SECOND)
    assert len(second) == len(first)
    assert not first & second

    invoke = ("remote", "invoke", "--stack-name", SECOND)
    for function in ("IngestionFunction", "RelayFunction", "MaintenanceFunction"):
        refusal = sam(*invoke, function)
        assert "SchemaVersionMismatch" in refusal
        assert "sam remote invoke MigrationFunction --stack-name" in refusal
        assert PASSWORD not in refusal
    assert f'"version": {SCHEMA_VERSION}' in sam(*invoke, "MigrationFunction")
    assert '"failed_symbols": []' in sam(*invoke, "IngestionFunction", "--event", '{"symbols": ["AAPL"]}')
    with psycopg.connect(database.url("acp_app", "control_plane", PASSWORD)) as connection:
        [stored] = connection.execute("SELECT count(*) FROM events").fetchone() or [0]
    assert stored > 0
    assert f'"published": {stored}' in sam(*invoke, "RelayFunction")

    sam("delete", "--stack-name", SECOND, "--no-prompts", "--region", "us-east-1")
    assert left_of(local_cloud, second) == set()
    assert physical_ids(local_cloud, "ai-control-plane") == first


def left_of(local_cloud: LocalCloud, ids: set[str]) -> set[str]:
    """Of these, what is still there."""
    functions = local_cloud.client("lambda")
    there: list[Any] = [item["FunctionName"] for item in functions.list_functions()["Functions"]]
    there += local_cloud.client("sqs").list_queues().get("QueueUrls", [])
    there += [group["logGroupName"] for group in local_cloud.client("logs").describe_log_groups()["logGroups"]]
    there += [rule["Name"] for rule in local_cloud.client("events").list_rules()["Rules"]]
    there += [role["RoleName"] for role in local_cloud.client("iam").list_roles()["Roles"]]
    there += [item["id"] for item in local_cloud.client("apigateway").get_rest_apis()["items"]]
    there += [alarm["AlarmName"] for alarm in local_cloud.client("cloudwatch").describe_alarms()["MetricAlarms"]]
    for layer in ("core", "market-data"):
        versions = functions.list_layer_versions(LayerName=f"{SECOND}-{layer}")["LayerVersions"]
        there += [version["LayerVersionArn"] for version in versions]
    return ids & set(there)
