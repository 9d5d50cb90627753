"""The alerts for Prometheus and the dashboard for Grafana: promtool accepts them, and /metrics has all they ask."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.checkout import ROOT
from tests.unit.test_docs_links import anchors
from tests.unit.test_observability import names, table

from control_plane.flow.metrics import METRICS

MONITORING = ROOT / "docs" / "monitoring"
RULES = (MONITORING / "alerts.rules.yml").read_text(encoding="utf-8")
GROUPS = yaml.safe_load(RULES)["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))

SERIES = {
    metric.name + part: metric.labels
    for metric in METRICS
    for part in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))
}
"""The labels of each series of /metrics."""


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        reason = "There is no promtool: on Debian and Ubuntu, apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(promtool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)


def expressions() -> Iterator[tuple[str, str]]:
    """Yields what each alert and each panel of the dashboard asks, with the name of who asks."""
    for group in GROUPS:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def test_promtool_accepts_the_rules(promtool: str) -> None:
    checked = run(promtool, "check", "rules", "--lint-fatal", MONITORING / "alerts.rules.yml")
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_promtool_accepts_what_the_dashboard_asks(promtool: str, tmp_path: Path) -> None:
    asked = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": asked}]}))
    checked = run(promtool, "check", "rules", "--lint=none", tmp_path / "panels.yml")
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_each_alert_is_raised_by_what_it_is_for_and_by_nothing_less(promtool: str) -> None:
    tested = run(promtool, "test", "rules", MONITORING / "alerts.test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def silent(_: str, rule: dict[str, Any]) -> bool:
    rule["expr"] = "vector(0) > 1"
    return True


def hasty(_: str, rule: dict[str, Any]) -> bool:
    return bool(rule.pop("for", None))


def touchy(_: str, rule: dict[str, Any]) -> bool:
    """Makes every threshold a thousandth of what it is, so that what is allowed raises the alert."""
    rule["expr"], changed = re.subn(r"> (?=\d+)(?!0\b)", "> 0.001 * ", rule["expr"])
    return bool(changed)


@pytest.mark.parametrize("broken", [silent, hasty, touchy], ids=lambda broken: broken.__name__)
def test_the_alerts_own_tests_notice_a_broken_one(
    promtool: str, tmp_path: Path, broken: Callable[[str, dict[str, Any]], bool]
) -> None:
    groups = yaml.safe_load(RULES)["groups"]
    changed = {
        rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule and broken(rule["alert"], rule)
    }
    assert len(changed) >= 5
    (tmp_path / "alerts.rules.yml").write_text(json.dumps({"groups": groups}))
    shutil.copy(MONITORING / "alerts.test.yml", tmp_path)
    tested = run(promtool, "test", "rules", tmp_path / "alerts.test.yml")
    assert tested.returncode == 1
    assert set(re.findall(r"alertname: (\w+)", tested.stdout + tested.stderr)) == changed


def test_every_alert_has_a_severity_a_summary_and_a_runbook_that_is_there() -> None:
    pages = {"docs/operations.md": anchors(ROOT / "docs" / "operations.md")}
    for name, rule in ALERTS.items():
        assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"}), name
        assert rule["annotations"].keys() == {"summary", "runbook_url"}, name
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert anchor in pages[page], name


def test_every_alert_is_explained_and_every_explained_alert_is_there() -> None:
    rows = table("alert")
    assert sorted(name for row in rows for name in names(row[0])) == sorted(ALERTS)
    assert all(meaning and remedy for _, meaning, remedy in rows)


def test_what_is_asked_for_is_in_metrics_with_the_labels_it_is_told_apart_by() -> None:
    recorded = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
    for who, expr in expressions():
        asked = set(re.findall(r"\b(?:acp_|events_|publish_|subscription:|playbook:)[\w:]+", expr))
        assert asked, who
        assert {name for name in asked - recorded if name not in SERIES} == set(), who
        labels = {"job", "le"}.union(*(SERIES.get(name, name.partition(":")[:1]) for name in asked))
        for listed in re.findall(r"\bby \(([^)]*)\)", expr):
            assert set(names(listed)) <= labels, who
        for matched in re.findall(r"{([^}]*)}", expr):
            assert set(re.findall(r"(\w+)!?=~?", matched)) <= labels, who


def test_the_dashboard_shows_every_metric() -> None:
    text = " ".join(expr for who, expr in expressions())
    shown = {name.removesuffix(part) for name in re.findall(r"\w+", text) for part in ("", "_bucket", "_count")}
    assert {metric.name for metric in METRICS} - shown == set()


def test_the_bounds_that_the_objectives_count_up_to_are_the_histograms_own() -> None:
    asked = {bound for _, expr in expressions() for bound in re.findall(r'le="([^"]+)"', expr)}
    assert asked == {"60.0", "300.0"}
    schema = (ROOT / "db" / "schema.sql").read_text(encoding="utf-8")
    [bounds] = re.findall(r"RETURN ARRAY\[(\(0\.005\)[^\]]*)\]", schema)
    assert asked <= {str(float(bound)) for bound in re.findall(r"\(([\d.]+)\)", bounds)}


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at: Mapping[str, int] = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
