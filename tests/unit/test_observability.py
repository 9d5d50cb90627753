"""Metrics, alarms and the dashboard agree: what is watched is emitted, and each alarm is explained."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aws_lambda_powertools.metrics import MetricUnit
from tests.template import FUNCTIONS, PARAMETERS, QUEUES, RESOURCES, ROOT, TEMPLATE, id_of, of_type

from control_plane.flow.metrics import METRICS as SCRAPED
from control_plane.platform.telemetry import METRICS, NAMESPACE

ALARMS = of_type("AWS::CloudWatch::Alarm")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
UNITS = {"count": MetricUnit.Count, "ms": MetricUnit.Milliseconds, "s": MetricUnit.Seconds, "%": MetricUnit.Percent}
AWS_METRICS = {
    # docs.aws.amazon.com: CloudWatch metrics of SQS, and of Lambda
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"},
    "AWS/Lambda": {"Errors", "Throttles"},
}
DEPLOYED = {FUNCTIONS[name]["CodeUri"].removeprefix("functions/"): name for name in FUNCTIONS}
"""Functions by service; a service is named like its function's folder, as the next test checks."""


def table(first_column: str) -> list[list[str]]:
    """Returns the rows of operations.md's tables whose first column has this heading."""
    return [row for rows in tables(first_column).values() for row in rows]


def tables(first_column: str) -> dict[str, list[list[str]]]:
    """Returns the rows of each such table by the anchor of the heading that it stands under."""
    found: dict[str, list[list[str]]] = {}
    anchor, rows = "", None
    for line in OPERATIONS.splitlines():
        if line.startswith("#"):
            anchor = re.sub(r"[^\w\- ]", "", line.strip("# ").lower()).replace(" ", "-")
        if line.startswith(f"| {first_column} |"):
            rows = found.setdefault(anchor, [])
        elif rows is not None and line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        else:
            rows = None
    return {anchor: rows[1:] for anchor, rows in found.items()}


def names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(",")]


@cache
def emitted(service: str) -> frozenset[str]:
    """Returns the metrics that a function's own code and the part of the application it runs count."""
    app = ROOT / "functions" / service / "app.py"
    core = ROOT / "layers" / "core"
    modules, files = imports(app), {app}
    while modules:
        path = core / modules.pop().replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists() and file not in files and file.name != "telemetry.py":
                files.add(file)
                modules |= imports(file)
    found = {
        node.value for file in files for node in ast.walk(parsed(file)) if isinstance(node, ast.Constant)
    } & METRICS.keys()
    return frozenset(str(name) for name in found)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("control_plane"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


# Metrics


@pytest.mark.parametrize("service", DEPLOYED)
def test_a_functions_service_is_named_like_its_folder(service: str) -> None:
    text = (ROOT / "functions" / service / "app.py").read_text(encoding="utf-8")
    assert re.findall(r"Telemetry\((.*?)\)", text) == [f'"{service}"']


def test_each_metric_is_documented_with_unit_and_emitter() -> None:
    rows = {row[0]: row for row in table("metric")}
    assert rows.keys() == METRICS.keys()
    for name, (_, unit, services, meaning) in rows.items():
        assert UNITS[unit] is METRICS[name], name
        assert set(names(services)) == {service for service in DEPLOYED if name in emitted(service)}, name
        assert meaning


# Alarms


def test_every_alarm_is_documented_and_every_documented_alarm_is_there() -> None:
    rows = [(name, row) for row in table("alarm") for name in names(row[0])]
    documented = [name for name, _ in rows]
    assert sorted(f"{name}Alarm" for name in documented) == sorted(ALARMS)
    assert all(meaning and remedy for _, (_, meaning, remedy) in rows)


def test_every_alarm_links_the_part_of_operations_that_explains_it() -> None:
    explained = {
        f"{name}Alarm": anchor for anchor, rows in tables("alarm").items() for row in rows for name in names(row[0])
    }
    linked = {alarm: ALARMS[alarm]["AlarmDescription"].rpartition(" Runbook: ")[2] for alarm in ALARMS}
    assert linked == {alarm: f"docs/operations.md#{anchor}" for alarm, anchor in explained.items()}


@pytest.mark.parametrize("alarm", ALARMS)
def test_an_alarm_notifies_the_topic_where_there_is_one(alarm: str) -> None:
    topic = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], []]}
    assert ALARMS[alarm]["AlarmActions"] == topic
    # If nothing more is given up on in the next minute, that does not mean that all is well.
    assert ALARMS[alarm]["OKActions"] == ([] if alarm == "OutboxDeadLettersAlarm" else topic)
    assert ALARMS[alarm]["AlarmDescription"]


def watched() -> Iterator[tuple[str, str, str, Any]]:
    """Yields each watcher, with namespace, metric and dimensions of what it watches."""
    for alarm, properties in ALARMS.items():
        yield alarm, properties["Namespace"], properties["MetricName"], dimensions(properties)


def dimensions(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {dimension["Name"]: dimension["Value"] for dimension in metric["Dimensions"]}


def check(who: str, namespace: str, metric: str, of: Mapping[str, Any]) -> None:
    """Checks that the metric exists with exactly these dimensions; values are those in the template."""
    if namespace == NAMESPACE:
        assert of.keys() == {"service", "function_name"}, who
        assert metric in METRICS, who
        assert id_of(of["function_name"]) == DEPLOYED[of["service"]], who
        assert metric in emitted(of["service"]), f"{who}: {of['service']} never counts {metric}"
        return
    assert metric in AWS_METRICS[namespace], who
    [(dimension, value)] = of.items()
    if namespace == "AWS/SQS":
        queue, attribute = value["Fn::GetAtt"]
        assert (dimension, attribute) == ("QueueName", "QueueName"), who
        assert queue in QUEUES, who
    else:
        assert dimension == "FunctionName", who
        assert id_of(value) in FUNCTIONS, who


@pytest.mark.parametrize("alarm", ALARMS)
def test_every_alarms_metric_is_emitted(alarm: str) -> None:
    seen = [found for found in watched() if found[0] == alarm]
    assert seen
    for found in seen:
        check(*found)


def subject(of: Mapping[str, Any]) -> str:
    """Returns the queue, the function or the service that a metric is about."""
    if "QueueName" in of:
        return str(of["QueueName"]["Fn::GetAtt"][0])
    return str(of.get("service") or id_of(of["FunctionName"]))


def test_every_fault_that_should_wake_somebody_has_its_alarm() -> None:
    seen = {(namespace, metric, subject(of)) for _, namespace, metric, of in watched()}
    age = "ApproximateAgeOfOldestMessage"
    ends = {name for name, properties in QUEUES.items() if "RedrivePolicy" not in properties}
    assert ends == {name for name in QUEUES if name.endswith("DeadLetterQueue")} | {"FailedInvocationsQueue"}
    assert seen >= {("AWS/SQS", age, queue) for queue in ends}
    assert seen >= {("AWS/Lambda", metric, function) for metric in ("Errors", "Throttles") for function in FUNCTIONS}
    assert seen >= {
        (NAMESPACE, "OldestPendingAge", "relay"),
        (NAMESPACE, "UnknownSubscriptions", "relay"),
        (NAMESPACE, "EventsDeadLettered", "relay"),
        (NAMESPACE, "OpenDeadLetters", "relay"),
        (NAMESPACE, "DeadLettersNotStored", "dead_letter"),
        (NAMESPACE, "BreakerOpen", "relay"),
        (NAMESPACE, "BreakerOpen", "ingestion"),
        (NAMESPACE, "SourceFailures", "ingestion"),
        (NAMESPACE, "UnsubscribedMessages", "ingestion"),
        (NAMESPACE, "MarketSilence", "ingestion"),
        (NAMESPACE, "DecisionsAbandoned", "decision"),
        (NAMESPACE, "VerdictErrors", "gatekeeper"),
        (NAMESPACE, "ActionsExpired", "timers"),
        (NAMESPACE, "ApprovalsWaiting", "timers"),
        (NAMESPACE, "BudgetUsed", "timers"),
        (NAMESPACE, "OperationsStalled", "operations"),
        (NAMESPACE, "OperationsFailed", "operations"),
        (NAMESPACE, "TracesBehind", "trace"),
        (NAMESPACE, "SpansRejected", "trace"),
        (NAMESPACE, "RetentionHeld", "maintenance"),
    }


def test_a_missing_age_raises_the_alarm_like_a_high_one() -> None:
    alarm = ALARMS["OldestPendingAlarm"]
    assert (alarm["MetricName"], alarm["Statistic"], alarm["TreatMissingData"]) == (
        "OldestPendingAge",
        "Maximum",
        "breaching",
    )


ONE_IS_TOO_MANY = (
    "UnknownSubscriptionsAlarm", "UnsubscribedMessagesAlarm", "AbandonedDecisionsAlarm", "VerdictErrorsAlarm",
    "ActionsExpiredAlarm", "ApprovalsWaitingAlarm", "OpenDeadLettersAlarm", "DeadLettersNotStoredAlarm",
    "OperationsStalledAlarm", "OperationsFailedAlarm", "SpansRejectedAlarm", "RetentionHeldAlarm",
)  # fmt: skip


@pytest.mark.parametrize("alarm", ONE_IS_TOO_MANY)
def test_one_is_enough_to_raise_the_alarm(alarm: str) -> None:
    assert (ALARMS[alarm]["Threshold"], ALARMS[alarm]["ComparisonOperator"]) == (0, "GreaterThanThreshold")


REPORTED = {
    "IngestionSilentAlarm": "BreakerOpen", "RelaySilentAlarm": "BreakerOpen", "TimersSilentAlarm": "ApprovalsWaiting",
    "OperationsSilentAlarm": "OperationsActive", "TraceSilentAlarm": "TracesBehind",
}  # fmt: skip
"""Alarms on missing runs, and the metric that each run reports which ends well."""


@pytest.mark.parametrize("alarm", ALARMS)
def test_only_a_function_that_always_reports_is_missed(alarm: str) -> None:
    """An alarm on missing market silence would ring every night, because a closed market reports nothing."""
    missed = ALARMS[alarm]["TreatMissingData"] == "breaching"
    assert missed == (alarm in REPORTED or alarm == "OldestPendingAlarm")
    if alarm in REPORTED:
        properties = ALARMS[alarm]
        assert (properties["MetricName"], properties["Statistic"]) == (REPORTED[alarm], "SampleCount")
        assert (properties["Threshold"], properties["ComparisonOperator"]) == (1, "LessThanThreshold")


def test_the_budgets_alarm_is_raised_at_80_percent() -> None:
    alarm = ALARMS["BudgetUsedAlarm"]
    assert (alarm["Threshold"], alarm["ComparisonOperator"]) == (80, "GreaterThanOrEqualToThreshold")
    assert alarm["Statistic"] == "Maximum"


def test_an_open_market_may_be_silent_for_its_price_delay() -> None:
    assert ALARMS["MarketSilentAlarm"]["Threshold"] == {"Ref": "MarketSilenceSeconds"}
    assert PARAMETERS["MarketSilenceSeconds"]["Default"] >= 20 * 60  # the longest delay of any of Yahoo's exchanges


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("metric", ["Errors", "Throttles"])
def test_an_alarm_about_a_function_is_named_for_it(function: str, metric: str) -> None:
    alarm = ALARMS[f"{function.removesuffix('Function')}{metric}Alarm"]
    assert (alarm["MetricName"], alarm["Statistic"]) == (metric, "Sum")
    assert id_of(dimensions(alarm)["FunctionName"]) == function
    assert alarm["AlarmDescription"].startswith(f"{function} ")


# The dashboard


def substituted(text: str) -> str:
    """Returns the dashboard's text as deployed; each name or attribute is replaced by its reference as JSON."""

    def value(match: re.Match[str]) -> str:
        name, _, attribute = match[1].partition(".")
        assert name in RESOURCES or name in TEMPLATE["Parameters"] or name.startswith("AWS::"), name
        return f"@{name}.{attribute}" if attribute else f"@{name}"

    return re.sub(r"\$\{([^}]+)\}", value, text)


def dashboards() -> list[Any]:
    """Returns the dashboard, and that of the export of traces, which is there where it is."""
    found = of_type("AWS::CloudWatch::Dashboard")
    assert found.keys() == {"Dashboard", "TracesDashboard"}
    # A fixed name would prevent a second stack in the account.
    assert all(properties.keys() == {"DashboardBody"} for properties in found.values())
    return [json.loads(substituted(properties["DashboardBody"]["Fn::Sub"])) for properties in found.values()]


def widgets(kind: str) -> list[dict[str, Any]]:
    return [
        widget["properties"] for dashboard in dashboards() for widget in dashboard["widgets"] if widget["type"] == kind
    ]


def referred(value: str) -> Any:
    """Returns a dimension's value as the template would write it."""
    name, _, attribute = value.removeprefix("@").partition(".")
    if not value.startswith("@"):
        return value
    return {"Fn::GetAtt": [name, attribute]} if attribute else {"Ref": name}


def charts() -> list[dict[str, Any]]:
    return widgets("metric")


def test_every_metric_on_the_dashboard_is_emitted() -> None:
    for chart in charts():
        assert chart["region"] == "@AWS::Region"
        for namespace, metric, *pairs in chart["metrics"]:
            values = [item for item in pairs if isinstance(item, str)]
            of = {key: referred(value) for key, value in zip(values[::2], values[1::2], strict=True)}
            check(chart["title"], namespace, metric, of)


def test_the_dashboard_shows_the_flow_of_events() -> None:
    shown = {metric[1] for chart in charts() for metric in chart["metrics"]}
    assert shown >= {
        "EventsIngested", "OutboxPending", "OldestPendingAge", "EventsPublished", "EventsConsumed", "PublishFailures",
        "EventsDeadLettered", "ConsumeFailures", "SourceFailures", "BreakerOpen", "MarketSilence", "Errors",
        "Throttles", "ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage",
    }  # fmt: skip
    [latency] = [chart for chart in charts() if chart["metrics"][0][1] == "CommitToPublishLatency"]
    assert [metric[-1]["stat"] for metric in latency["metrics"]] == ["p50", "p99"]
    for metric in ("Errors", "Throttles"):
        lines = [line for chart in charts() for line in chart["metrics"] if line[1] == metric]
        assert sorted(line[3].removeprefix("@") for line in lines) == sorted(FUNCTIONS)


def test_the_dashboard_shows_every_alarm() -> None:
    shown = [alarm for widget in widgets("alarm") for alarm in widget["alarms"]]
    assert sorted(shown) == sorted(f"@{alarm}.Arn" for alarm in ALARMS)


@pytest.mark.parametrize("number", range(2))
def test_a_dashboards_widgets_fit_its_24_columns_without_overlap(number: int) -> None:
    taken: set[tuple[int, int]] = set()
    for widget in dashboards()[number]["widgets"]:
        cells = {
            (x, y)
            for x in range(widget["x"], widget["x"] + widget["width"])
            for y in range(widget["y"], widget["y"] + widget["height"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_the_page_lists_what_is_scraped() -> None:
    listed = [(name.strip("`"), kind, labels, means) for name, kind, labels, means in table("scraped")]
    assert listed == [(one.name, one.kind, ", ".join(one.labels) or "–", one.help) for one in SCRAPED]


def test_a_scraped_metric_has_one_of_the_agreed_names_or_our_prefix() -> None:
    agreed = {
        "events_published_total",
        "events_failed_total",
        "events_dead_lettered_total",
        "publish_latency_seconds",
    }
    others = {one.name for one in SCRAPED} - agreed
    assert {one.name for one in SCRAPED} >= agreed
    assert all(name.startswith("acp_") for name in others)
    for one in SCRAPED:
        assert one.name.endswith("_total") == (one.kind == "counter")
        assert one.kind != "histogram" or one.name.endswith("_seconds")
