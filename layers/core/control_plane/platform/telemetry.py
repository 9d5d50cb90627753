"""Structured logs and EMF metrics of one function. Metrics are counted only once the state they report is committed."""

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
"""Of one metric in one line: EMF's limit."""

METRICS: Final = {
    "EventsIngested": MetricUnit.Count,
    "DuplicateEvents": MetricUnit.Count,
    "StaleLooks": MetricUnit.Count,
    "UnsubscribedMessages": MetricUnit.Count,
    "EventsPublished": MetricUnit.Count,
    "PublishFailures": MetricUnit.Count,
    "EventsDeadLettered": MetricUnit.Count,
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
    "ApprovalsRequested": MetricUnit.Count,
    "ActionsReleased": MetricUnit.Count,
}
"""Every metric and its unit; docs/operations.md says what each means."""


class Telemetry:
    """A logger and metrics that share a service name."""

    def __init__(self, service: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.logger = Logger(service=service)
        # What the package logs without a telemetry of its own reads like the function's lines.
        package = logging.getLogger("control_plane")
        package.handlers, package.propagate = self.logger.handlers, False
        self._metrics = Metrics(namespace=NAMESPACE, service=service)
        self._counts: dict[str, float] = {}
        self._measures: dict[str, list[float]] = {}
        self._function_name = ""
        self._monotonic = monotonic
        self._flushed_at = monotonic()

    def check_environment(self) -> None:
        """Raises ConfigurationError where a variable of Powertools' was set to what it cannot be."""
        if ENVIRONMENT_PROBLEMS:
            raise ConfigurationError(ENVIRONMENT_PROBLEMS)

    def is_of(self, function_name: str) -> None:
        """Names the deployed function in every metric: two stacks in one account are told apart by it."""
        self._function_name = function_name

    def count(self, name: str, value: float) -> None:
        """Adds ``value``, in the unit METRICS gives it, to the next flush: counts as their sum, the rest one by one."""
        if METRICS[name] is MetricUnit.Count:
            self._counts[name] = self._counts.get(name, 0) + value
        else:
            self._measures.setdefault(name, []).append(value)

    def flush_at_times(self) -> None:
        """Flushes where that was not done for a second: for work that goes on long."""
        if self._monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was counted since the last flush as EMF, to standard output."""
        self._flushed_at = self._monotonic()
        counts, self._counts = self._counts, {}
        measures, self._measures = self._measures, {}
        if self._function_name:  # Powertools forgets it at each flush
            self._metrics.add_dimension(name="function_name", value=self._function_name)
        for name, value in counts.items():
            self._metrics.add_metric(name=name, unit=METRICS[name], value=value)
        for name, values in measures.items():
            for value in _spread(values):
                self._metrics.add_metric(name=name, unit=METRICS[name], value=value)
        if self._metrics.metric_set:  # empty also after the flush that Powertools makes by itself at 100 values
            self._metrics.flush_metrics()
        else:
            self._metrics.clear_metrics()  # of the dimensions, which that flush leaves


def _spread(values: list[float]) -> list[float]:
    """All values, or MOST_VALUES of them from the least to the greatest, evenly: percentiles stay what they are."""
    if len(values) <= MOST_VALUES:
        return values
    ordered = sorted(values)
    return [ordered[round(index * (len(ordered) - 1) / (MOST_VALUES - 1))] for index in range(MOST_VALUES)]
