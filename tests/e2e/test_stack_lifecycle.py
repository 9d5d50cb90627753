"""A stack comes, changes and goes without a trace; a second one beside it in the account is none of its business."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from botocore.exceptions import ClientError
from tests.e2e.clouds import Differences
from tests.e2e.conftest import UP_SECONDS, LocalCloud, run_acp, wait_for
from tests.e2e.resources import Resources, beyond, resources

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
"""What the template makes, at the least."""
FIRST, BESIDE, BY_SAM = "ai-control-plane", "ai-control", "by-sam-alone"
"""The first one's name begins with the second's: what is looked for by the one is not to find the other."""
SCHEDULE = "rate(7 minutes)"


@dataclass(frozen=True)
class Sam:
    """SAM's own command line, as somebody uses it who has an AWS account."""

    cloud: LocalCloud
    folder: Path
    stack: str

    def deploy(self, template: Path, **parameters: str) -> None:
        self._run(
            "deploy",
            f"--template-file={template}",
            f"--s3-bucket={self.stack}-artifacts",
            "--capabilities=CAPABILITY_IAM",
            "--no-confirm-changeset",
            "--no-progressbar",
            "--parameter-overrides",
            *(f'{name}="{value}"' for name, value in parameters.items()),
        )

    def delete(self) -> None:
        self._run("delete", "--no-prompts", f"--s3-bucket={self.stack}-artifacts")

    def _run(self, command: str, *arguments: str) -> None:
        names = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ran = subprocess.run(
            [sys.executable, "-m", "samcli", command, f"--stack-name={self.stack}", "--region=us-east-1", *arguments],
            cwd=self.folder,  # no samconfig.toml
            env={
                **os.environ,
                **{name: self.cloud.environ[name] for name in names},
                "SAM_CLI_TELEMETRY": "0",
                "SAM_CLI_POLL_DELAY": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def resource(self, logical_id: str) -> str:
        """The physical id of a resource of the stack."""
        answer = self.cloud.client("cloudformation").describe_stack_resource(
            StackName=self.stack, LogicalResourceId=logical_id
        )
        physical: str = answer["StackResourceDetail"]["PhysicalResourceId"]
        return physical


@pytest.fixture
def sam(local_cloud: LocalCloud, tmp_path: Path) -> Iterator[Sam]:
    buckets = local_cloud.client("s3")
    sam = Sam(local_cloud, tmp_path, BY_SAM)
    buckets.create_bucket(Bucket=f"{sam.stack}-artifacts")
    yield sam
    for item in buckets.list_objects_v2(Bucket=f"{sam.stack}-artifacts").get("Contents", []):
        buckets.delete_object(Bucket=f"{sam.stack}-artifacts", Key=item["Key"])
    buckets.delete_bucket(Bucket=f"{sam.stack}-artifacts")


def test_a_stack_deployed_updated_and_deleted_by_sam_alone_leaves_nothing_behind(
    local_cloud: LocalCloud, sam: Sam, state: Path, differences: Differences
) -> None:
    template = state / "build" / "sam" / "template.yaml"  # as `acp up` built it, for functions that run on this machine
    before = _resources(local_cloud)
    given = {given["ParameterKey"]: given["ParameterValue"] for given in _stack(local_cloud, FIRST)["Parameters"]}
    secrets = {name: value for name, value in given.items() if name.endswith("SecretArn")}
    # None of its functions is ever to run.
    sam.deploy(template, IngestionSchedule="rate(1 day)", RelaySchedule="rate(1 day)", **secrets)
    made = _resources(local_cloud)
    assert beyond(made, before).keys() >= KINDS

    ingestion = sam.resource("IngestionFunction")
    sam.deploy(template, Symbols="IBM,FB", IngestionSchedule=SCHEDULE)
    assert _stack(local_cloud, sam.stack)["StackStatus"] == "UPDATE_COMPLETE"
    assert sam.resource("IngestionFunction") == ingestion
    assert _variable(local_cloud, ingestion, "SYMBOLS") == "IBM,FB"
    rule = local_cloud.client("events").describe_rule(Name=sam.resource("IngestionFunctionSchedule"))
    assert rule["ScheduleExpression"] == (SCHEDULE if differences.applies_changed_rules else "rate(1 day)")
    assert _counts(_resources(local_cloud)) == _counts(made)

    sam.delete()
    assert beyond(_resources(local_cloud), before) == {}
    functions = local_cloud.client("lambda")
    if differences.forgets_layers:
        assert [layer for layer in functions.list_layers()["Layers"] if BY_SAM in layer["LayerName"]] == []
    else:
        with pytest.raises(ClientError, match="ListLayers: list index out of range"):
            functions.list_layers()


def test_a_second_stack_in_the_account_touches_nothing_of_the_first_and_leaves_nothing_behind(
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
        assert "new again, as the external cloud may ignore changes of rules" in again.stderr
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
    after = _resources(local_cloud)
    left = beyond(after, before)
    if not differences.drops_late_logs:
        left.pop("log group", None)
    assert left == {}
    assert beyond(before, after) == {}, "the first stack has lost something"
    assert local_cloud.acp("status").returncode == 0


def _resources(cloud: LocalCloud) -> Resources:
    return resources(cloud.client, FIRST, BESIDE, BY_SAM)


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
    """Those that do not tell which stack they belong to."""
    return [name for name in names if BESIDE not in name]


def _environ(acp: Any) -> dict[str, str]:
    environ: dict[str, str] = json.loads(acp("env", "--json").stdout)
    return environ
