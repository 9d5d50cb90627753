"""Structured logs and EMF metrics of one function. A metric is counted only once the state it reports is committed."""

import logging
import time
from collections.abc import Callable
from typing import Final

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

from control_plane.model.errors import ConfigurationError
from control_plane.platform import ENVIRONMENT_PROBLEMS

NAMESPACE: Final = "ControlPlane"

FLUSH_SECONDS: Final = 1.0
MOST_VALUES: Final = 100
"""The most values of one metric in one line: EMF's limit."""

METRICS: Final = {
    "EventsIngested": MetricUnit.Count,
    "DuplicateEvents": MetricUnit.Count,
    "StaleLooks": MetricUnit.Count,
    "UnsubscribedMessages": MetricUnit.Count,
    "EventsPublished": MetricUnit.Count,
    "PublishFailures": MetricUnit.Count,
    "EventsDeadLettered": MetricUnit.Count,
    "OpenDeadLetters": MetricUnit.Count,
    "DeadLettersStored": MetricUnit.Count,
    "DeadLettersNotStored": MetricUnit.Count,
    "PublishLatency": MetricUnit.Milliseconds,
    "CommitToPublishLatency": MetricUnit.Milliseconds,
    "OutboxPending": MetricUnit.Count,
    "OldestPendingAge": MetricUnit.Seconds,
    "SourceFailures": MetricUnit.Count,
    "OpenSymbols": MetricUnit.Count,
    "MarketSilence": MetricUnit.Seconds,
    "LeaseLost": MetricUnit.Count,
    "BreakerOpen": MetricUnit.Count,
    "DeliveryRetries": MetricUnit.Count,
    "RelayDuration": MetricUnit.Milliseconds,
    "EventsConsumed": MetricUnit.Count,
    "DuplicateDeliveries": MetricUnit.Count,
    "ConsumeFailures": MetricUnit.Count,
    "UnknownSubscriptions": MetricUnit.Count,
    "DecisionsOpened": MetricUnit.Count,
    "DecisionsClosed": MetricUnit.Count,
    "DecisionsAbandoned": MetricUnit.Count,
    "DecisionDuration": MetricUnit.Milliseconds,
    "AgentCallsLost": MetricUnit.Count,
    "AgentCalls": MetricUnit.Count,
    "AgentCallFailures": MetricUnit.Count,
    "AgentCostMicros": MetricUnit.Count,
    "MigrationsApplied": MetricUnit.Count,
    "UnauthorizedRequests": MetricUnit.Count,
    "VerdictsPermitted": MetricUnit.Count,
    "VerdictsRefused": MetricUnit.Count,
    "VerdictErrors": MetricUnit.Count,
    "ShadowVerdicts": MetricUnit.Count,
    "ShadowDifferences": MetricUnit.Count,
    "ShadowErrors": MetricUnit.Count,
    "ApprovalsRequested": MetricUnit.Count,
    "ActionsReleased": MetricUnit.Count,
    "ActionsExpired": MetricUnit.Count,
    "ApprovalsWaiting": MetricUnit.Count,
    "OldestApprovalAge": MetricUnit.Seconds,
    "BudgetUsed": MetricUnit.Percent,
    "OperationsActive": MetricUnit.Count,
    "OperationsStalled": MetricUnit.Count,
    "OperationsFinished": MetricUnit.Count,
    "OperationsFailed": MetricUnit.Count,
    "SpansExported": MetricUnit.Count,
    "SpansRejected": MetricUnit.Count,
    "TraceExportFailures": MetricUnit.Count,
    "TracesBehind": MetricUnit.Seconds,
    "RetentionHeld": MetricUnit.Count,
}
"""Every metric and its unit; docs/operations.md says what each means."""


class Telemetry:
    """A logger and metrics that share a service name."""

    def __init__(self, service: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.logger = Logger(service=service)
        # Lines that the package logs without a telemetry of its own look like the function's lines.
        package = logging.getLogger("control_plane")
        package.handlers, package.propagate = self.logger.handlers, False
        self._metrics = Metrics(namespace=NAMESPACE, service=service)
        self._counts: dict[str, float] = {}
        self._measures: dict[str, list[float]] = {}
        self._function_name = ""
        self._monotonic = monotonic
        self._flushed_at = monotonic()

    def check_environment(self) -> None:
        """Raises ConfigurationError if a variable that Powertools reads has an impossible value."""
        if ENVIRONMENT_PROBLEMS:
            raise ConfigurationError(ENVIRONMENT_PROBLEMS)

    def is_of(self, function_name: str) -> None:
        """Names the deployed function in every metric, so that two stacks in one account can be told apart."""
        self._function_name = function_name

    def count(self, name: str, value: float) -> None:
        """Adds ``value`` to the next flush, in the unit of METRICS. Counts are summed; other values are all kept."""
        if METRICS[name] is MetricUnit.Count:
            self._counts[name] = self._counts.get(name, 0) + value
        else:
            self._measures.setdefault(name, []).append(value)

    def flush_at_times(self) -> None:
        """Flushes if the last flush was more than a second ago; for work that goes on for long."""
        if self._monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was counted since the last flush as EMF, to standard output."""
        self._flushed_at = self._monotonic()
        counts, self._counts = self._counts, {}
        measures, self._measures = self._measures, {}
        if self._function_name:  # Powertools forgets it at each flush.
            self._metrics.add_dimension(name="function_name", value=self._function_name)
        for name, value in counts.items():
            self._metrics.add_metric(name=name, unit=METRICS[name], value=value)
        for name, values in measures.items():
            for value in _spread(values):
                self._metrics.add_metric(name=name, unit=METRICS[name], value=value)
        if self._metrics.metric_set:  # It is also empty after Powertools flushed by itself, at 100 values.
            self._metrics.flush_metrics()
        else:
            self._metrics.clear_metrics()  # This removes dimensions that such a flush leaves.


def _spread(values: list[float]) -> list[float]:
    """Returns all values, or MOST_VALUES of them in order of size, evenly chosen, so that percentiles stay the same."""
    if len(values) <= MOST_VALUES:
        return values
    ordered = sorted(values)
    return [ordered[round(index * (len(ordered) - 1) / (MOST_VALUES - 1))] for index in range(MOST_VALUES)]
