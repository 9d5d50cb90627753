"""The metrics of GET /metrics: what each is called, what it counts and what it means. docs/operations.md lists them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as Prometheus knows it."""

    name: str
    """With ``_total`` where it is a counter."""
    kind: str
    """``counter``, ``histogram`` or ``gauge``."""
    labels: Sequence[str]
    help: str


@dataclass(frozen=True, slots=True)
class Counted(Metric):
    """A counter or histogram, made of counts of one stage.

    Its labels are values of the counts: the first of ``of_name``, the next of ``of_outcome``, whichever there are.
    """

    stage: str = ""
    outcomes: frozenset[str] = frozenset()
    of_name: bool = True
    """Whether a label tells the counts' names apart."""
    of_outcome: bool = False
    """Whether a label tells the counts' outcomes apart."""


def _counted(
    name: str,
    labels: str,
    stage: str,
    outcomes: str,
    help_: str,
    *,
    kind: str = "counter",
    of_name: bool = True,
    of_outcome: bool = False,
) -> Counted:
    return Counted(name, kind, labels.split(), help_, stage, frozenset(outcomes.split()), of_name, of_outcome)


COUNTED: Final = (
    _counted(
        "events_published_total",
        "subscription",
        "outbox",
        "published",
        "Deliveries that the queue accepted.",
    ),
    _counted(
        "events_failed_total",
        "subscription",
        "outbox",
        "failed dead_lettered",
        "Failed attempts to deliver, also those after which a message was dead-lettered.",
    ),
    _counted(
        "events_dead_lettered_total",
        "subscription",
        "outbox",
        "dead_lettered exhausted",
        "Deliveries that were given up on before a queue accepted them.",
    ),
    _counted(
        "publish_latency_seconds",
        "subscription",
        "send",
        "sent",
        "How long the send took that carried a message.",
        kind="histogram",
    ),
    _counted(
        "acp_commit_to_publish_seconds",
        "subscription",
        "outbox",
        "published",
        "From the promise of a delivery until the queue accepted it.",
        kind="histogram",
    ),
    _counted(
        "acp_commit_to_consume_seconds",
        "consumer",
        "consumer",
        "processed",
        "From the storing of an event until its consumer took it; replays are left out.",
        kind="histogram",
    ),
    _counted(
        "acp_deliveries_released_total",
        "subscription",
        "outbox",
        "released",
        "Deliveries that were given back without a verdict of their own, their attempt included.",
    ),
    _counted(
        "acp_leases_lost_total",
        "subscription",
        "outbox",
        "lost",
        "Claims of a delivery whose lease ran out before their relay settled it.",
    ),
    _counted("acp_events_stored_total", "topic", "store", "stored", "Events that were stored."),
    _counted(
        "acp_source_fetches_total",
        "source outcome",
        "source",
        "fetched failed",
        "Fetches of one symbol from a source.",
        of_outcome=True,
    ),
    _counted("acp_events_consumed_total", "consumer", "consumer", "processed", "Events that took effect."),
    _counted(
        "acp_duplicate_deliveries_total",
        "consumer",
        "consumer",
        "duplicate",
        "Deliveries of an event that had taken effect already.",
    ),
    _counted(
        "acp_consume_failures_total", "subscription", "consumer", "failed", "Failures of a consumer on a message."
    ),
    _counted(
        "acp_dead_letters_moved_total",
        "name kind",
        "queue",
        "consumer invocation",
        "Dead letters that were moved out of queues; name is the subscription, or the queue of a failed invocation.",
        of_outcome=True,
    ),
    _counted("acp_decisions_opened_total", "playbook", "decision", "opened", "Decisions that were opened."),
    _counted(
        "acp_decision_proposed_seconds",
        "playbook",
        "decision",
        "proposed",
        "From the opening of a decision until its proposal.",
        kind="histogram",
    ),
    _counted(
        "acp_decision_duration_seconds",
        "playbook state",
        "decision",
        "scored abandoned recorded",
        "From the opening of a decision until its end, by the state in which it ended.",
        kind="histogram",
        of_outcome=True,
    ),
    _counted(
        "acp_agent_call_seconds",
        "agent outcome",
        "agent",
        "answered invalid failed unknown never_started",
        "From the intent of an agent's call until its end.",
        kind="histogram",
        of_outcome=True,
    ),
    _counted(
        "acp_verdicts_total",
        "kind verdict",
        "verdict",
        "permitted needs_approval refused error",
        "Verdicts on proposed actions: binding, shadow (a playbook in shadow), shadow_policy (policies in shadow).",
        of_outcome=True,
    ),
    _counted(
        "acp_approvals_total",
        "outcome",
        "approval",
        "requested given denied",
        "Approvals that people were asked for, gave or denied.",
        of_name=False,
        of_outcome=True,
    ),
    _counted(
        "acp_actions_total",
        "action_type outcome",
        "action",
        "released executed failed",
        "Actions that were released, and what became of them.",
        of_outcome=True,
    ),
)
"""The counters and histograms."""

GAUGES: Final = {
    metric.name: metric
    for metric in (
        Metric(
            "acp_source_last_success_timestamp_seconds",
            "gauge",
            ["source"],
            "When a source last answered a fetch, as a Unix time.",
        ),
        Metric(
            "acp_outbox_pending",
            "gauge",
            ["subscription"],
            "Pending deliveries, counted up to 11,000.",
        ),
        Metric(
            "acp_oldest_pending_age_seconds",
            "gauge",
            ["subscription"],
            "The age of the live flow's oldest pending delivery, 0 without one.",
        ),
        Metric(
            "acp_consumer_lag",
            "gauge",
            ["subscription"],
            "Deliveries among those of the newest 1,000 messages that their consumer has not processed.",
        ),
        Metric(
            "acp_consumer_lag_oldest_age_seconds",
            "gauge",
            ["subscription"],
            "How long ago the oldest of them was delivered, 0 without one.",
        ),
        Metric("acp_dead_letters_open", "gauge", ["kind"], "Open dead letters of each kind, counted up to 1,000."),
        Metric(
            "acp_breaker_state",
            "gauge",
            ["name", "state"],
            "1 for the state that a breaker in use is in: closed, open or half_open.",
        ),
        Metric("acp_decisions_open", "gauge", ["playbook"], "Open decisions, counted up to 10,000."),
        Metric("acp_actions_open", "gauge", ["action_type"], "Actions that are released and not executed."),
        Metric("acp_approvals_waiting", "gauge", [], "Approvals that people are asked for now."),
        Metric(
            "acp_oldest_approval_age_seconds",
            "gauge",
            [],
            "How long the oldest of them has waited, 0 without one.",
        ),
        Metric(
            "acp_operations",
            "gauge",
            ["kind", "state"],
            "Operations that are under way, or failed within a day.",
        ),
        Metric(
            "acp_operations_stalled",
            "gauge",
            [],
            "Operations that should be at work and have made no step for five minutes.",
        ),
        Metric("acp_switches_off", "gauge", [], "Switches that are off."),
        Metric(
            "acp_fold_age_seconds",
            "gauge",
            [],
            "The age of the oldest count that is not folded yet; above 300, OperationsFunction does not fold.",
        ),
    )
}
"""The gauges, by name."""

METRICS: Final[Sequence[Metric]] = (*COUNTED, *GAUGES.values())
