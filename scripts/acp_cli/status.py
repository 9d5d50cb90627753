"""How the pipeline is, for people and for scripts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from control_plane.ops.status import PipelineStatus
    from control_plane.platform.breakers import Breaker
    from drills.record import DrillRecord
    from local_cloud.queues import QueueDepth

STATES = ("pending", "in_flight", "retrying", "delivered", "dead_lettered")
_LATE_SECONDS = 180
"""Three runs of a relay that starts every minute."""
_SYSTEM_EVENTS = {
    "SOURCE_FETCH_FAILED": "source failures",
    "SIGNAL_REJECTED": "rejected",
    "SOURCE_GAP_DETECTED": "gaps",
}


@dataclass(frozen=True, slots=True)
class Report:
    """All of it at one moment. `services` says of each service where it is."""

    services: Mapping[str, str]
    pipeline: PipelineStatus
    queues: Sequence[QueueDepth]
    drill: DrillRecord | None = None
    """One that is under way, or was cut off."""

    @property
    def problems(self) -> list[str]:
        """What a person should look at; empty where all is well."""
        problems = []
        if self.drill is not None:
            problems.append(self.drill.problem)
        if dead := self.pipeline.count("dead_lettered"):
            problems.append(f"{dead} dead-lettered in the outbox")
        age = self.pipeline.oldest_pending_age_seconds
        if age > _LATE_SECONDS:
            problems.append(f"the oldest pending promise is {duration(age)} old")
        if holder := self.pipeline.pinned_horizon:
            problems.append(str(holder))
        problems += [breaker_problem(breaker) for breaker in self.pipeline.breakers if not breaker.is_closed]
        problems += [
            f"{queue.visible + queue.in_flight} in {queue.name}"
            for queue in self.queues
            if ("DeadLetter" in queue.name or "Failed" in queue.name) and queue.visible + queue.in_flight
        ]
        return problems

    @property
    def source_failures(self) -> int:
        """Fetches that failed, since the database began."""
        return self._count_events("SOURCE_FETCH_FAILED")

    def to_dict(self) -> dict[str, Any]:
        """As JSON, but for datetimes."""
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
            "relay_on_duty": self.pipeline.to_dict()["relay_on_duty"],
            "queues": {queue.name: {"visible": queue.visible, "in_flight": queue.in_flight} for queue in self.queues},
            **{key: self.pipeline.to_dict()[key] for key in ("promises", "events", "consumers", "breakers")},
        }

    def render(self) -> RenderableType:
        """For a terminal."""
        return Group(self._headline(), "", self._services(), "", self._outbox(), "", self._events(), "", self._queues())

    def _headline(self) -> Text:
        if self.problems:
            return Text("degraded: " + "; ".join(self.problems), style="yellow")
        return Text("All is well.", style="green")

    def _services(self) -> Table:
        table = _table("Service", "")
        for name, where in self.services.items():
            table.add_row(name, where)
        if relay := self.pipeline.relay_on_duty:
            # A log stream's name is long, and tells relays apart by its end; --json has it whole.
            name = relay.name.rpartition("]")[2][:12]
            table.add_row("relay on duty", f"{name}, since {relay.since.astimezone(UTC):%H:%M:%S}Z")
        return table

    def _outbox(self) -> Table:
        table = _table("Outbox", *(state.replace("_", " ") for state in STATES), "oldest open", numbers_from=1)
        for topic in sorted({row.topic for row in self.pipeline.promises}):
            ages = [
                row.oldest_age_seconds
                for row in self.pipeline.promises
                if row.topic == topic and row.state in {"pending", "in_flight", "retrying"}
            ]
            counts = (self.pipeline.count(state, topic) for state in STATES)
            table.add_row(topic, *map(str, counts), duration(max(ages)) if ages else "–")
        return table

    def _events(self) -> Table:
        table = _table("Events", "source", "stored", "newest", numbers_from=2)
        for row in self.pipeline.events:
            name = _SYSTEM_EVENTS.get(row.event_type)
            table.add_row(
                row.event_type + (f" ({name})" if name else ""),
                row.source,
                str(row.count),
                f"{row.newest_ingested_at:%H:%M:%S}Z",
            )
        for consumer in self.pipeline.consumers:
            table.add_row(
                "processed", consumer.consumer, str(consumer.count), f"{consumer.newest_processed_at:%H:%M:%S}Z"
            )
        return table

    def _queues(self) -> Table:
        table = _table("Queue", "waiting", "in flight", numbers_from=1)
        for queue in self.queues:
            table.add_row(queue.name, str(queue.visible), str(queue.in_flight))
        return table

    def _count_events(self, event_type: str) -> int:
        return sum(row.count for row in self.pipeline.events if row.event_type == event_type)


def duration(seconds: float) -> str:
    """The age of something, as a person says it: 4 s, 3 min, 2 h, 5 d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def breaker_problem(breaker: Breaker) -> str:
    """Of a breaker that is not closed: since when, who holds it or when it is tried again, and the last error."""
    assert breaker.opened_at is not None, "the schema says so"
    state, outlook = breaker.state.replace("_", "-"), ""
    if breaker.held_by is not None:
        state = f"held open by {breaker.held_by}"
    elif breaker.probe_is_due:
        outlook = ", the next run probes it"
    elif breaker.retry_in_seconds is not None:
        wait = duration(breaker.retry_in_seconds)
        outlook = f", next probe in {wait}" if breaker.state == "open" else f", being probed, again in {wait}"
    reason = f", last error: {breaker.last_error}" if breaker.last_error else ""
    since = f"{breaker.opened_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    return f"the breaker of {breaker.name} has been {state} since {since}{outlook}{reason}"


def _table(*columns: str, numbers_from: int | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        right = numbers_from is not None and index >= numbers_from
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    return table
