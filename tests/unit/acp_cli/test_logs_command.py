"""acp logs about one id: the lines of all functions, in order, of the local cloud and of a stack in an account."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws
from typer.testing import CliRunner, Result

from acp_cli import own_aws
from acp_cli.cli import app
from acp_cli.logs_command import About
from local_cloud.aws import LocalCloud
from local_cloud.cloud import Cloud
from local_cloud.environ import LOCAL_AWS
from local_cloud.logs import Line
from local_cloud.workspace import CHECKOUT, Workspace

EVENT = "d0459ed7-a792-5533-b958-aaf36e185583"
NOW = time.time()
OTHER = "d0459ed7-0000-5533-b958-aaf36e185583"
OUTPUTS = {"RelayFunctionName": "stack-Relay-1", "SignalLabFunctionName": "stack-SignalLab-2", "ApiUrl": "-"}


def written(client: Any, group: str, *lines: tuple[float, dict[str, Any] | str], is_there: bool = False) -> None:
    """Writes lines of some seconds ago; a line says itself when it was written, as Powertools has it."""
    if not is_there:
        client.create_log_group(logGroupName=group)
    client.create_log_stream(logGroupName=group, logStreamName="one")
    events = []
    for ago, content in lines:
        moment = NOW - ago
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment)) + f",{int(moment * 1000) % 1000:03}+0000"
        text = content if isinstance(content, str) else json.dumps({"timestamp": stamp, "level": "INFO", **content})
        events.append({"timestamp": int(moment * 1000), "message": text})
    client.put_log_events(logGroupName=group, logStreamName="one", logEvents=events)


class Local(Cloud):
    """A local cloud whose logs are moto's."""

    def running(self) -> Any:
        return SimpleNamespace()

    def outputs(self, _: Any) -> Any:
        return OUTPUTS

    def aws(self, _: Any) -> LocalCloud:
        return LocalCloud("https://logs.us-east-1.amazonaws.com")


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name in ("ACP_URL", "ACP_TOKEN", "ACP_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with mock_aws():
        local = Local(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))
        logs = local.aws(None).logs
        written(
            logs,
            "/aws/lambda/stack-Relay-1",
            (9.0, {"message": "delivered", "event_id": EVENT, "attempt": 1}),
            (8.0, {"message": "delivered", "event_id": OTHER}),
            (5.0, {"message": "delivered", "event_id": EVENT, "attempt": 2}),
            (4.0, f"REPORT about {EVENT}"),
        )
        written(
            logs,
            "/aws/lambda/stack-SignalLab-2",
            (7.0, {"message": "consumed", "event_id": EVENT, "decision_id": OTHER}),
        )
        yield local


def asked(cloud: Cloud, *arguments: str) -> Result:
    result = CliRunner().invoke(app, ["logs", *arguments], obj=cloud)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def without_time(output: str) -> list[str]:
    return [" ".join(line.split()[1:]) for line in output.splitlines()]


def test_all_functions_lines_about_an_event_come_in_time_order(cloud: Cloud) -> None:
    assert without_time(asked(cloud, "--event", EVENT).stdout) == [
        f"relay INFO delivered event_id={EVENT} attempt=1",
        f"signal-lab INFO consumed event_id={EVENT} decision_id={OTHER}",
        f"relay INFO delivered event_id={EVENT} attempt=2",
    ]


def test_an_ids_beginning_and_a_function_are_enough(cloud: Cloud) -> None:
    assert len(without_time(asked(cloud, "--event", EVENT[:10].upper()).stdout)) == 3
    assert without_time(asked(cloud, "relay", "--event", EVENT[:6]).stdout)[0].startswith("INFO delivered")
    [consumed] = asked(cloud, "--decision", OTHER, "--raw").stdout.splitlines()
    assert json.loads(consumed)["message"] == "consumed"


def test_what_nobody_logged_is_said(cloud: Cloud) -> None:
    nothing = asked(cloud, "--trace", EVENT)
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert nothing.stderr == f"No function has logged anything about trace {EVENT} in the last 1d.\n"
    assert "relay has logged nothing in the last 1s." in asked(cloud, "relay", "--since", "1s").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "It is not said whose log"),
        (["--trace", EVENT, "--event", EVENT], "--trace and --event are given"),
        (["--event", 'x" || true'], "is no event's id"),
        (["--event", "d04"], "the first four or more"),
        (["nothing", "--event", EVENT], "There is no function 'nothing'. There are: relay, signal-lab."),
    ],
)
def test_what_makes_no_sense_is_refused(cloud: Cloud, arguments: list[str], told: str) -> None:
    result = asked(cloud, *arguments)
    assert (result.exit_code, told in result.stderr) == (2, True), result.stderr


def test_a_deployment_is_read_by_its_stacks_name(cloud: Cloud) -> None:
    named = CliRunner().invoke(app, ["--url", "https://x.test/v1", "--token", "t", "logs", "relay"], obj=cloud)
    assert (named.exit_code, "--stack NAME" in named.stderr) == (2, True), named.stderr


TEMPLATE = {
    "Resources": {
        "RelayLogGroup": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "/aws/lambda/prod-Relay-7"}},
        "SignalLabLogGroup": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "/aws/lambda/prod-Lab-8"}},
    }
}


def test_a_stack_in_the_users_account_is_read_with_their_own_credentials(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("cloudformation", region_name="eu-west-1").create_stack(
        StackName="prod", TemplateBody=json.dumps(TEMPLATE)
    )
    logs = boto3.client("logs", region_name="eu-west-1")
    for seconds_ago, group in ((5.0, "prod-Relay-7"), (6.0, "prod-Lab-8")):
        line = {"message": group, "event_id": EVENT}
        written(logs, f"/aws/lambda/{group}", (seconds_ago, line), (4.0, {"event_id": OTHER}), is_there=True)
    own_aws.keep({"AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "own", "PATH": "/bin"})
    monkeypatch.setattr(own_aws, "_kept", dict(own_aws._kept))
    before = dict(os.environ)
    arguments = ["--url", "https://a1.execute-api.eu-west-1.amazonaws.com/v1", "--token", "t", "logs"]
    read = CliRunner().invoke(app, [*arguments, "--stack", "prod", "--event", EVENT], obj=cloud)
    assert read.exit_code == 0, read.output
    assert [line.split()[1:4] for line in read.stdout.splitlines()] == [
        ["signal-lab", "INFO", "prod-Lab-8"],
        ["relay", "INFO", "prod-Relay-7"],
    ]
    assert dict(os.environ) == before
    missing = CliRunner().invoke(app, [*arguments, "--stack", "none", "--event", EVENT], obj=cloud)
    assert (missing.exit_code, "Are AWS_PROFILE" in missing.stderr) == (1, True), missing.stderr


def test_cloudwatch_is_asked_for_the_lines_alone() -> None:
    assert About("event_id", EVENT).pattern == f'{{ $.event_id = "{EVENT}" }}'
    assert About("trace_id", "d045").pattern == '{ $.trace_id = "d045*" }'
    assert not About("event_id", EVENT).fits(Line("1", 0, EVENT))


def test_the_users_own_account_is_seen_for_a_while_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LOCAL_AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(own_aws, "_kept", {})
    own_aws.keep({"AWS_PROFILE": "mine", "AWS_REGION": "", "HOME": "/"})
    with own_aws.own_aws():
        assert {name: value for name, value in os.environ.items() if name.startswith("AWS_")} == {"AWS_PROFILE": "mine"}
    assert {name: os.environ.get(name) for name in LOCAL_AWS} == LOCAL_AWS
    assert "AWS_PROFILE" not in os.environ
