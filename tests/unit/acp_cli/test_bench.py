from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from rich.console import Console
from typer.testing import CliRunner

from acp_cli import bench_command
from acp_cli.bench.chart import chart
from acp_cli.bench.figures import Bar, Figure, Measured, median, percentile, ratio, worst
from acp_cli.bench.report import Report, number_text
from acp_cli.bench.rig import BenchError, deployed_settings
from acp_cli.bench.scenarios import SCENARIOS, Sizes, _published
from acp_cli.cli import app
from acp_cli.cloud import Cloud
from acp_cli.workspace import CHECKOUT, Workspace
from control_plane.platform.settings import RelaySettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

AT_LEAST = Bar("≥", 1.5)
AT_MOST = Bar("≤", 100)
MACHINE = {
    "cores": 2,
    "processor": "an <old> one",
    "python": "3.13.0",
    "load_average_at_start": 0.25,
    "postgres": {"server_version": "18.4", "fsync": "on"},
}


def report(*figures: Figure, rounds: int = 5) -> Report:
    measured = Measured(figures, [{"relay": {"seconds": 1.25}}], {"events": 7})
    return Report(
        started_at="2026-01-05T14:32:00+00:00",
        quick=False,
        rounds=rounds,
        machine=MACHINE,
        settings={"RELAY_CLAIM_SIZE": "200"},
        scenarios={"publishing": measured},
    )


def text(shown: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(shown.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    figure = ratio("r", [10, 30, 20], [10, 10, 100], AT_LEAST)
    assert (figure.value, figure.spread) == (2, (0.2, 3))


def test_a_median_forgives_one_bad_round_and_a_peak_none() -> None:
    assert median("m", [1, 2, 50], "ms").value == 2
    assert worst("w", [1, 2, 50], "MiB").value == 50


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (100, 10), (0, 1)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: int) -> None:
    assert percentile([3, 1, 2, 10, 9, 8, 7, 6, 5, 4], percent) == expected


@pytest.mark.parametrize(
    ("bar", "value", "met", "margin"),
    [
        (AT_LEAST, 1.5, True, 1),
        (AT_LEAST, 3.0, True, 2),
        (AT_LEAST, 0.75, False, 0.5),
        (AT_MOST, 100, True, 1),
        (AT_MOST, 50, True, 2),
        (AT_MOST, 200, False, 0.5),
    ],
)
def test_a_bar_says_whether_it_is_met_and_by_how_much(bar: Bar, value: float, met: bool, margin: float) -> None:
    assert (bar.is_met_by(value), bar.margin(value)) == (met, margin)


def test_a_run_that_lost_messages_is_no_measurement() -> None:
    with pytest.raises(BenchError, match="7 messages were published, not 10"):
        _published([{"result": {"published": 3}}, {"result": {"published": 4}}], 10)


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_table_shows_value_spread_bar_and_whether_it_is_met() -> None:
    shown = text(
        report(
            ratio("faster", [16.2], [10], AT_LEAST),
            Figure("slower", 123.4, "ms", AT_MOST, (100, 12_345)),
            Figure("as it is", 8_150.4, "/s"),
        )
    )
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert all(part in lines["faster"] for part in ("1.62 ×", "≥ 1.5 ✓"))
    assert all(part in lines["slower"] for part in ("123 ms", "100 – 12,345", "≤ 100 ✗"))
    assert "8,150 /s" in lines["as it is"]
    assert not any(mark in lines["as it is"] for mark in "✓✗")
    assert "fsync on" in shown
    assert "median of 5 rounds" in shown


def test_json_holds_every_round_and_what_is_needed_to_repeat_it() -> None:
    figure = Figure("slower", 123.4, "ms", AT_MOST, (100, 200))
    parsed = json.loads(json.dumps(report(figure, Figure("as it is", 1, "/s")).to_dict()))
    scenario = parsed["scenarios"]["publishing"]
    assert scenario["rounds"] == [{"relay": {"seconds": 1.25}}]
    assert scenario["settings"] == {"events": 7}
    assert scenario["figures"][0] == {
        "title": "slower",
        "value": 123.4,
        "unit": "ms",
        "bar": {"sense": "≤", "limit": 100},
        "met": False,
        "spread": [100, 200],
    }
    assert (scenario["figures"][1]["bar"], scenario["figures"][1]["met"]) == (None, None)
    assert parsed["machine"]["cores"] == 2


@pytest.mark.parametrize(
    ("number", "expected"), [(1.6249, "1.62"), (23.44, "23.4"), (8150.4, "8,150"), (0, "0"), (100, "100")]
)
def test_numbers_are_shown_with_what_counts(number: float, expected: str) -> None:
    assert number_text(number) == expected


# --- the chart --------------------------------------------------------------------------------------------------------


def drawn(*figures: Figure) -> tuple[str, float, list[ElementTree.Element]]:
    """The SVG, where its limit line is, and its bars."""
    svg = chart(figures, note="a <note>")
    root = ElementTree.fromstring(svg)
    elements = list(root.iter())
    (limit,) = [element for element in elements if element.get("class") == "limit"]
    return svg, float(limit.attrib["x1"]), [one for one in elements if one.get("class") in {"met", "missed"}]


def test_the_chart_draws_met_bars_right_of_the_limit_and_missed_ones_left() -> None:
    _, limit, (met, missed) = drawn(Figure("a", 50, "ms", AT_MOST), Figure("b", 0.75, "×", AT_LEAST))
    assert (met.get("class"), missed.get("class")) == ("met", "missed")
    assert float(met.attrib["x"]) == limit
    assert float(missed.attrib["x"]) + float(missed.attrib["width"]) == pytest.approx(limit)
    # Twice as good is as far to the right as half as good to the left.
    assert float(met.attrib["width"]) == pytest.approx(float(missed.attrib["width"]))


def test_the_chart_leaves_out_what_has_no_bar_and_draws_the_extreme_to_the_end() -> None:
    _, limit, bars = drawn(
        Figure("information", 1, "/s"), Figure("endless", 0, "ms", AT_MOST), Figure("none", 0, "×", AT_LEAST)
    )
    endless, none = bars
    assert float(endless.attrib["width"]) == float(none.attrib["width"]) > 100
    assert float(none.attrib["x"]) + float(none.attrib["width"]) == pytest.approx(limit)


def test_the_chart_is_readable_in_the_dark_and_escapes_what_it_writes() -> None:
    svg, _, _ = drawn(Figure("a < b", 1, "×", AT_LEAST))
    assert "prefers-color-scheme: dark" in svg
    assert 'class="card"' in svg
    assert "a &lt; b" in svg
    assert "a &lt;note&gt;" in svg


# --- the command ------------------------------------------------------------------------------------------------------


class FakeRig:
    def __init__(self) -> None:
        self.relay_settings = {"RELAY_CLAIM_SIZE": "200"}

    def facts(self) -> dict[str, Any]:
        return MACHINE


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sizes]]:
    """What was measured, with everything measured being a figure that misses its bar."""
    asked: list[tuple[str, Sizes]] = []

    @contextlib.contextmanager
    def fake_rig(*_: object, **__: object) -> Iterator[FakeRig]:
        yield FakeRig()

    def fake(name: str) -> Any:
        def measure(_rig: object, sizes: Sizes, say: Any) -> Measured:
            say("round 1 of 1")
            asked.append((name, sizes))
            return Measured([Figure(f"{name} is slow", 0.5, "×", AT_LEAST)], [])

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
    assert [name for name, _ in asked] == list(SCENARIOS)


def test_chosen_scenarios_run_once_each_with_the_rounds_asked_for(
    tmp_path: Path, asked: list[tuple[str, Sizes]]
) -> None:
    chosen = ("--scenario", "idle", "--scenario", "latency", "--scenario", "idle")
    assert run(tmp_path, *chosen, "--rounds", "7").exit_code == 0
    assert [(name, sizes.rounds) for name, sizes in asked] == [("idle", 7), ("latency", 7)]


def test_five_rounds_are_the_least_that_a_measurement_takes_by_itself(
    tmp_path: Path, asked: list[tuple[str, Sizes]]
) -> None:
    run(tmp_path, "--scenario", "idle")
    run(tmp_path, "--scenario", "idle", "--quick")
    assert [sizes.rounds for _, sizes in asked] == [5, 1]


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
    result = run(tmp_path, "--scenario", "idle", "--json", str(numbers), "--chart", str(picture))
    assert "idle is slow" in result.stdout
    assert json.loads(numbers.read_text())["settings"]["RELAY_CLAIM_SIZE"] == "200"
    assert "idle is slow" in picture.read_text()


def test_the_measured_relay_has_the_settings_of_the_template() -> None:
    deployed = deployed_settings(Workspace(CHECKOUT, CHECKOUT / ".acp", CHECKOUT / ".acp" / "state"))
    assert {"RELAY_CLAIM_SIZE", "RELAY_PUBLISH_CONCURRENCY", "LEASE_SECONDS"} <= deployed.keys()
    RelaySettings.from_environ(
        {**deployed, "DATABASE_URL": "postgresql://u:p@h/d", "TOPIC_QUEUE_URLS": '{"market.ticks": "http://q"}'}
    )
