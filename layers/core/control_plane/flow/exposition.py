"""GET /metrics: the flow as Prometheus reads it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from psycopg import Connection

from control_plane.flow.counts import (
    Count,
    Example,
    one_snapshot,
    read_bounds,
    read_counts,
    read_examples,
    read_rows,
    read_tuples,
)
from control_plane.flow.metrics import COUNTED, GAUGES, Counted
from control_plane.flow.picture import NEWEST_MESSAGES
from control_plane.ops.status import read_consumer_lag

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

_STATES: Final = ("closed", "open", "half_open")

type Labels = tuple[str, ...]
type Samples = Mapping[str, Mapping[Labels, float]]
"""By gauge and labels, its value."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that the metrics say, at one moment."""

    bounds: Sequence[float]
    counts: Sequence[Count]
    examples: Mapping[tuple[str, str, str, int | None], Example]
    gauges: Samples
    subscriptions: Sequence[str]
    """The active subscriptions: their counters are shown from the beginning, at 0."""

    def collect(self) -> Iterator["Family"]:
        """Yields the metrics, as a registry of prometheus_client does."""
        # Slow to import, and needed here alone.
        from prometheus_client.metrics_core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for metric in COUNTED:
            series = self._series(metric)
            if metric.kind == "counter":
                counter = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
                for labels, counts in series.items():
                    counter.add_metric(labels, sum(one.n for one in counts))
                yield counter
            else:
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, counts in series.items():
                    measured = [one for one in counts if one.bucket is not None]
                    seconds = sum(one.seconds or 0.0 for one in measured)
                    histogram.add_metric(labels, self._buckets(measured), seconds)
                yield histogram
        for name, samples in self.gauges.items():
            gauge = GaugeMetricFamily(name, GAUGES[name].help, labels=GAUGES[name].labels)
            for labels, value in samples.items():
                gauge.add_metric(labels, value)
            yield gauge

    def _series(self, metric: Counted) -> Mapping[Labels, Sequence[Count]]:
        """Returns the counts of each of a metric's series, in the order of their labels."""
        series: dict[Labels, list[Count]] = {}
        if metric.labels == ["subscription"] and metric.stage in {"outbox", "send"}:
            series = {(name,): [] for name in self.subscriptions}
        for count in self.counts:
            if count.stage == metric.stage and count.outcome in metric.outcomes:
                labels = [count.name] * metric.of_name + [count.outcome] * metric.of_outcome
                series.setdefault(tuple(labels), []).append(count)
        return dict(sorted(series.items()))

    def _buckets(self, counts: Sequence[Count]) -> list[Any]:
        """Returns a histogram's buckets, each with all that is below its bound, and with an example."""
        from prometheus_client.samples import Exemplar  # noqa: PLC0415

        bounds = [*map(str, self.bounds), "+Inf"]
        numbers = [0] * len(bounds)
        examples: dict[int, Example] = {}
        for count in counts:
            assert count.bucket is not None
            numbers[count.bucket] += count.n
            if (example := self.examples.get(count.key)) is not None:
                examples[count.bucket] = example
        buckets: list[Any] = []
        for bucket, (bound, number) in enumerate(zip(bounds, accumulate(numbers), strict=True)):
            if (example := examples.get(bucket)) is None:
                buckets.append((bound, number))
            else:
                buckets.append((bound, number, Exemplar({"trace_id": example.trace_id.hex}, example.seconds)))
        return buckets


def read_metrics(connection: Connection[Any], *, with_examples: bool = False) -> Reading:
    """Reads all metrics in one snapshot, at a cost that grows neither with a backlog nor with what is stored.

    ``connection`` is in autocommit mode. Raises psycopg.errors.QueryCanceled if the database takes too long.
    """
    with one_snapshot(connection):
        bounds, counts = read_bounds(connection), read_counts(connection)
        examples = read_examples(connection) if with_examples else {}
        subscriptions = read_rows(connection, "subscriptions")
        lag = {one.subscription: one for one in read_consumer_lag(connection, newest=NEWEST_MESSAGES)}
        decisions = read_tuples(connection, "open_decisions")
        actions = read_tuples(connection, "open_actions")
        ((approvals, oldest_approval),) = read_tuples(connection, "waiting_approvals")
        dead_letters = read_tuples(connection, "open_dead_letters")
        breakers = read_rows(connection, "breakers")
        switches = read_rows(connection, "switches_off")
        operations = read_rows(connection, "operations")
        ((fold_age,),) = read_tuples(connection, "fold_age")
    active = [one["subscription"] for one in subscriptions if one["is_active"]]
    at_work: dict[Labels, float] = {}
    for one in operations:
        at_work[one["kind"], one["state"]] = at_work.get((one["kind"], one["state"]), 0) + 1
    gauges: Samples = {
        "acp_source_last_success_timestamp_seconds": {
            (one.name,): one.newest_at.timestamp()
            for one in counts
            if (one.stage, one.outcome) == ("source", "fetched")
        },
        "acp_outbox_pending": {(one["subscription"],): one["pending"] for one in subscriptions},
        "acp_oldest_pending_age_seconds": {
            (one["subscription"],): max(one["oldest_pending_age_seconds"] or 0.0, 0.0) for one in subscriptions
        },
        "acp_consumer_lag": {(name,): lag[name].count if name in lag else 0 for name in active},
        "acp_consumer_lag_oldest_age_seconds": {
            (name,): lag[name].oldest_age_seconds if name in lag else 0 for name in active
        },
        "acp_dead_letters_open": {(kind,): count for kind, count in dead_letters},
        "acp_breaker_state": {
            (one["name"], state): float(one["state"] == state) for one in breakers for state in _STATES
        },
        "acp_decisions_open": {(playbook,): count for playbook, count, _ in decisions},
        "acp_actions_open": {(action_type,): count for action_type, count, _ in actions},
        "acp_approvals_waiting": {(): approvals},
        "acp_oldest_approval_age_seconds": {(): oldest_approval or 0.0},
        "acp_operations": at_work,
        "acp_operations_stalled": {(): sum(one["is_stalled"] for one in operations)},
        "acp_switches_off": {(): len(switches)},
        "acp_fold_age_seconds": {(): fold_age},
    }
    return Reading(bounds, counts, examples, gauges, active)


def wants_openmetrics(accept: str) -> bool:
    """Tells whether a client's Accept header asks for OpenMetrics; anybody else gets classic text."""
    return "application/openmetrics-text" in {one.partition(";")[0].strip().lower() for one in accept.split(",")}


def render(reading: Reading, *, openmetrics: bool = False) -> tuple[str, str]:
    """Returns the metrics as text, and its content type; only OpenMetrics has examples."""
    # Slow to import, and needed here alone.
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415
    from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics  # noqa: PLC0415

    # Each needs no more of a registry than its collect().
    registry: Any = reading
    if openmetrics:
        text: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
        return text.decode(), "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return generate_latest(registry).decode(), "text/plain; version=0.0.4; charset=utf-8"
