"""Metrics as CloudWatch's Embedded Metric Format reads them from standard output."""

import json
import statistics
from typing import Any

import pytest

from control_plane.platform.telemetry import METRICS, Telemetry

# https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html


def flushed(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    telemetry.flush()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_flush_writes_one_json_line_with_namespace_and_units(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry.count("EventsPublished", 2)
    telemetry.count("EventsPublished", 3)
    telemetry.count("PublishLatency", 12.5)
    telemetry.count("OldestPendingAge", 0)

    (line,) = flushed(telemetry, capsys)

    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "ControlPlane"
    assert directive["Dimensions"] == [["service"]]
    assert directive["Metrics"] == [
        {"Name": "EventsPublished", "Unit": "Count"},
        {"Name": "PublishLatency", "Unit": "Milliseconds"},
        {"Name": "OldestPendingAge", "Unit": "Seconds"},
    ]
    assert line["service"] == "test"
    assert (line["EventsPublished"], line["PublishLatency"], line["OldestPendingAge"]) == ([5.0], [12.5], [0.0])
    assert isinstance(line["_aws"]["Timestamp"], int)


def test_every_metric_has_the_functions_name(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.is_of("stack-a-RelayFunction-1")
    for _ in range(2):
        for value in range(100):  # so many that Powertools writes them out before it is told to
            telemetry.count("PublishLatency", value)
        telemetry.count("EventsPublished", 1)
        lines = flushed(telemetry, capsys)
        assert lines
        for line in lines:
            (directive,) = line["_aws"]["CloudWatchMetrics"]
            assert [set(dimensions) for dimensions in directive["Dimensions"]] == [{"service", "function_name"}]
            assert (line["service"], line["function_name"]) == ("test", "stack-a-RelayFunction-1")


def test_a_flush_starts_from_nothing_again(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.count("EventsPublished", 1)
    assert len(flushed(telemetry, capsys)) == 1
    assert flushed(telemetry, capsys) == []
    telemetry.count("LeaseLost", 1)
    (line,) = flushed(telemetry, capsys)
    assert "EventsPublished" not in line


@pytest.mark.parametrize("values", [99, 100, 101, 200, 250])
def test_too_many_values_are_reduced_to_percentiles(
    values: int, telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in range(values):
        telemetry.count("PublishLatency", value)
        telemetry.count("EventsPublished", 1)
    lines = flushed(telemetry, capsys)
    kept = [value for line in lines for value in line.get("PublishLatency", ())]
    assert len(kept) == min(values, 100)  # EMF's limit
    assert (min(kept), max(kept)) == (0, values - 1)
    assert statistics.median(kept) == pytest.approx((values - 1) / 2, abs=1)
    assert sum(sum(line.get("EventsPublished", ())) for line in lines) == values


def test_every_metric_of_the_design_has_its_unit(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(METRICS) == {
        "EventsIngested", "DuplicateEvents", "EventsPublished", "PublishFailures", "EventsDeadLettered",
        "PublishLatency", "CommitToPublishLatency", "OutboxPending", "OldestPendingAge", "SourceFailures",
        "LeaseLost", "BreakerOpen", "DeliveryRetries", "RelayDuration", "OpenSymbols", "MarketSilence",
        "EventsConsumed", "DuplicateDeliveries", "ConsumeFailures", "MigrationsApplied",
        "StaleLooks", "UnsubscribedMessages", "UnknownSubscriptions", "UnauthorizedRequests",
        "DecisionsOpened", "DecisionsClosed", "DecisionsAbandoned", "DecisionDuration", "AgentCallsLost", "AgentCalls",
        "AgentCallFailures", "AgentCostMicros",
        "VerdictsPermitted", "VerdictsRefused", "VerdictErrors", "ApprovalsRequested", "ActionsReleased",
        "ShadowVerdicts", "ShadowDifferences", "ShadowErrors",
        "ActionsExpired", "ApprovalsWaiting", "OldestApprovalAge", "BudgetUsed",
        "OperationsActive", "OperationsStalled", "OperationsFinished", "OperationsFailed", "RetentionHeld",
        "DeadLettersStored", "DeadLettersNotStored", "OpenDeadLetters",
        "SpansExported", "SpansRejected", "TraceExportFailures", "TracesBehind",
    }  # fmt: skip
    for name in METRICS:
        telemetry.count(name, 1)
    (line,) = flushed(telemetry, capsys)
    units = {metric["Name"]: metric["Unit"] for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    latencies = {"PublishLatency", "CommitToPublishLatency", "RelayDuration", "DecisionDuration"}
    assert {name for name, unit in units.items() if unit == "Milliseconds"} == latencies
    ages = {"OldestPendingAge", "MarketSilence", "OldestApprovalAge", "TracesBehind"}
    assert {name for name, unit in units.items() if unit == "Seconds"} == ages
    shares = {"BudgetUsed"}
    assert {name for name, unit in units.items() if unit == "Percent"} == shares
    assert {name for name, unit in units.items() if unit == "Count"} == set(METRICS) - latencies - ages - shares


def test_a_metric_nobody_declared_is_refused(telemetry: Telemetry) -> None:
    with pytest.raises(KeyError, match="Surprises"):
        telemetry.count("Surprises", 1)
