"""What happens by the clock: expired actions fail, decisions that are due are woken, the chains' heads are anchored."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.decisions.emit import emit, message
from control_plane.decisions.overlooked import tell_again
from control_plane.model.decision_events import ActionFailed, DecisionWoken
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.messages import one_as_json
from control_plane.platform.queries import load_queries
from control_plane.platform.telemetry import Telemetry

QUERIES: Final = load_queries(__package__)
MOST_WOKEN: Final = 500
"""Of decisions in one transaction."""
MOST_EXPIRED: Final = 500
"""Actions in one run; each is a transaction."""
NOT_EXECUTED: Final = "its client did not execute it before it expired"
IDLE_SECONDS: Final = 30.0
"""How long a decision that nobody holds, and that waits for nothing, may stand still, and an anomaly or a call may be
without anybody who took it."""
SPARE_SECONDS: Final = 15.0
"""Of the function's time, what one more anchor may take."""
MOST_HEADS: Final = 500
"""In one anchor, which is one log line: CloudWatch takes 256 KB, and a head has 110 bytes."""


@dataclass(frozen=True, slots=True)
class TimersReport:
    """What one run did."""

    expired: int
    woken: int
    """Decisions, and anomalies and calls that nobody had taken up."""
    anchored: int

    def to_dict(self) -> dict[str, int]:
        """As TimersFunction returns it."""
        return {"expired": self.expired, "woken": self.woken, "anchored": self.anchored}


def run_timers(
    connection: Connection[Any], telemetry: Telemetry, *, remaining_seconds: Callable[[], float] = lambda: float("inf")
) -> TimersReport:
    """Fails expired actions, wakes every decision that is due, anchors every new head, and measures what people watch.

    Raises psycopg.Error; a run that fails measures nothing, so that its alarm tells a missing run.
    """
    report = TimersReport(
        expired=expire_actions(connection, telemetry),
        woken=wake_due(connection) + tell_again(connection, idle_seconds=IDLE_SECONDS),
        anchored=anchor(connection, telemetry, remaining_seconds=remaining_seconds),
    )
    measure(connection, telemetry)
    return report


def measure(connection: Connection[Any], telemetry: Telemetry) -> None:
    """Reports how many approvals wait, for how long, and how much of the day's budget is used. Raises psycopg.Error."""
    waiting = connection.execute(QUERIES["approvals_waiting"].sql).fetchone()
    used = connection.execute(QUERIES["budget_used"].sql).fetchone()
    assert waiting is not None, "an aggregate always has a row"
    assert used is not None, "an aggregate always has a row"
    telemetry.count("ApprovalsWaiting", waiting[0])
    telemetry.count("OldestApprovalAge", waiting[1])
    telemetry.count("BudgetUsed", used[0])


def expire_actions(connection: Connection[Any], telemetry: Telemetry) -> int:
    """Fails every released action that nobody executed before it expired; returns how many.

    One whose decision somebody holds at this moment is left to the next run.
    """
    with connection.cursor(row_factory=class_row(_Expired)) as cursor:
        due = cursor.execute(QUERIES["expired_actions"].sql, {"most": MOST_EXPIRED}).fetchall()
    return sum(_expire(connection, expired, telemetry) for expired in due)


def wake_due(connection: Connection[Any], *, idle_seconds: float = IDLE_SECONDS) -> int:
    """Sends DECISION_WOKEN to each decision that somebody must look at; returns how many."""
    # A lease that ran out stays so until somebody claims it: one round finds all, unless there are more than it takes.
    return retry_conflicts(lambda: _wake(connection, idle_seconds))


def anchor(
    connection: Connection[Any], telemetry: Telemetry, *, remaining_seconds: Callable[[], float] = lambda: float("inf")
) -> int:
    """Anchors the heads of all chains that had grown, some at a time, each also in the log; returns how many heads.

    It goes through the decisions once, in the order of their ids: a chain that grows meanwhile is the next run's.
    """
    anchored, after = 0, None
    while True:
        values = {"most": MOST_HEADS, "after": after}
        row = retry_conflicts(lambda: connection.execute(QUERIES["anchor_heads"].sql, values).fetchone())  # noqa: B023
        if row is None:
            return anchored
        anchor_id, root, prev_root, heads = row
        lines = heads.splitlines()
        telemetry.logger.info(
            "anchored",
            anchor_id=anchor_id,
            root=bytes(root).hex(),
            prev_root=bytes(prev_root).hex(),
            heads=lines,
        )
        anchored += len(lines)
        after = lines[-1].split()[0]
        if remaining_seconds() < SPARE_SECONDS:
            telemetry.logger.warning("anchoring goes on in the next run", anchored=anchored)
            return anchored


@dataclass(frozen=True, slots=True)
class _Expired:
    """A released action that was not executed in time."""

    action_id: UUID
    decision_id: UUID
    expires_at: datetime
    trace_id: UUID
    entity_id: str


def _expire(connection: Connection[Any], expired: _Expired, telemetry: Telemetry) -> bool:
    told = message(
        ActionFailed(decision_id=str(expired.decision_id), action_id=str(expired.action_id), reason=NOT_EXECUTED),
        entity_id=expired.entity_id,
        series=f"{expired.decision_id}:execution",
        at=expired.expires_at,
        trace_id=expired.trace_id,
    )
    given = {"action_id": expired.action_id, "reason": NOT_EXECUTED, "wake_event": one_as_json(told)}
    row = retry_conflicts(lambda: connection.execute(QUERIES["expire_action"].sql, given).fetchone())
    assert row is not None, "it always has a row"
    if not row[0]:
        return False
    telemetry.count("ActionsExpired", 1)
    telemetry.logger.warning(
        "an action expired before its client executed it",
        action_id=str(expired.action_id),
        decision_id=str(expired.decision_id),
        trace_id=str(expired.trace_id),
    )
    return True


def _wake(connection: Connection[Any], idle_seconds: float) -> int:
    values = {"most": MOST_WOKEN, "idle_seconds": idle_seconds}
    with connection.transaction():
        due = connection.execute(QUERIES["fire_timers"].sql, values).fetchall()
        emit(
            connection,
            *(
                message(
                    DecisionWoken(decision_id=str(decision_id), reason=reason),
                    entity_id=entity_id,
                    series=f"{decision_id}:woken:{reason}",
                    at=now,
                    trace_id=trace_id,
                )
                for decision_id, reason, trace_id, entity_id, now in due
            ),
        )
    return len(due)
