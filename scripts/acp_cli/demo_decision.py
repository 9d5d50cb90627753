"""The demo's second half: what was decided about an unusual day, or why nothing was to be decided."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg.rows import dict_row

from acp_cli.anomaly_commands import described
from acp_cli.decision_tree import rendered
from acp_cli.pipeline_commands import QUERIES
from control_plane.decisions.reading import list_decisions, read_tree
from local_cloud import database
from local_cloud.errors import AcpError
from local_cloud.functions import function_name
from local_cloud.market import StartDay, real_day
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control_plane.decisions.reading import DecisionSummary
    from local_cloud.cloud import Cloud
    from local_cloud.progress import Progress, Step
    from local_cloud.run_state import RunState

DEFAULT_DAY = "2008-09-26"
"""The day before all symbols fell at once."""
_MINUTE = timedelta(minutes=1)
_LIMIT = timedelta(seconds=300)
"""How long after its bars are closed a day's decision may take to come to rest."""
_PUSH_SECONDS = 15.0
_MOST = 1_000
_UNDER_WAY = frozenset({
    "opened", "gathering", "hypothesising", "scoring", "simulating", "proposed", "approved", "released",
})  # fmt: skip
_FOR_NEWCOMERS = """\
How to read it: prices came in, one of them was unusual, and so a decision was
opened. Agents said what had happened and what it may cost; what could be done
was simulated; one option was proposed; the gatekeeper judged it by schema,
evidence and policy. Nothing gets out without its verdict, and every line below
is on record."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the database says of the first two replayed days at one moment."""

    since: datetime
    """The minute that has the first of these days."""
    newest: datetime | None
    """The newest bar that the detector has seen."""
    unseen: int
    """Events that the detector is still to see."""
    anomalies: Sequence[Mapping[str, Any]]
    decisions: Sequence[DecisionSummary]

    @classmethod
    def within(
        cls,
        since: datetime,
        newest: datetime | None,
        unseen: int,
        anomalies: Sequence[Mapping[str, Any]],
        decisions: Sequence[DecisionSummary],
    ) -> Self:
        """Leaves out other days: what is shown would otherwise depend on when it is looked."""
        last = since + _MINUTE
        return cls(
            since,
            newest,
            unseen,
            [one for one in anomalies if since <= one["occurred_at"] <= last],
            [one for one in decisions if since <= one.occurred_at <= last],
        )

    @property
    def is_seen(self) -> bool:
        """Whether the detector has seen the first two days whole."""
        return self.newest is not None and self.newest >= self.since + _MINUTE and not self.unseen

    @property
    def detected(self) -> Sequence[Mapping[str, Any]]:
        """The anomalies that stand, the most unusual first."""
        found = [anomaly for anomaly in self.anomalies if anomaly["state"] == "detected"]
        return sorted(found, key=lambda anomaly: -abs(anomaly["score"]))

    @property
    def decision(self) -> DecisionSummary | None:
        """The decision on the most unusual bar; of one that turned out to be usual if there is no other."""
        wanted = [(one["entity_id"], one["occurred_at"], one["kind"]) for one in self.detected]
        found = {(one.entity_id, one.occurred_at, one.anomaly_kind): one for one in self.decisions}
        return found.get(wanted[0]) if wanted else next(iter(found.values()), None)

    @property
    def is_done(self) -> bool:
        """Whether there is something to show: a decision that rests, or that there is none."""
        decision = self.decision
        if not self.is_seen or (self.detected and decision is None):
            return False
        return decision is None or decision.state not in _UNDER_WAY

    def __str__(self) -> str:
        decision = self.decision
        if decision is not None:
            return f"{decision.entity_id} {decision.anomaly_kind}: {decision.state}"
        if not self.is_seen:
            return f"the bars until {self.since + _MINUTE:%H:%M} UTC are awaited"
        return f"no decision on {len(self.detected)} anomalies yet" if self.detected else "there is nothing to decide"


def show_decision(cloud: Cloud, run: RunState, progress: Progress, *, stays: bool) -> None:
    """Waits for the decision on the day that the replay started at, and prints it. Raises AcpError where none comes."""
    assert run.market_from is not None, "the replay started at a day"
    start = StartDay(run.market_from, run.market_from_at)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run), autocommit=True) as connection:
        with progress.step(f"A decision on the days from {start.day} on") as step:
            look = _wait(connection, cloud, run, start, step)
            step.note = str(look)
        tree = None if look.decision is None else read_tree(connection, look.decision.decision_id)
    console = Terminal()
    if tree is None:
        console.print("\n" + "\n".join(_why_none(look, start)), soft_wrap=True)
        return
    facts = tree.facts
    day = real_day(start, facts["occurred_at"])
    console.print(f"\n{_FOR_NEWCOMERS}\n")
    console.print(f"[dim]The bar of {facts['occurred_at']:%H:%M} UTC is that of {day}.[/]")
    for line in rendered(tree):
        console.print(line, soft_wrap=True)
    if stays:
        progress.say(f"\n{_next(facts['state'], str(facts['decision_id'])[:8])}")


def _wait(connection: psycopg.Connection[Any], cloud: Cloud, run: RunState, start: StartDay, step: Step) -> Look:
    since = datetime.fromisoformat(start.at).astimezone(UTC).replace(second=0, microsecond=0)
    closed = since + 2 * _MINUTE
    deadline = max(datetime.now(UTC), closed) + _LIMIT
    pushed = 0.0
    while True:
        look = _look(connection, since)
        step.update(str(look))
        if look.is_done:
            return look
        now = datetime.now(UTC)
        if now > deadline:
            msg = f"Nothing is decided {_LIMIT.seconds} s after the days' bars were closed: {look}."
            raise AcpError(
                msg, details=cloud.emulator(run).log_tail(), remedy="Run scripts/acp up and scripts/acp logs decision."
            )
        cloud.running()
        # Nobody waits for the next minute of the schedules.
        if now > closed and time.monotonic() - pushed > _PUSH_SECONDS:
            pushed = time.monotonic()
            if not look.is_seen:
                cloud.aws(run).invoke(function_name(cloud.outputs(run), "ingestion"), {})
            cloud.aws(run).invoke(function_name(cloud.outputs(run), "relay"), {"linger_seconds": 0})
        time.sleep(0.5)


def _look(connection: psycopg.Connection[Any], since: datetime) -> Look:
    with connection.cursor(row_factory=dict_row) as cursor:
        seen = cursor.execute(QUERIES["demo_detector"].sql).fetchone()
        assert seen is not None, "an aggregate has a row"
        anomalies = cursor.execute(QUERIES["anomalies"].sql, {"limit": _MOST}).fetchall()
    decisions = list_decisions(connection, limit=_MOST)
    return Look.within(since, seen["newest"], seen["unseen"], anomalies, decisions)


def _why_none(look: Look, start: StartDay) -> Sequence[str]:
    explained = [anomaly for anomaly in look.anomalies if anomaly["state"] == "explained"]
    if not explained:
        return [f"Nothing was unusual on {start.day} and the day after, so that there is nothing to decide."]
    lines = [
        "Prices came in, and each was held against those before it.",
        "Nothing was decided, because what looks like a fall is none:",
    ]
    for anomaly in explained:
        lines += [
            f"on {shown(real_day(start, anomaly['occurred_at']))}, which is the minute below,",
            described(anomaly),
        ]
    return [*lines, "A split or a dividend explains the price, so that no decision was opened."]


def _next(state: str, decision_id: str) -> str:
    lines = [
        f"  scripts/acp decision {decision_id} --replay  decides again from the record, and compares the bytes",
        "  scripts/acp audit verify               whether anything on record was changed",
    ]
    if state == "awaiting_approval":
        lines.insert(0, "  scripts/acp approvals                  it waits for you: scripts/acp approve ID, or deny ID")
    return "What to do with it, in another terminal:\n" + "\n".join(lines)
