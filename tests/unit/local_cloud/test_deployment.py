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

TEMPLATE = """
Transform: AWS::Serverless-2016-10-31
Parameters: {Symbols: {Type: String}, MarketDataUrl: {Type: String}, Every: {Type: String, Default: rate(1 minute)}}
Resources:
  IngestionFunction:
    Type: AWS::Serverless::Function
    Properties:
      Runtime: python3.13
      Handler: app.handler
      CodeUri: functions/ingestion
      Role: arn:aws:iam::123456789012:role/a-role
      Environment: {Variables: {SYMBOLS: !Ref Symbols}}
      Events: {Schedule: {Type: Schedule, Properties: {Schedule: !Ref Every}}}
  Group:
    Type: AWS::Logs::LogGroup
    Properties: {LogGroupName: /aws/lambda/x, RetentionInDays: 30}
"""
RULE = "a-stack-IngestionFunctionSchedule-1a2b"
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

    def get_paginator(self, _name: str) -> Any:
        rule = {
            "LogicalResourceId": "IngestionFunctionSchedule",
            "PhysicalResourceId": RULE,
            "ResourceType": "AWS::Events::Rule",
        }
        return SimpleNamespace(paginate=lambda **_: [{"StackResourceSummaries": [rule]}])


class FakeEvents:
    """A client of EventBridge that has one rule with one target."""

    def __init__(self) -> None:
        self.rules = {RULE: {"ScheduleExpression": "rate(1 minute)", "Description": "Starts it."}}
        self.targets = {RULE: [{"Id": "function", "Arn": "arn:x"}]}
        self.calls: list[str] = []

    def describe_rule(self, *, Name: str) -> dict[str, str]:  # noqa: N803 - boto3's spelling
        return self.rules[Name]

    def list_targets_by_rule(self, *, Rule: str) -> dict[str, Any]:  # noqa: N803
        return {"Targets": self.targets[Rule]}

    def remove_targets(self, *, Rule: str, Ids: list[str]) -> None:  # noqa: N803
        self.calls.append("remove_targets")
        self.targets[Rule] = [target for target in self.targets[Rule] if target["Id"] not in Ids]

    def delete_rule(self, *, Name: str) -> None:  # noqa: N803
        assert not self.targets[Name]
        self.calls.append("delete_rule")
        del self.rules[Name]

    def put_rule(self, *, Name: str, State: str, **fields: str) -> None:  # noqa: N803
        assert State == "ENABLED"
        self.calls.append("put_rule")
        self.rules[Name] = fields

    def put_targets(self, *, Rule: str, Targets: list[dict[str, str]]) -> None:  # noqa: N803
        self.calls.append("put_targets")
        self.targets[Rule] = Targets


class FakeQueues:
    waiting = 0

    def get_queue_attributes(self, **_: Any) -> dict[str, Any]:
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return {"Attributes": dict(zip(names, (str(self.waiting), "1" if self.waiting else "0"), strict=True))}


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
    """A client of Secrets Manager without secrets. Its exceptions are its own, as a real client's are."""

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
        self.events = FakeEvents()
        self.queues = FakeQueues()
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
        self.lost = 0
        self.promises: list[int] = []
        """How many deployments there had been each time that what is lost was promised again."""
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
            promise_lost=self.promise_lost,
        )

    def promise_lost(self) -> int:
        # Before anything delivers to the new queues, and after the old ones are gone.
        assert self.cloud.cloudformation.deleted[-1:] == [STACK]
        self.promises.append(len(self.sam_calls))
        return self.lost


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_first_deployment_reads_back_outputs_and_common_variables(world: World) -> None:
    deployment, what = world.deploy()
    assert what == "new stack"
    assert deployment.outputs["MarketTicksQueueUrl"] == "http://queue"
    # Variables whose values differ between functions are left out, and so are empty ones.
    assert deployment.environ == {"SYMBOLS": "AAPL", "MARKET_DATA_URL": "http://x"}


def test_an_unchanged_stack_is_not_deployed(world: World) -> None:
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


@pytest.mark.parametrize("emulator", [LocalStack, External, MiniStack])
def test_new_symbols_update_the_stack_and_touch_no_rule(world: World, emulator: type[Emulator]) -> None:
    deployment, _ = world.deploy(emulator=emulator)
    world.cloud.cloudformation.deleted.clear()
    _, what = world.deploy(deployment, emulator=emulator, Symbols="IBM")
    assert what == "updated"
    assert world.cloud.cloudformation.deleted == []
    assert world.cloud.events.calls == []


@pytest.mark.parametrize("emulator", [LocalStack, External])
def test_a_new_schedule_makes_its_rule_anew_and_nothing_else(world: World, emulator: type[Emulator]) -> None:
    deployment, _ = world.deploy(emulator=emulator)
    world.cloud.cloudformation.deleted.clear()
    _, what = world.deploy(deployment, emulator=emulator, Every="rate(7 minutes)")
    assert what == "updated, with 1 schedule made anew"
    assert world.cloud.cloudformation.deleted == []
    assert world.cloud.events.rules == {
        RULE: {"ScheduleExpression": "rate(7 minutes)", "Description": "Starts it."},
    }
    assert world.cloud.events.targets == {RULE: [{"Id": "function", "Arn": "arn:x"}]}
    # A rule that is merely put again fires by both its schedules.
    assert world.cloud.events.calls == ["remove_targets", "delete_rule", "put_rule", "put_targets"]


@pytest.mark.parametrize(
    ("emulator", "said"),
    [
        (LocalStack, "new again, as LocalStack ignores changes of alarms"),
        (External, "new again, as the external cloud may ignore changes of alarms"),
    ],
)
def test_a_change_ignored_by_updates_recreates_the_stack_counting_losses(
    world: World, emulator: type[Emulator], said: str
) -> None:
    deployment, _ = world.deploy(emulator=emulator)
    world.cloud.cloudformation.deleted.clear()
    world.cloud.queues.waiting = 20
    world.template.write_text(TEMPLATE.replace("RetentionInDays: 30", "RetentionInDays: 7"))
    _, what = world.deploy(deployment, emulator=emulator)
    assert what.startswith(said)
    assert what.endswith("; 21 messages that waited in its queues go with it")
    assert world.promises == [0, 1]
    assert world.cloud.cloudformation.deleted == [STACK]


def test_what_was_in_queues_that_are_gone_is_promised_again(world: World) -> None:
    world.lost = 4
    deployment, what = world.deploy()
    assert what == "new stack; 4 that no consumer had processed will be delivered again"
    world.deploy(deployment)
    world.deploy(deployment, Symbols="IBM")
    assert world.promises == [0], "an update leaves the queues as they are"


def test_what_an_interrupted_deployment_left_in_queues_is_counted(world: World) -> None:
    world.cloud.queues.waiting = 20
    _, what = world.deploy(None)
    assert what == "new stack; 21 messages that waited in its queues go with it"


def test_a_restarted_emulator_is_deployed_to_although_nothing_changed(world: World) -> None:
    deployment, _ = world.deploy()
    _, what = world.deploy(deployment, held_by="2@2")
    assert what == "new stack"
    assert len(world.sam_calls) == 2


def test_parameters_are_quoted_and_undeclared_ones_left_out(world: World) -> None:
    world.deploy(MarketDataUrl="", ApiTokenSecretArn="arn:x")
    overrides = world.sam_calls[0][world.sam_calls[0].index("--parameter-overrides") + 1 :]
    assert overrides == ['Symbols="AAPL,MSFT"', 'MarketDataUrl=""']


def test_a_stack_that_rolled_back_is_an_error(world: World) -> None:
    world.cloud.cloudformation.status = "ROLLBACK_COMPLETE"
    with pytest.raises(Exception, match="ROLLBACK_COMPLETE"):
        world.deploy()


def test_deleting_a_stack_deletes_only_its_own_logs(world: World) -> None:
    others = ["/aws/lambda/a-stack-too-RelayFunction-1a2b", "/aws/lambda/a-stackRelayFunction-1a2b"]
    world.cloud.logs = FakeLogs("/aws/lambda/a-stack-RelayFunction-1a2b", *others)
    remove(world.cloud, STACK)  # type: ignore[arg-type]  # as much of one as is asked for
    assert world.cloud.logs.groups == others
