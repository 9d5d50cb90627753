from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
import pytest
from typer.testing import CliRunner

from acp_cli.cli import app
from local_cloud.aws import InvocationError, LocalCloud
from local_cloud.cloud import Cloud
from local_cloud.errors import NotRunningError
from local_cloud.roles import OWNER, READER, SECRETS
from local_cloud.run_state import Deployment, RunState
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any, Never

    from typer.testing import Result

    from local_cloud.postgres import PostgresServer

EVENT_ID = "6f0c2f3a-0000-5000-8000-000000000001"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(CHECKOUT, tmp_path, tmp_path / "state")


def run(workspace: Workspace, *arguments: str, cloud: Cloud | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, obj=cloud or Cloud(workspace))
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


API_URL = "http://localhost:4566/_aws/execute-api/ab12/v1"


class FakeServer:
    port = 5432

    def url(self, user: str, database: str, password: str) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:5432/{database}"


class NoCloud(Cloud):
    """A cloud that is never brought up, whatever a command lets through."""

    def up(self, *_: object) -> Never:
        raise NotImplementedError


class FakeAws(LocalCloud):
    answers: Mapping[str, Any] = {}
    invoked: list[tuple[str, Mapping[str, Any]]]

    def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        self.invoked.append((function, event))
        if function not in self.answers:
            msg = f"{function} failed: no reason given"
            raise InvocationError(msg)
        return self.answers[function]


class FakeCloud(Cloud):
    """A cloud that seems to run, with nothing behind it."""

    def __init__(self, workspace: Workspace, **answers: Any) -> None:
        super().__init__(workspace)
        self.fake_aws = FakeAws("http://localhost:4566")
        object.__setattr__(self.fake_aws, "answers", answers)
        object.__setattr__(self.fake_aws, "invoked", [])

    def running(self) -> RunState:
        deployment = Deployment(
            held_by="1@2",
            template="",
            code="",
            outputs={"RelayFunctionName": "Relay", "IngestionFunctionName": "Ingestion", "ApiUrl": API_URL},
            environ={
                "SYMBOLS": "AAPL",
                "DATABASE_SECRET_ARN": "arn:x",
                "SUBSCRIPTION_QUEUE_URLS": '{"signal_lab": "q"}',
            },
        )
        return RunState(
            role_passwords=dict.fromkeys(SECRETS.values(), "secret") | {OWNER: "o'wner", READER: "re$ader"},
            api_token="token",
            endpoint="http://localhost:4566",
            deployment=deployment,
        )

    def postgres(self, run: RunState) -> PostgresServer:
        return FakeServer()  # type: ignore[return-value]  # as much of one as is asked for

    def aws(self, run: RunState) -> FakeAws:
        return self.fake_aws


def test_help_names_every_command_and_the_exit_codes(workspace: Workspace) -> None:
    result = run(workspace, "--help")
    assert result.exit_code == 0
    for word in (
        "up",
        "down",
        "status",
        "env",
        "demo",
        "ingest",
        "relay",
        "watch",
        "trace",
        "logs",
        "invoke",
        "hold",
        "resume",
        "breakers",
        "dead-letters",
        "redrive",
        "discard",
        "events",
        "tokens",
        "page",
        "audit",
        "db",
    ):
        assert f" {word} " in result.output
    for group in ("The local cloud", "Signals", "The database", "Exit codes"):
        assert group in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["env"],
        ["ingest", "AAPL"],
        ["relay"],
        ["invoke", "relay"],
        ["watch"],
        ["trace", EVENT_ID],
        ["logs", "relay"],
        ["hold", "signal_lab"],
        ["resume", "signal_lab"],
        ["breakers"],
        ["breakers", "--json"],
        ["breakers", "forget", "signal_lab"],
        ["dead-letters"],
        ["dead-letters", "--json"],
        ["redrive", "1"],
        ["redrive", "--all", "--dry-run"],
        ["discard", "1", "--because", "why"],
        ["events"],
        ["operations", "list"],
        ["tokens", "list"],
        ["page"],
        ["audit", "log"],
        ["audit", "verify"],
        ["db", "migrate"],
        ["db", "shell"],
    ],
)
def test_a_command_without_local_cloud_says_how_to_start_it(workspace: Workspace, arguments: list[str]) -> None:
    result = run(workspace, *arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "is not running.\nStart it with: scripts/acp up\n" in result.stderr
    assert not workspace.state.exists()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["trace", "nonsense"], "'nonsense' is no event id"),
        (["logs", "relay", "--since", "soon"], "'soon' is no span of time"),
        (["up", "--ingestion-schedule", "often"], "'often' is no schedule"),
        (["up", "--relay-schedule", "rate(2 minute)"], "--relay-schedule 'rate(2 minute)' is no schedule"),
        (["up", "--symbols", " , "], "--symbols names none"),
        (["up", "--symbols", "AAPL;MSFT"], "--symbols 'AAPL;MSFT' must be symbols separated by commas"),
        (["up", "--linger", "841"], "--linger"),
        (["up", "--set", "ModelProvider"], "names no parameter"),
        (["up", "--set", "Colour=red"], "names no parameter"),
        (["up", "--set", "ModelProvider=oracle"], "it must be one of deterministic"),
        (["up", "--set", "Symbols=IBM"], "--symbols"),
        (["up", "--set", "ReadDatabaseSecretArn=arn:x"], "a value of its own"),
        (["up", "--market", "stocks"], "--market"),
        (["nonsense"], "nonsense"),
        (["ingest"], "symbols"),
        (["ingest", "AAPL", "A$B"], "'A$B', which is no symbol"),
        (["ingest", "A" * 33], "which is no symbol"),
        (["ingest", " , "], "empty: name at least one symbol"),
        (["logs"], "It is not said whose log. There are: ingestion, relay, signal-lab,"),
        (["up", "--stack", "My Stack"], "'My Stack' cannot be a stack's name"),
        (["hold", "signal_lab", "--by", " "], "--by is empty"),
        (["redrive"], "scripts/acp redrive ID…, --subscription NAME, --reason TEXT, or --all"),
        (["redrive", "1", "--all"], "--all is for all of them"),
        (["redrive", "seven"], "'seven' is no dead letter's id"),
        (["redrive", "9223372036854775808"], "'9223372036854775808' is no dead letter's id"),
        (["dead-letters", "--id", "-1"], "'-1' is no dead letter's id"),
        (["redrive", "1", "--by", " "], "--by is empty"),
        (["dead-letters", "--limit", "0"], "--limit"),
        (["dead-letters", "--kind", "queue"], "--kind"),
        (["dead-letters", "--older-than", "soon"], "--older-than is 'soon', which is no age"),
        (["dead-letters", "--event", "seven"], "--event is 'seven', which is no id"),
        (["dead-letters", "--body"], "--body is for one dead letter"),
        (["discard", "1"], "--because"),
        (["discard", "1", "--because", " "], "--because is empty"),
        (["discard", "--because", "why"], "It is not said which dead letters to discard"),
        (["discard", "1", "--because", "why", "--by", " "], "--by is empty"),
    ],
)
def test_a_command_that_makes_no_sense_names_the_culprit(
    workspace: Workspace, arguments: list[str], culprit: str
) -> None:
    result = run(workspace, *arguments, cloud=NoCloud(workspace))
    assert result.exit_code == 2
    assert culprit in result.stderr


def test_an_unknown_function_is_refused_with_those_there_are(workspace: Workspace) -> None:
    result = run(workspace, "logs", "nonsense", cloud=FakeCloud(workspace))
    assert result.exit_code == 2
    assert result.stderr == "There is no function 'nonsense'. There are: relay, ingestion.\n"


def test_down_clears_a_damaged_state_and_says_so(workspace: Workspace) -> None:
    workspace.state.mkdir()
    (workspace.state / "run.json").write_text("{")
    result = run(workspace, "status")
    assert result.exit_code == 1
    assert "run.json is damaged.\nRun scripts/acp down, which clears it." in result.stderr
    assert run(workspace, "down").exit_code == 0
    assert not workspace.state.exists()


def test_down_is_safe_where_there_is_nothing_and_twice(workspace: Workspace) -> None:
    assert run(workspace, "down").exit_code == 0
    assert run(workspace, "down").exit_code == 0


def test_down_keeps_the_state_when_told_to(workspace: Workspace) -> None:
    RunState(postgres_port=1).save(workspace)
    assert run(workspace, "down", "--keep").exit_code == 0
    assert (workspace.state / "run.json").exists()


def test_a_clouds_missing_part_is_named_with_its_remedy(workspace: Workspace) -> None:
    RunState(endpoint="http://localhost:1", market_source="replay").save(workspace)
    with pytest.raises(NotRunningError) as caught:
        Cloud(workspace).running()
    assert "PostgreSQL and LocalStack and the market replay and the stack are missing" in str(caught.value)


def test_the_demo_leaves_somebody_s_local_cloud_alone(workspace: Workspace) -> None:
    RunState().save(workspace)
    result = run(workspace, "demo", "--once")
    assert result.exit_code == 1
    assert "scripts/acp down first" in result.stderr
    assert (workspace.state / "run.json").exists()


def test_env_gives_the_database_url_and_all_outputs(workspace: Workspace) -> None:
    result = run(workspace, "env", "--json", cloud=FakeCloud(workspace))
    assert json.loads(result.stdout) == {
        "SYMBOLS": "AAPL",
        "SUBSCRIPTION_QUEUE_URLS": '{"signal_lab": "q"}',
        "DATABASE_URL": "postgresql://acp_reader:re$ader@127.0.0.1:5432/control_plane",
        "DATABASE_OWNER_URL": "postgresql://acp_owner:o'wner@127.0.0.1:5432/control_plane",
        "API_TOKEN": "token",
        "API_URL": API_URL,
        "AWS_ENDPOINT_URL": "http://localhost:4566",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "RelayFunctionName": "Relay",
        "IngestionFunctionName": "Ingestion",
        "ApiUrl": API_URL,
    }


def test_env_is_quoted_for_a_shell(workspace: Workspace) -> None:
    result = run(workspace, "env", cloud=FakeCloud(workspace))
    assert "export DATABASE_URL='postgresql://acp_reader:re$ader@127.0.0.1:5432/control_plane'\n" in result.stdout
    assert """export SUBSCRIPTION_QUEUE_URLS='{"signal_lab": "q"}'\n""" in result.stdout


def test_relay_drains_and_shows_the_counts(workspace: Workspace) -> None:
    cloud = FakeCloud(
        workspace,
        Relay={
            "claimed": 5,
            "published": 3,
            "failed": 1,
            "dead_lettered": 1,
            "released": 0,
            "breakers": {"signal_lab": "open", "system_events": "closed"},
        },
    )
    result = run(workspace, "relay", cloud=cloud)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "5 claimed  3 published  1 failed  1 dead-lettered  0 released",
        "signal_lab: breaker open",
    ]
    assert cloud.fake_aws.invoked == [("Relay", {"linger_seconds": 0})]


@pytest.mark.parametrize(("failed", "exit_code"), [([], 0), (["NOSUCH"], 1)])
def test_ingest_fails_when_a_symbol_did_and_names_it(workspace: Workspace, failed: list[str], exit_code: int) -> None:
    answer = {"trace_id": "t", "symbols": ["AAPL", "NOSUCH"], "failed_symbols": failed}
    cloud = FakeCloud(workspace, Ingestion=answer)
    result = run(workspace, "ingest", "AAPL", "NOSUCH", "--json", cloud=cloud)
    assert result.exit_code == exit_code
    assert json.loads(result.stdout) == answer
    assert ("Failed: NOSUCH." in result.stderr) == bool(failed)
    assert cloud.fake_aws.invoked == [("Ingestion", {"symbols": ["AAPL", "NOSUCH"]})]


def test_a_function_that_raised_is_no_traceback(workspace: Workspace) -> None:
    result = run(workspace, "relay", cloud=FakeCloud(workspace))
    assert result.exit_code == 1
    assert "Relay failed: no reason given" in result.stderr


def test_a_database_that_went_away_is_no_traceback(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setattr(psycopg, "connect", refuse)
    result = run(workspace, "watch", cloud=FakeCloud(workspace))
    assert result.exit_code == 1
    assert "connection refused" in result.stderr


def test_the_state_survives_a_round_trip_and_is_private(workspace: Workspace) -> None:
    from local_cloud import run_state

    saved = FakeCloud(workspace).running()
    saved.save(workspace)
    assert run_state.load(workspace) == saved
    assert (workspace.state / "run.json").stat().st_mode & 0o777 == 0o600


def test_a_state_of_another_version_is_reported(workspace: Workspace) -> None:
    workspace.state.mkdir()
    (workspace.state / "run.json").write_text('{"deployment": null, "invented": 1}')
    result = run(workspace, "status")
    assert result.exit_code == 1
    assert "another version of acp" in result.stderr
