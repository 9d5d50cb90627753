"""What happens by the clock: decisions that somebody must look at are woken, and the chains' heads are anchored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.decisions.emit import emit, message
from control_plane.model.decision_events import DecisionWoken
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.queries import load_queries
from control_plane.platform.telemetry import Telemetry

QUERIES: Final = load_queries(__package__)
MOST_WOKEN: Final = 500
"""Of decisions in one transaction."""
IDLE_SECONDS: Final = 30.0
"""How long a decision that nobody holds, and that waits for nothing, may stand still."""
SPARE_SECONDS: Final = 15.0
"""Of the function's time, what one more anchor may take."""
MOST_HEADS: Final = 500
"""In one anchor, which is one log line: CloudWatch takes 256 KB, and a head has 110 bytes."""


@dataclass(frozen=True, slots=True)
class TimersReport:
    """What one run did."""

    woken: int
    anchored: int

    def to_dict(self) -> dict[str, int]:
        """As TimersFunction returns it."""
        return {"woken": self.woken, "anchored": self.anchored}


def run_timers(
    connection: Connection[Any], telemetry: Telemetry, *, remaining_seconds: Callable[[], float]
) -> TimersReport:
    """Wakes every decision that is due, then anchors every head that is new. Raises psycopg.Error."""
    return TimersReport(
        woken=wake_due(connection), anchored=anchor(connection, telemetry, remaining_seconds=remaining_seconds)
    )


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
