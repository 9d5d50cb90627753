from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from typer.testing import CliRunner

from acp_cli.cli import app
from acp_cli.drill_command import verdict
from drills.narrator import Narrator, Result
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result as Ran


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(CHECKOUT, tmp_path, tmp_path / "state")


def run(workspace: Workspace, *arguments: str) -> Ran:
    result = CliRunner().invoke(app, arguments, obj=Cloud(workspace))
    assert result.exception is None or isinstance(result.exception, SystemExit), "a traceback"
    return result


@pytest.mark.parametrize("arguments", [[], ["--list"], ["all", "--list"]])
def test_the_drills_are_listed_with_a_line_each_without_a_cloud(workspace: Workspace, arguments: list[str]) -> None:
    listed = run(workspace, "drill", *arguments)
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "queue-outage",
        "slow-queue",
        "failing-entries",
        "poison",
        "source-down",
        "relay-killed",
        "all",
    ]
    assert lines[0].rstrip().endswith("an outage of the queue costs no message an attempt")


def test_an_unknown_drill_is_refused_with_those_there_are(workspace: Workspace) -> None:
    refused = run(workspace, "drill", "earthquake")
    assert refused.exit_code == 2
    assert "There is no drill 'earthquake'. There are: queue-outage, slow-queue" in refused.stderr


@pytest.mark.parametrize("arguments", [["queue-outage"], ["all"], ["--mend"]])
def test_it_needs_a_running_cloud(workspace: Workspace, arguments: list[str]) -> None:
    refused = run(workspace, "drill", *arguments)
    assert refused.exit_code == 3
    assert "scripts/acp up" in refused.stderr


def test_a_drill_holds_if_it_finished_and_every_claim_held() -> None:
    result = Result("poison", "…")
    narrator = Narrator(Console(quiet=True))
    with narrator.telling(result):
        narrator.claim("nothing is lost", held=True, seen="20 of 20")
    assert not result.held, "it was interrupted"
    assert verdict(result) == "poison: not seen through"
    result.problem = ""
    assert result.held
    with narrator.telling(result):
        narrator.claim("neighbours are not delayed", held=False, seen="2 were")
    assert not result.held
    assert verdict(result) == "poison: not seen to hold: neighbours are not delayed."
    result.claims.clear()
    assert not result.held, "nothing was claimed"
