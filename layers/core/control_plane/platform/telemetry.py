"""Structured logs and EMF metrics of one function. Metrics are counted only once the state they report is committed."""

from typing import Final

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

NAMESPACE: Final = "ControlPlane"

METRICS: Final = {
    "EventsIngested": MetricUnit.Count,
    "DuplicateEvents": MetricUnit.Count,
    "EventsPublished": MetricUnit.Count,
    "PublishFailures": MetricUnit.Count,
    "EventsDeadLettered": MetricUnit.Count,
    "PublishLatency": MetricUnit.Milliseconds,
    "CommitToPublishLatency": MetricUnit.Milliseconds,
    "OutboxPending": MetricUnit.Count,
    "OldestPendingAge": MetricUnit.Seconds,
    "SourceFailures": MetricUnit.Count,
    "LeaseLost": MetricUnit.Count,
    "BreakerOpen": MetricUnit.Count,
    "DeliveryRetries": MetricUnit.Count,
    "RelayDuration": MetricUnit.Milliseconds,
    "EventsConsumed": MetricUnit.Count,
    "DuplicateDeliveries": MetricUnit.Count,
    "ConsumeFailures": MetricUnit.Count,
    "MigrationsApplied": MetricUnit.Count,
}
"""Every metric and its unit; docs/operations.md says what each means."""


class Telemetry:
    """A logger and metrics that share a service name."""

    def __init__(self, service: str) -> None:
        self.logger = Logger(service=service)
        self._metrics = Metrics(namespace=NAMESPACE, service=service)

    def count(self, name: str, value: float) -> None:
        """Adds ``value``, in the unit METRICS gives it, to the next flush."""
        self._metrics.add_metric(name=name, unit=METRICS[name], value=value)

    def flush(self) -> None:
        """Writes what was counted since the last flush as EMF, to standard output."""
        if self._metrics.metric_set:  # empty also after the flush that Powertools makes by itself at 100 values
            self._metrics.flush_metrics()
