"""Renders the pipeline's status, for people and for scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from local_cloud.visible import shown, visible

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rich.console import RenderableType

    from control_plane.ops.status import DeliveryCount, PipelineStatus
    from control_plane.platform.breakers import Breaker
    from drills.record import DrillRecord
    from local_cloud.queues import QueueDepth

STATES = ("pending", "in_flight", "retrying", "delivered", "dead_lettered")
_OPEN = ("pending", "in_flight", "retrying")
_LATE_SECONDS = 180
"""The seconds of three runs of a relay that starts every minute."""
_NAMED = 3
"""How many dead letters the headline names."""
_SYSTEM_EVENTS = {
    "SOURCE_FETCH_FAILED": "source failures",
    "SIGNAL_REJECTED": "rejected",
    "SOURCE_GAP_DETECTED": "gaps",
}


@dataclass(frozen=True, slots=True)
class Report:
    """The local cloud and its pipeline at one moment. `services` says where each service is."""

    services: Mapping[str, str]
    pipeline: PipelineStatus
    queues: Sequence[QueueDepth]
    relay_subscriptions: Collection[str] = field(default=())
    """The subscriptions that the deployed relay has a queue for."""
    drill: DrillRecord | None = None
    """A drill that is under way, or was interrupted."""

    @property
    def problems(self) -> list[str]:
        """Returns what a person should look at; empty if all is well."""
        problems = []
        if self.drill is not None:
            problems.append(self.drill.problem)
        if dead := self.pipeline.count("dead_lettered"):
            problems.append(self._dead_letters_problem(dead))
        age = self.pipeline.oldest_pending_age_seconds
        if age > _LATE_SECONDS:
            problems.append(f"the oldest pending message is {duration(age)} old")
        problems += [
            f"{lag.count} delivered to {lag.subscription} and not processed, the oldest "
            f"{duration(lag.oldest_age_seconds)} ago: scripts/acp trace {lag.oldest_event_id}, "
            f"scripts/acp logs {lag.subscription.replace('_', '-')}"
            for lag in self.pipeline.consumer_lag
            if lag.oldest_age_seconds > _LATE_SECONDS
        ]
        problems += map(str, self.pipeline.stranded)
        problems += [
            f"{count} pending for {name}, which the relay has no queue for: name it in the template's "
            "SUBSCRIPTION_QUEUE_URLS, and deploy it"
            for name, count in self._unknown_to_the_relay().items()
        ]
        if holder := self.pipeline.pinned_horizon:
            problems.append(str(holder))
        problems += [breaker_problem(breaker) for breaker in self.pipeline.open_breakers]
        problems += [operation.problem for operation in self.pipeline.operations if operation.problem is not None]
        problems += [
            f"{queue.visible + queue.in_flight} in {queue.name}"
            for queue in self.queues
            if ("DeadLetter" in queue.name or "Failed" in queue.name) and queue.visible + queue.in_flight
        ]
        return problems

    def _dead_letters_problem(self, count: int) -> str:
        """Returns a sentence: the newest dead letters with their reasons, how many more there are, and the remedy."""
        said = f"{count} dead {'letter' if count == 1 else 'letters'}"
        named = self.pipeline.dead_letters[:_NAMED]
        if not named:
            return f"{said}: scripts/acp dead-letters"
        reasons = [f"{letter.id} for {letter.subscription}: {letter.reason}" for letter in named]
        if count > len(named):
            reasons.append(f"and {count - len(named)} more, see scripts/acp dead-letters")
        ids = " ".join(str(letter.id) for letter in named)
        return f"{said} ({'; '.join(reasons)}). Once the cause is mended: scripts/acp redrive {ids}"

    @property
    def source_failures(self) -> int:
        """Returns how many fetches have failed since the database was made."""
        return self._count_events("SOURCE_FETCH_FAILED")

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values, except datetimes."""
        return {
            "status": "degraded" if self.problems else "ok",
            "problems": self.problems,
            "services": dict(self.services),
            "outbox": {
                **{state: self.pipeline.count(state) for state in STATES},
                "open": self.pipeline.pending,
                "oldest_pending_age_seconds": self.pipeline.oldest_pending_age_seconds,
            },
            "source_failures": self.source_failures,
            "subscriptions": {
                name: {"topic": rows[0].topic, **{state: self.pipeline.count(state, name) for state in STATES}}
                for name, rows in self._by_subscription().items()
            },
            "queues": {queue.name: {"visible": queue.visible, "in_flight": queue.in_flight} for queue in self.queues},
            **{
                key: self.pipeline.to_dict()[key]
                for key in (
                    "deliveries",
                    "consumer_lag",
                    "stranded",
                    "dead_letters",
                    "events",
                    "consumers",
                    "breakers",
                    "lingering_relay",
                    "operations",
                )
            },
        }

    def render(self) -> RenderableType:
        """Prints the report for a terminal."""
        parts: list[RenderableType] = [self._headline(), self._services(), self._outbox()]
        if self.pipeline.dead_letters:
            parts.append(self._dead_letters())
        parts += [self._events(), self._queues()]
        return Group(*(line for part in parts for line in (part, "")))

    def _headline(self) -> Text:
        if self.problems:
            problems = (f"- {visible(problem)}" for problem in self.problems)
            return Text("\n".join(["degraded:", *problems]), style="yellow")
        return Text("All is well.", style="green")

    def _services(self) -> Table:
        table = _table("Service", "")
        for name, where in self.services.items():
            table.add_row(shown(name), shown(where))
        if relay := self.pipeline.lingering_relay:
            # A log stream's name is long, and relays differ in its end; --json has the whole name.
            name = relay.name.rpartition("]")[2][:12]
            table.add_row("lingering relay", f"{shown(name)}, since {relay.since.astimezone(UTC):%H:%M:%S}Z")
        return table

    def _outbox(self) -> Table:
        lag = {each.subscription: each.count for each in self.pipeline.consumer_lag}
        names = ("pending", "in flight", "retrying", "delivered", "lag", "dead", "oldest")
        table = _table("Subscription", *names, numbers_from=1)
        recording = {consumer.consumer for consumer in self.pipeline.consumers}
        for name, rows in self._by_subscription().items():
            ages = [row.oldest_age_seconds or 0.0 for row in rows if row.state in _OPEN]
            counts = [str(self.pipeline.count(state, name)) for state in STATES]
            # If a consumer records nothing, its lag is not known.
            counts.insert(4, str(lag.get(name, 0)) if name in recording else "–")
            table.add_row(shown(name), *counts, duration(max(ages)) if ages else "–")
        return table

    def _dead_letters(self) -> RenderableType:
        """Returns lines with the newest dead letters and their reasons, and the commands for more."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("Dead letter", "subscription", "age", "reason"):
            table.add_column(column, no_wrap=column != "reason", overflow="fold")
        for letter in self.pipeline.dead_letters:
            table.add_row(
                str(letter.id), shown(letter.subscription), duration(letter.age_seconds), shown(letter.reason)
            )
        return Group(table, "[dim]scripts/acp dead-letters lists them, scripts/acp redrive ID… sends them again[/]")

    def _by_subscription(self) -> Mapping[str, Sequence[DeliveryCount]]:
        found: dict[str, list[DeliveryCount]] = {}
        for row in self.pipeline.deliveries:
            found.setdefault(row.subscription, []).append(row)
        return found

    def _unknown_to_the_relay(self) -> Mapping[str, int]:
        """Returns the active subscriptions with pending deliveries for which the deployed relay has no queue."""
        stranded = {each.subscription for each in self.pipeline.stranded}
        counts = {
            name: sum(self.pipeline.count(state, name) for state in _OPEN)
            for name in self._by_subscription()
            if name not in stranded and name not in self.relay_subscriptions
        }
        return {name: count for name, count in counts.items() if count}

    def _events(self) -> Table:
        table = _table("Events", "source", "stored", "newest", numbers_from=2)
        for row in self.pipeline.events:
            name = _SYSTEM_EVENTS.get(row.event_type)
            table.add_row(
                shown(row.event_type) + (f" ({name})" if name else ""),
                shown(row.source),
                str(row.count),
                f"{row.newest_ingested_at:%H:%M:%S}Z",
            )
        for consumer in self.pipeline.consumers:
            table.add_row(
                "processed", shown(consumer.consumer), str(consumer.count), f"{consumer.newest_processed_at:%H:%M:%S}Z"
            )
        return table

    def _queues(self) -> Table:
        table = _table("Queue", "waiting", "in flight", numbers_from=1)
        for queue in self.queues:
            table.add_row(shown(queue.name), str(queue.visible), str(queue.in_flight))
        return table

    def _count_events(self, event_type: str) -> int:
        return sum(row.count for row in self.pipeline.events if row.event_type == event_type)


def duration(seconds: float) -> str:
    """Returns an age as people say it: 4 s, 3 min, 2 h, 5 d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def breaker_problem(breaker: Breaker) -> str:
    """Returns a sentence about a breaker that is not closed: since when, who holds it or what comes next, its error."""
    assert breaker.opened_at is not None, "the schema says so"
    state, outlook = breaker.state.replace("_", "-"), ""
    if breaker.held_by is not None:
        state = f"held open by {breaker.held_by}"
    elif breaker.probe_is_due:
        outlook = ", the next run probes it"
    elif breaker.retry_in_seconds is not None:
        wait = duration(breaker.retry_in_seconds)
        outlook = f", next probe in {wait}" if breaker.state == "open" else f", being probed, again in {wait}"
    reason = f", because: {breaker.held_reason}" if breaker.held_reason else ""
    reason += f", last error: {breaker.last_error}" if breaker.last_error else ""
    since = f"{breaker.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return f"the breaker of {breaker.name} has been {state} since {since}{outlook}{reason}"


def _table(*columns: str, numbers_from: int | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        right = numbers_from is not None and index >= numbers_from
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    return table
