"""acp hold and acp resume on a real Postgres; only the cloud around it is a stand-in."""

from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import PASSWORD, TestDatabase
from typer.testing import CliRunner, Result

from acp_cli.cli import app as acp
from control_plane.ops.status import read_status
from control_plane.platform.breakers import BreakerPolicy, Breakers, read_breakers
from local_cloud import database as local_database
from local_cloud.cloud import Cloud
from local_cloud.postgres import PostgresServer
from local_cloud.run_state import Deployment, RunState
from local_cloud.workspace import CHECKOUT, Workspace


class RunningCloud(Cloud):
    """Up, with the test's own database behind it."""

    def __init__(self, workspace: Workspace, server: PostgresServer) -> None:
        super().__init__(workspace)
        self._server = server

    def running(self) -> RunState:
        url = "http://sqs.localhost:4566/000000000000/acp-MarketTicksQueue-1a2b"
        return RunState(
            app_password=PASSWORD,
            market_source="replay",
            deployment=Deployment(
                "1@2",
                template="",
                code="",
                outputs={"MarketTicksQueueUrl": url},
                environ={"TOPIC_QUEUE_URLS": f'{{"market.ticks": "{url}"}}'},
            ),
        )

    def postgres(self, run: RunState) -> PostgresServer:
        return self._server


@pytest.fixture
def cloud(
    postgres: PostgresServer, database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunningCloud:
    monkeypatch.setattr(local_database, "NAME", database.name)
    monkeypatch.setenv("USER", "ada")
    return RunningCloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"), postgres)


def run(cloud: Cloud, *arguments: str) -> Result:
    result = CliRunner().invoke(acp, arguments, obj=cloud)
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


def test_a_person_holds_a_queue_and_lets_it_go(cloud: RunningCloud, app: Connection[Any]) -> None:
    held = run(cloud, "hold", "market.ticks")
    assert held.exit_code == 0, held.output
    assert held.stderr == (
        "acp-MarketTicksQueue-1a2b (market.ticks, MarketTicksQueue) is held open. "
        "What is promised to it waits in the outbox until scripts/acp resume market.ticks\n"
    )
    (breaker,) = read_status(app).breakers
    assert (breaker.name, breaker.state, breaker.held_by) == ("acp-MarketTicksQueue-1a2b", "open", "ada")

    resumed = run(cloud, "resume", "MarketTicksQueue")
    assert resumed.exit_code == 0
    assert "is probed by the next run" in resumed.stderr
    (breaker,) = read_breakers(app)
    assert (breaker.held_by, breaker.probe_is_due) == (None, True)


def test_who_holds_it_can_be_said(cloud: RunningCloud, app: Connection[Any]) -> None:
    held = run(cloud, "hold", "yfinance", "--by", " Grace ")
    assert "None of its symbols is fetched until scripts/acp resume yfinance" in held.stderr
    assert [(breaker.name, breaker.held_by) for breaker in read_breakers(app)] == [("yfinance-replay", "Grace")]


def test_what_is_closed_has_nothing_to_resume(cloud: RunningCloud, app: Connection[Any]) -> None:
    result = run(cloud, "resume", "yfinance")
    assert result.exit_code == 0
    assert result.stderr == "yfinance-replay is not open: there is nothing to resume.\n"
    assert read_breakers(app) == []


def test_a_breaker_left_by_another_source_can_be_let_go(cloud: RunningCloud, app: Connection[Any]) -> None:
    Breakers(lambda: app, BreakerPolicy(1, 1000)).failed("former", "gone")
    assert run(cloud, "resume", "former").exit_code == 0
    (breaker,) = read_breakers(app)
    assert breaker.probe_is_due


def test_an_unknown_name_is_refused_with_those_there_are(cloud: RunningCloud, app: Connection[Any]) -> None:
    for command in ("hold", "resume"):
        result = run(cloud, command, "bonds")
        assert result.exit_code == 2
        assert result.stderr == (
            "Nothing called 'bonds' has a breaker. There are: "
            "acp-MarketTicksQueue-1a2b (market.ticks, MarketTicksQueue), yfinance-replay.\n"
        )
    assert read_breakers(app) == []
