from __future__ import annotations

import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.chart import chart
from bench.figures import Bar, Figure, Measured, median, percentile, ratio, worst
from bench.report import Report, number_text
from bench.rig import BenchError, deployed_settings
from bench.turns import check_published
from control_plane.platform.settings import RelaySettings
from local_cloud.workspace import CHECKOUT, Workspace

AT_LEAST = Bar("≥", 1.5)
AT_MOST = Bar("≤", 100)
MACHINE = {
    "cores": 2,
    "processor": "an <old> one",
    "python": "3.13.0",
    "load_average_at_start": 0.25,
    "postgres": {"server_version": "18.4", "fsync": "on"},
}


def report(*figures: Figure, rounds: int = 5, quick: bool = False) -> Report:
    measured = Measured(figures, [{"relay": {"seconds": 1.25}}], {"events": 7})
    return Report(
        started_at="2026-01-05T14:32:00+00:00",
        quick=quick,
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


def test_ratio_is_of_medians_and_spread_of_rounds() -> None:
    figure = ratio("r", [10, 30, 20], [10, 10, 100], AT_LEAST)
    assert figure == replace(figure, value=2, spread=(0.2, 3))


def test_a_median_forgives_one_bad_round_and_a_peak_none() -> None:
    assert median("m", [1, 2, 50], "ms").value == 2
    assert worst("w", [1, 2, 50], "MiB").value == 50


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (100, 10), (0, 1)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: int) -> None:
    assert percentile([3, 1, 2, 10, 9, 8, 7, 6, 5, 4], percent) == expected


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        (AT_LEAST, 1.5, True),
        (AT_LEAST, 3.0, True),
        (AT_LEAST, 0.75, False),
        (AT_MOST, 100, True),
        (AT_MOST, 50, True),
        (AT_MOST, 200, False),
    ],
)
def test_bar_tells_whether_it_is_met(bar: Bar, value: float, met: bool) -> None:
    assert bar.is_met_by(value) == met


def test_a_run_that_lost_messages_is_no_measurement() -> None:
    with pytest.raises(BenchError, match="7 messages were published, not 10"):
        check_published([{"result": {"published": 3}}, {"result": {"published": 4}}], 10)


# --- the report -------------------------------------------------------------------------------------------------------


def test_table_shows_value_spread_and_bar() -> None:
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


def test_json_holds_every_round_and_the_settings() -> None:
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


def drawn(*figures: Figure) -> tuple[str, list[ElementTree.Element]]:
    """Returns the SVG and its bars."""
    svg = chart(figures, note="a <note>")
    elements = ElementTree.fromstring(svg).iter()
    return svg, [one for one in elements if one.get("class") in {"ours", "other"}]


def test_the_chart_draws_rates_to_one_scale_and_nothing_else() -> None:
    _, (own, other) = drawn(
        Figure("relay, to a queue", 200, "/s"), Figure("a loop, to a queue", 100, "/s"), Figure("a ratio", 2, "×")
    )
    assert (own.get("class"), other.get("class")) == ("ours", "other")
    assert own.attrib["x"] == other.attrib["x"]
    assert float(own.attrib["width"]) == pytest.approx(2 * float(other.attrib["width"]))


def test_the_chart_has_room_for_the_best_round() -> None:
    svg, (bar,) = drawn(Figure("relay, to a queue", 100, "/s", spread=(50, 400)))
    (line,) = [one for one in ElementTree.fromstring(svg).iter() if one.get("class") == "spread"]
    start, end = float(line.attrib["x1"]), float(line.attrib["x2"])
    left, width = float(bar.attrib["x"]), float(bar.attrib["width"])
    assert [start - left, end - left] == pytest.approx([width / 2, width * 4], abs=0.2)


def test_the_chart_has_dark_colours_escapes_text_and_is_told_in_words() -> None:
    svg, _ = drawn(Figure('a < "b", to < c', 1, "/s"))
    assert "prefers-color-scheme: dark" in svg
    assert 'class="card"' in svg
    assert "a &lt; " in svg
    assert "a &lt;note&gt;" in svg
    assert ElementTree.fromstring(svg).attrib["aria-label"] == 'Messages a second. a < "b", to < c: 1'


# --- the rig ----------------------------------------------------------------------------------------------------------


def test_the_measured_relay_has_the_settings_of_the_template() -> None:
    deployed = deployed_settings(Workspace(CHECKOUT, CHECKOUT / ".acp", CHECKOUT / ".acp" / "state"))
    assert {"RELAY_CLAIM_SIZE", "RELAY_PUBLISH_CONCURRENCY", "LEASE_SECONDS"} <= deployed.keys()
    RelaySettings.from_environ(
        {**deployed, "DATABASE_URL": "postgresql://u:p@h/d", "SUBSCRIPTION_QUEUE_URLS": '{"signal_lab": "http://q"}'}
    )


def test_a_quick_run_shows_no_bars_and_misses_none() -> None:
    quick = report(Figure("throughput", 0.1, "×", bar=AT_LEAST), rounds=1, quick=True)
    assert "✗" not in text(quick)
    assert "≥" not in text(quick)
    assert "so no bars are shown" in " ".join(text(quick).split())
    assert quick.missed == []
