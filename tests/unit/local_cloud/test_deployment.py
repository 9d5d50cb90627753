from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from local_cloud import tools
from local_cloud.deployment import deploy, remove
from local_cloud.emulators.external import External
from local_cloud.emulators.localstack import LocalStack
from local_cloud.emulators.ministack import MiniStack
from local_cloud.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from local_cloud.emulators.emulator import Emulator
    from local_cloud.run_state import Deployment

TEMPLATE = "Parameters: {Symbols: {Type: String}, MarketDataUrl: {Type: String}}\nResources: {}\n"
ENVIRONS = {
    "relay-1": {"SYMBOLS": "AAPL", "POWERTOOLS_SERVICE_NAME": "relay", "CLOUD_ENDPOINT_URL": ""},
    "ingestion-1": {"SYMBOLS": "AAPL", "POWERTOOLS_SERVICE_NAME": "ingestion", "MARKET_DATA_URL": "http://x"},
}


class FakeCloudFormation:
    def __init__(self) -> None:
        self.status = "CREATE_COMPLETE"
        self.deleted: list[str] = []

    def delete_stack(self, **arguments: str) -> None:
        self.deleted.append(arguments["StackName"])

    def get_waiter(self, _name: str) -> FakeCloudFormation:
        return self

    def wait(self, **_: Any) -> None:
        pass

    def describe_stacks(self, **_: str) -> dict[str, Any]:
        outputs = [
            {"OutputKey": "RelayFunctionName", "OutputValue": "relay-1"},
            {"OutputKey": "IngestionFunctionName", "OutputValue": "ingestion-1"},
            {"OutputKey": "MarketTicksQueueUrl", "OutputValue": "http://queue"},
        ]
        return {"Stacks": [{"StackStatus": self.status, "Outputs": outputs}]}


class FakeFunctions:
    def get_function_configuration(self, **arguments: str) -> dict[str, Any]:
        return {"Environment": {"Variables": ENVIRONS[arguments["FunctionName"]]}}


class FakeBuckets:
    exceptions = SimpleNamespace(NoSuchBucket=KeyError)

    def create_bucket(self, **_: str) -> None:
        pass

    def get_paginator(self, _name: str) -> Any:
        return SimpleNamespace(paginate=lambda **_: [])

    def delete_bucket(self, **_: str) -> None:
        pass


class FakeSecrets:
    """Without any. Its exceptions are its own, as a client's are."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(ResourceNotFoundException=type("ResourceNotFoundException", (Exception,), {}))

    def delete_secret(self, **_: Any) -> None:
        raise self.exceptions.ResourceNotFoundException


class FakeLogs:
    def __init__(self, *groups: str) -> None:
        self.groups = list(groups)

    def describe_log_groups(self, *, logGroupNamePrefix: str) -> dict[str, Any]:  # noqa: N803 - boto3's spelling
        return {"logGroups": [{"logGroupName": name} for name in self.groups if name.startswith(logGroupNamePrefix)]}

    def delete_log_group(self, **arguments: str) -> None:
        self.groups.remove(arguments["logGroupName"])


class FakeCloud:
    endpoint = "http://localhost:4566"

    def __init__(self) -> None:
        self.cloudformation = FakeCloudFormation()
        self.functions = FakeFunctions()
        self.buckets = FakeBuckets()
        self.logs = FakeLogs()

    @property
    def secrets(self) -> FakeSecrets:
        return FakeSecrets()


STACK = "a-stack"


class World:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cloud = FakeCloud()
        self.sam_calls: list[Sequence[str]] = []
        self.workspace = Workspace(tmp_path, tmp_path, tmp_path / "state")
        self.template = self.workspace.build / "sam" / "template.yaml"
        self.code = self.template.parent / "RelayFunction" / "app.py"
        self.code.parent.mkdir(parents=True)
        self.template.write_text(TEMPLATE)
        self.code.write_text("one")
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(tools, "sam", lambda _workspace, arguments, **_: self.sam_calls.append(arguments))

    def deploy(
        self,
        previous: Deployment | None = None,
        *,
        emulator: type[Emulator] = LocalStack,
        held_by: str = "1@1",
        **parameters: str,
    ) -> tuple[Deployment, str]:
        there = emulator(self.workspace)
        self.monkeypatch.setattr(there, "holder", lambda _endpoint, _stack: held_by)
        return deploy(
            self.workspace,
            self.cloud,  # type: ignore[arg-type]  # as much of one as is asked for
            there,
            self.template,
            {"Symbols": "AAPL,MSFT", **parameters},
            stack=STACK,
            previous=previous,
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_first_deployment_reads_back_outputs_and_what_the_functions_agree_on(world: World) -> None:
    deployment, what = world.deploy()
    assert what == "new stack"
    assert deployment.outputs["MarketTicksQueueUrl"] == "http://queue"
    # What two functions see differently is left out, and what is empty.
    assert deployment.environ == {"SYMBOLS": "AAPL", "MARKET_DATA_URL": "http://x"}


def test_nothing_changed_is_nothing_done(world: World) -> None:
    deployment, _ = world.deploy()
    assert world.deploy(deployment) == (deployment, "nothing has changed")
    assert len(world.sam_calls) == 1


def test_new_code_updates_the_stack_in_place(world: World) -> None:
    deployment, _ = world.deploy()
    world.cloud.cloudformation.deleted.clear()
    world.code.write_text("two")
    _, what = world.deploy(deployment)
    assert what == "updated"
    assert world.cloud.cloudformation.deleted == []
    assert len(world.sam_calls) == 2


@pytest.mark.parametrize(
    ("emulator", "said", "deleted"),
    [
        (LocalStack, "new again, as LocalStack ignores changes of rules", [STACK]),
        (External, "new again, as the external cloud may ignore changes of rules", [STACK]),
        (MiniStack, "updated", []),
    ],
)
def test_new_parameters_make_a_new_stack_where_changed_rules_would_be_ignored_and_it_says_so(
    world: World, emulator: type[Emulator], said: str, deleted: list[str]
) -> None:
    deployment, _ = world.deploy(emulator=emulator)
    world.cloud.cloudformation.deleted.clear()
    _, what = world.deploy(deployment, emulator=emulator, Symbols="IBM")
    assert what == said
    assert world.cloud.cloudformation.deleted == deleted


def test_another_run_of_the_emulator_is_deployed_to_although_nothing_changed(world: World) -> None:
    deployment, _ = world.deploy()
    _, what = world.deploy(deployment, held_by="2@2")
    assert what == "new stack"
    assert len(world.sam_calls) == 2


def test_parameters_are_quoted_and_those_the_template_lacks_are_left_out(world: World) -> None:
    world.deploy(MarketDataUrl="", ApiTokenSecretArn="arn:x")
    overrides = world.sam_calls[0][world.sam_calls[0].index("--parameter-overrides") + 1 :]
    assert overrides == ['Symbols="AAPL,MSFT"', 'MarketDataUrl=""']


def test_a_stack_that_rolled_back_is_an_error(world: World) -> None:
    world.cloud.cloudformation.status = "ROLLBACK_COMPLETE"
    with pytest.raises(Exception, match="ROLLBACK_COMPLETE"):
        world.deploy()


def test_the_logs_of_a_stack_go_with_it_and_not_those_of_one_whose_name_begins_alike(world: World) -> None:
    others = ["/aws/lambda/a-stack-too-RelayFunction-1a2b", "/aws/lambda/a-stackRelayFunction-1a2b"]
    world.cloud.logs = FakeLogs("/aws/lambda/a-stack-RelayFunction-1a2b", *others)
    remove(world.cloud, STACK)  # type: ignore[arg-type]  # as much of one as is asked for
    assert world.cloud.logs.groups == others
