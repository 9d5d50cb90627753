from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from acp_cli import bench_command
from acp_cli.cli import app
from bench.figures import Bar, Figure, Measured
from bench.scenarios import ON_DEMAND, SCENARIOS, Sizes
from local_cloud.cloud import Cloud
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

AT_LEAST = Bar("≥", 1.5)
MACHINE = {
    "cores": 2,
    "python": "3.13.0",
    "load_average_at_start": 0.25,
    "postgres": {"server_version": "18.4", "fsync": "on"},
    "processor": "an old one",
}


class FakeRig:
    def __init__(self) -> None:
        self.relay_settings = {"RELAY_CLAIM_SIZE": "200"}

    def facts(self) -> dict[str, Any]:
        return MACHINE


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sizes]]:
    """Records what is measured; every measurement is a figure that misses its bar."""
    asked: list[tuple[str, Sizes]] = []

    @contextlib.contextmanager
    def fake_rig(*_: object, **__: object) -> Iterator[FakeRig]:
        yield FakeRig()

    def fake(name: str) -> Any:
        def measure(_rig: object, sizes: Sizes, say: Any) -> Measured:
            say("round 1 of 1")
            asked.append((name, sizes))
            rate = Figure("relay, to a queue", 1234, "/s", spread=(1000, 1500))
            return Measured([rate if name == "peers" else Figure(f"{name} is slow", 0.5, "×", AT_LEAST)], [])

        return measure

    monkeypatch.setattr(bench_command, "open_rig", fake_rig)
    monkeypatch.setattr(bench_command, "SCENARIOS", {name: fake(name) for name in SCENARIOS})
    return asked


def run(tmp_path: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(
        app, ["bench", *arguments], obj=Cloud(Workspace(CHECKOUT, tmp_path, tmp_path / "state"))
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_all_scenarios_run(tmp_path: Path, asked: list[tuple[str, Sizes]]) -> None:
    assert run(tmp_path).exit_code == 0
    assert [name for name, _ in asked] == [name for name in SCENARIOS if name not in ON_DEMAND]


def test_a_scenario_that_installs_other_software_runs_where_it_is_named(
    tmp_path: Path, asked: list[tuple[str, Sizes]]
) -> None:
    assert run(tmp_path, "peers", "idle", "--scenario", "peers").exit_code == 0
    assert [name for name, _ in asked] == ["peers", "idle"]


def test_a_chart_without_what_it_shows_is_refused_before_anything_is_measured(
    tmp_path: Path, asked: list[tuple[str, Sizes]]
) -> None:
    result = run(tmp_path, "idle", "--chart", str(tmp_path / "bench.svg"))
    assert result.exit_code == 2
    assert "scripts/acp bench peers --chart" in result.stderr
    assert not asked


def test_chosen_scenarios_run_once_each_with_the_rounds_asked_for(
    tmp_path: Path, asked: list[tuple[str, Sizes]]
) -> None:
    chosen = ("--scenario", "idle", "--scenario", "latency", "--scenario", "idle")
    assert run(tmp_path, *chosen, "--rounds", "7").exit_code == 0
    assert [(name, sizes.rounds) for name, sizes in asked] == [("idle", 7), ("latency", 7)]


def test_a_measurement_takes_at_least_five_rounds_by_default(tmp_path: Path, asked: list[tuple[str, Sizes]]) -> None:
    run(tmp_path, "--scenario", "idle")
    run(tmp_path, "--scenario", "idle", "--quick")
    assert [sizes.rounds for _, sizes in asked] == [5, 1]


def test_a_scenario_is_measured_at_the_size_asked_for(tmp_path: Path, asked: list[tuple[str, Sizes]]) -> None:
    run(tmp_path, "idle", "--size", "replayed=7", "--size", "rounds=3")
    [(_, sizes)] = asked
    assert sizes == Sizes(replayed=7, rounds=3)


@pytest.mark.parametrize("size", ["speed=7", "replayed", "replayed=0", "replayed=-7", "replayed=many"])
def test_a_size_that_is_none_is_named_with_those_there_are(
    tmp_path: Path, asked: list[tuple[str, Sizes]], size: str
) -> None:
    result = run(tmp_path, "idle", "--size", size)
    assert result.exit_code == 2
    assert f"--size {size} names no size" in result.stderr
    assert "rebuilt_events" in result.stderr
    assert asked == []


def test_an_unknown_scenario_is_named_with_those_there_are(tmp_path: Path, asked: list[tuple[str, Sizes]]) -> None:
    result = run(tmp_path, "--scenario", "speed")
    assert result.exit_code == 2
    assert "'speed'" in result.stderr
    assert "pinned-horizon" in result.stderr
    assert not asked


@pytest.mark.usefixtures("asked")
def test_a_missed_bar_fails_only_where_that_was_asked_for(tmp_path: Path) -> None:
    assert run(tmp_path, "--scenario", "idle").exit_code == 0
    strict = run(tmp_path, "--scenario", "idle", "--strict")
    assert strict.exit_code == 1
    assert "idle is slow" in strict.stdout
    assert "Missed: idle is slow" in strict.stderr


@pytest.mark.usefixtures("asked")
def test_json_on_standard_output_is_all_there_is(tmp_path: Path) -> None:
    result = run(tmp_path, "--scenario", "idle", "--json", "-")
    assert json.loads(result.stdout)["scenarios"]["idle"]["figures"][0]["met"] is False


@pytest.mark.usefixtures("asked")
def test_json_and_chart_go_to_files(tmp_path: Path) -> None:
    numbers, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    result = run(tmp_path, "idle", "peers", "--json", str(numbers), "--chart", str(picture))
    assert "idle is slow" in result.stdout
    assert json.loads(numbers.read_text())["settings"]["RELAY_CLAIM_SIZE"] == "200"
    assert "1,234 /s" in picture.read_text()
    assert "idle" not in picture.read_text()
