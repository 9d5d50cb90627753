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
def test_bar_tells_whether_it_is_met_and_the_margin(bar: Bar, value: float, met: bool, margin: float) -> None:
    assert (bar.is_met_by(value), bar.margin(value)) == (met, margin)


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


def drawn(*figures: Figure) -> tuple[str, float, list[ElementTree.Element]]:
    """Returns the SVG, the position of its limit line, and its bars."""
    svg = chart(figures, note="a <note>")
    root = ElementTree.fromstring(svg)
    elements = list(root.iter())
    (limit,) = [element for element in elements if element.get("class") == "limit"]
    return svg, float(limit.attrib["x1"]), [one for one in elements if one.get("class") in {"met", "missed"}]


def test_chart_draws_met_bars_right_and_missed_ones_left() -> None:
    _, limit, (met, missed) = drawn(Figure("a", 50, "ms", AT_MOST), Figure("b", 0.75, "×", AT_LEAST))
    assert (met.get("class"), missed.get("class")) == ("met", "missed")
    assert float(met.attrib["x"]) == limit
    assert float(missed.attrib["x"]) + float(missed.attrib["width"]) == pytest.approx(limit)
    # Twice as good is as far to the right as half as good to the left.
    assert float(met.attrib["width"]) == pytest.approx(float(missed.attrib["width"]))


def test_chart_omits_figures_without_bar_and_clips_extremes() -> None:
    _, limit, bars = drawn(
        Figure("information", 1, "/s"), Figure("endless", 0, "ms", AT_MOST), Figure("none", 0, "×", AT_LEAST)
    )
    endless, none = bars
    assert float(endless.attrib["width"]) == float(none.attrib["width"]) > 100
    assert float(none.attrib["x"]) + float(none.attrib["width"]) == pytest.approx(limit)


def test_chart_has_dark_colours_and_escapes_text() -> None:
    svg, _, _ = drawn(Figure("a < b", 1, "×", AT_LEAST))
    assert "prefers-color-scheme: dark" in svg
    assert 'class="card"' in svg
    assert "a &lt; b" in svg
    assert "a &lt;note&gt;" in svg


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
