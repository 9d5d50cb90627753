"""A stack is deployed, updated and deleted without a trace; a second stack in the account is not affected."""

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from botocore.exceptions import ClientError
from tests.e2e.clouds import Differences
from tests.e2e.conftest import CHECKOUT, UP_SECONDS, LocalCloud, run_acp, wait_for
from tests.e2e.resources import Resources, beyond, resources
from tests.e2e.second_consumer.template import SUBSCRIPTION, with_second_consumer

from control_plane.platform.database import SCHEMA_VERSION
from local_cloud.postgres import PostgresServer
from local_cloud.roles import SECRETS

KINDS = {
    "stack",
    "function",
    "layer version",
    "event source mapping",
    "queue",
    "rule",
    "role",
    "log group",
    "alarm",
    "REST API",
}
"""The least of what the template makes."""
FIRST, BESIDE, BY_SAM = "ai-control-plane", "ai-control", "by-sam-alone"
"""The first stack's name begins with the second's: a search for one must not find the other."""
SCHEDULE = "rate(7 minutes)"
PASSWORD = "second-password"
DELIVERED, PENDING = (
    f"SELECT subscription, count(*) FROM outbox_states WHERE topic = 'market.ticks' AND state = '{state}'"
    " GROUP BY subscription ORDER BY subscription"
    for state in ("delivered", "pending")
)
CONSUMED = (
    "SELECT consumer, count(*) FROM processed_events"
    f" WHERE consumer IN ('detector', 'signal_lab', '{SUBSCRIPTION}') GROUP BY consumer ORDER BY consumer"
)
"""Of ticks alone: what the detector finds in them makes further messages."""


@dataclass(frozen=True)
class Sam:
    """SAM's command line, as a user with an AWS account would run it."""

    cloud: LocalCloud
    home: Path

    def __call__(self, *arguments: str, folder: Path = CHECKOUT) -> str:
        """Returns what SAM printed. Raises AssertionError if it failed."""
        code, said = self.run(*arguments, folder=folder)
        assert code == 0, said
        return said

    def run(self, *arguments: str, folder: Path = CHECKOUT) -> tuple[int, str]:
        """Returns SAM's exit code, and what it printed; the local cloud stands in for its account."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        names = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ran = subprocess.run(
            [sys.executable, "-m", "samcli", *arguments],
            cwd=folder,
            env=ours
            | {name: self.cloud.environ[name] for name in names}
            | {"SAM_CLI_TELEMETRY": "0", "SAM_CLI_POLL_DELAY": "1", "__SAM_CLI_APP_DIR": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return ran.returncode, ran.stdout


@dataclass(frozen=True)
class Stack:
    """A stack that SAM alone makes and removes, from `acp up`'s build for functions on this machine."""

    sam: Sam
    name: str
    template: Path

    def deploy(self, **parameters: str) -> None:
        code, said = self.try_to_deploy(**parameters)
        assert code == 0, said

    def try_to_deploy(self, **parameters: str) -> tuple[int, str]:
        return self.sam.run(
            "deploy",
            f"--stack-name={self.name}",
            "--region=us-east-1",
            f"--template-file={self.template}",
            f"--s3-bucket={self.name}-artifacts",
            "--capabilities=CAPABILITY_IAM",
            "--no-confirm-changeset",
            "--no-progressbar",
            "--parameter-overrides",
            *(f'{name}="{value}"' for name, value in parameters.items()),
            folder=self.sam.home,  # no samconfig.toml
        )

    def package(self) -> str:
        """The URL of its template with all code where CloudFormation takes it from, as `sam deploy` makes it."""
        bucket, packaged = f"{self.name}-artifacts", self.sam.home / "packaged.yaml"
        self.sam(
            *("package", f"--template-file={self.template}", f"--output-template-file={packaged}"),
            *(f"--s3-bucket={bucket}", "--region=us-east-1"),
            folder=self.sam.home,
        )
        self.sam.cloud.client("s3").upload_file(str(packaged), bucket, packaged.name)
        return f"https://s3.us-east-1.amazonaws.com/{bucket}/{packaged.name}"

    def refusal(self, template_url: str, parameters: dict[str, str]) -> str:
        """What CloudFormation says against a stack of a packaged template with these parameters."""
        with pytest.raises(ClientError) as refused:
            self.sam.cloud.client("cloudformation").create_change_set(
                StackName=self.name,
                ChangeSetName=f"refused-{uuid.uuid4()}",
                ChangeSetType="CREATE",
                TemplateURL=template_url,
                Capabilities=["CAPABILITY_IAM"],
                Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
            )
        return str(refused.value)

    def migrate(self) -> str:
        """What MigrationFunction answers, invoked by the command that the functions' refusals name."""
        return self.sam("remote", "invoke", "--stack-name", self.name, "MigrationFunction")

    def invoke(self, function: str, event: str = "{}") -> str:
        """What a function logs and answers."""
        answer = self.sam.cloud.client("lambda").invoke(
            FunctionName=self.resource(function), Payload=event.encode(), LogType="Tail"
        )
        said: bytes = base64.b64decode(answer["LogResult"]) + answer["Payload"].read()
        return said.decode()

    def delete(self) -> None:
        self.sam(
            *("delete", f"--stack-name={self.name}", "--region=us-east-1"),
            *("--no-prompts", f"--s3-bucket={self.name}-artifacts"),
            folder=self.sam.home,
        )

    def resource(self, logical_id: str) -> str:
        """Returns the physical id of a resource of the stack."""
        answer = self.sam.cloud.client("cloudformation").describe_stack_resource(
            StackName=self.name, LogicalResourceId=logical_id
        )
        physical: str = answer["StackResourceDetail"]["PhysicalResourceId"]
        return physical


@pytest.fixture
def sam(local_cloud: LocalCloud, tmp_path: Path) -> Sam:
    return Sam(local_cloud, tmp_path)


@pytest.fixture
def stack(sam: Sam, state: Path) -> Iterator[Stack]:
    buckets = sam.cloud.client("s3")
    stack = Stack(sam, BY_SAM, state / "build" / "sam" / "template.yaml")
    buckets.create_bucket(Bucket=f"{stack.name}-artifacts")
    yield stack
    for item in buckets.list_objects_v2(Bucket=f"{stack.name}-artifacts").get("Contents", []):
        buckets.delete_object(Bucket=f"{stack.name}-artifacts", Key=item["Key"])
    buckets.delete_bucket(Bucket=f"{stack.name}-artifacts")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[PostgresServer]:
    """A database on a server of its own, without the schema."""
    with PostgresServer(tmp_path / "data", password=PASSWORD, fsync=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for role in SECRETS.values():
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
            connection.execute("CREATE DATABASE control_plane OWNER acp_owner")
        yield server


@pytest.fixture
def secrets(local_cloud: LocalCloud, database: PostgresServer) -> Iterator[dict[str, str]]:
    """A deployment's secrets by their parameters; the databases' have RDS's own shape."""
    manager = local_cloud.client("secretsmanager")
    place = {"engine": "postgres", "host": "127.0.0.1", "port": database.port, "dbname": "control_plane"}
    texts = {name: json.dumps({"username": role, "password": PASSWORD, **place}) for name, role in SECRETS.items()}
    arns = {
        name: manager.create_secret(Name=f"{BY_SAM}/{name}", SecretString=value)["ARN"]
        for name, value in (texts | {"ApiTokenSecretArn": "t" * 32}).items()
    }
    yield arns
    for arn in arns.values():
        manager.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)


def test_deploy_page_commands_reach_the_stack_of_samconfig(sam: Sam) -> None:
    assert f'"version": {SCHEMA_VERSION}' in sam("remote", "invoke", "MigrationFunction", "--config-env", "cloud")
    assert "migrated" in sam("logs", "--config-env", "cloud", "--name", "MigrationFunction")
    assert "RelayFunctionName" in sam("list", "stack-outputs", "--stack-name", FIRST)


def test_a_bad_parameter_is_named_before_anything_is_made(
    local_cloud: LocalCloud, stack: Stack, differences: Differences
) -> None:
    before = _resources(local_cloud)
    arns = {
        name: f"arn:aws:secretsmanager:us-east-1:000000000000:secret:{name}" for name in (*SECRETS, "ApiTokenSecretArn")
    }
    code, said = stack.try_to_deploy(**arns | {"RelayDatabaseSecretArn": "postgresql://acp_relay@db/control_plane"})
    assert code == 1
    refused = said.partition("Initiating deployment")[2]
    assert "must be the ARN of a secret that holds the Postgres URL of role acp_relay" in refused
    packaged = stack.package()
    for missing in arns:  # as SAM asks it, without packing all again
        assert missing in stack.refusal(packaged, {name: arn for name, arn in arns.items() if name != missing})
    local_cloud.client("cloudformation").delete_stack(StackName=stack.name)
    _expect_the_same(local_cloud, before, differences)


def test_sam_alone_deploys_updates_and_deletes_a_stack(
    local_cloud: LocalCloud,
    stack: Stack,
    secrets: dict[str, str],
    database: PostgresServer,
    differences: Differences,
) -> None:
    before = _resources(local_cloud)
    stack.deploy(
        **secrets,
        MarketDataUrl=local_cloud.environ["MARKET_DATA_URL"],
        IngestionSchedule="rate(1 day)",  # This function is invoked by hand.
        RelaySchedule="rate(1 day)",
    )
    made = _resources(local_cloud)
    assert beyond(made, before).keys() >= KINDS
    assert beyond(before, made) == {}

    for function in ("IngestionFunction", "RelayFunction", "MaintenanceFunction"):
        refusal = stack.invoke(function)
        assert "SchemaVersionMismatch" in refusal
        assert "sam remote invoke MigrationFunction --stack-name" in refusal
        assert PASSWORD not in refusal
    assert f'"version": {SCHEMA_VERSION}' in stack.migrate()
    assert '"failed_symbols": []' in stack.invoke("IngestionFunction", '{"symbols": ["AAPL"]}')
    stored = _query(database, "SELECT count(*) FROM events")[0][0]
    assert stored > 0
    to_both = [("detector", stored), ("signal_lab", stored)]
    relayed = stack.invoke("RelayFunction")
    assert _query(database, DELIVERED) == to_both, relayed
    wait_for(lambda: _query(database, CONSUMED) == to_both, seconds=90, what="the stack's events consumed")

    ingestion = stack.resource("IngestionFunction")
    stack.deploy(Symbols="IBM,FB", IngestionSchedule=SCHEDULE)
    assert _stack(local_cloud, stack.name)["StackStatus"] == "UPDATE_COMPLETE"
    assert stack.resource("IngestionFunction") == ingestion
    assert _variable(local_cloud, ingestion, "SYMBOLS") == "IBM,FB"
    rule = local_cloud.client("events").describe_rule(Name=stack.resource("IngestionFunctionSchedule"))
    assert rule["ScheduleExpression"] == (SCHEDULE if differences.applies_changed_rules else "rate(1 day)")
    assert _counts(_resources(local_cloud)) == _counts(made)

    with_two = replace(stack, template=with_second_consumer(stack.template, stack.sam.home))
    _add_a_second_consumer(with_two, database, before=stored)

    stack.delete()
    _expect_the_same(local_cloud, before, differences)
    functions = local_cloud.client("lambda")
    if differences.forgets_layers:
        assert [layer for layer in functions.list_layers()["Layers"] if BY_SAM in layer["LayerName"]] == []
    else:
        with pytest.raises(ClientError, match="ListLayers: list index out of range"):
            functions.list_layers()


def _add_a_second_consumer(stack: Stack, database: PostgresServer, *, before: int) -> None:
    """Deploys one more entry and function; all consumers get each new message, the one added nothing older."""
    stack.deploy(Symbols="IBM")
    assert f'"added": ["{SUBSCRIPTION}"]' in stack.migrate()
    assert '"failed_symbols": []' in stack.invoke("IngestionFunction", '{"symbols": ["MSFT"]}')
    ((new, messages),) = _query(
        database,
        "SELECT count(*), (SELECT count(*) FROM outbox WHERE event_id IN (SELECT event_id FROM events"
        " WHERE entity_id = 'MSFT')) FROM events WHERE entity_id = 'MSFT'",
    )
    assert new == messages > 0, "one outbox row a message, whoever gets it"
    assert _query(database, PENDING) == [("detector", new), ("signal_lab", new), (SUBSCRIPTION, new)]
    to_each = [("detector", before + new), ("signal_lab", before + new), (SUBSCRIPTION, new)]
    relayed = stack.invoke("RelayFunction")
    assert _query(database, DELIVERED) == to_each, relayed
    wait_for(lambda: _query(database, CONSUMED) == to_each, seconds=90, what="each new message consumed by all")


def test_a_second_stack_leaves_the_first_untouched_and_nothing_behind(
    local_cloud: LocalCloud, differences: Differences, tmp_path: Path
) -> None:
    acp = run_acp(tmp_path / "state", AWS_ENDPOINT_URL=local_cloud.endpoint_url)
    before = _resources(local_cloud)
    try:
        taken = acp("up", "--cloud", "external", "--market", "replay", timeout=UP_SECONDS)
        assert taken.returncode == 1
        assert f"There is a stack {FIRST} at" in taken.stderr
        assert "--stack NAME" in taken.stderr

        up = acp("up", "--cloud", "external", "--stack", BESIDE, "--linger", "5", timeout=UP_SECONDS)
        assert up.returncode == 0, up.stderr
        made = beyond(_resources(local_cloud), before)
        assert made.keys() >= KINDS | {"secret", "bucket"}
        assert [
            name for kind in made.keys() - {"event source mapping", "REST API"} for name in _strangers(made[kind])
        ] == []

        again = acp("up", "--symbols", "IBM", "--ingestion-schedule", SCHEDULE, timeout=UP_SECONDS)
        assert again.returncode == 0, again.stderr
        assert "updated, with 1 schedule made anew" in again.stderr or differences.applies_changed_rules
        rules = local_cloud.client("events").list_rules(NamePrefix=f"{BESIDE}-IngestionFunction")["Rules"]
        assert [rule["ScheduleExpression"] for rule in rules] == [SCHEDULE]

        ingested = acp("ingest", "FB", "--json")
        assert ingested.returncode == 0, ingested.stderr
        url = _environ(acp)["DATABASE_URL"]
        assert url != local_cloud.environ["DATABASE_URL"]

        def consumed() -> bool:
            acp("relay")
            with psycopg.connect(url) as connection:
                row = connection.execute("SELECT count(*) FROM signal_lab_latest_prices WHERE entity_id = 'FB'")
                return row.fetchone() == (1,)

        wait_for(consumed, seconds=90, what="the second stack's event relayed and consumed")
        assert local_cloud.query("SELECT count(*) FROM events WHERE entity_id = 'FB'") == [(0,)]
    finally:
        down = acp("down")
    assert down.returncode == 0, down.stderr
    _expect_the_same(local_cloud, before, differences)
    assert local_cloud.acp("status").returncode == 0


def _query(database: PostgresServer, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.url("acp_reader", "control_plane", PASSWORD)) as connection:
        return connection.execute(statement.encode()).fetchall()


def _resources(cloud: LocalCloud) -> Resources:
    return resources(cloud.client, FIRST, BESIDE, BY_SAM)


def _expect_the_same(cloud: LocalCloud, before: Resources, differences: Differences) -> None:
    """Waits until the resources are the same, because a cloud may delete in the background."""

    def left() -> dict[str, list[str]]:
        found = beyond(_resources(cloud), before)
        if not differences.drops_late_logs:
            found.pop("log group", None)
        return found

    deadline = time.monotonic() + 30
    while left() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left() == {}
    assert beyond(before, _resources(cloud)) == {}, "the first stack has lost something"


def _stack(cloud: LocalCloud, name: str) -> dict[str, Any]:
    stack: dict[str, Any] = cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
    return stack


def _variable(cloud: LocalCloud, function: str, name: str) -> str:
    configuration = cloud.client("lambda").get_function_configuration(FunctionName=function)
    value: str = configuration["Environment"]["Variables"][name]
    return value


def _counts(found: Resources) -> dict[str, int]:
    return {kind: len(names) for kind, names in found.items()}


def _strangers(names: list[str]) -> list[str]:
    """Returns the resources that do not say to which stack they belong."""
    return [name for name in names if BESIDE not in name]


def _environ(acp: Any) -> dict[str, str]:
    environ: dict[str, str] = json.loads(acp("env", "--json").stdout)
    return environ
