"""Calls of agents: each attempt is intended, with its reservation and its message, before anybody may make it."""

from collections.abc import Sequence
from typing import Any, Final

from psycopg import Connection

from control_plane.decisions import announcements
from control_plane.decisions.emit import emit
from control_plane.decisions.moves import IntendedCall, budget_exhausted, call_id
from control_plane.decisions.record import Loaded
from control_plane.decisions.steps import BUDGET_SCOPE, Hold, append
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


def intend(
    connection: Connection[Any], hold: Hold, loaded: Loaded, calls_seq: int, calls: Sequence[IntendedCall]
) -> None:
    """Intends attempts, in the caller's transaction: each is recorded with its reservation and asked for by a message.

    Where a budget has no room for one, a step says so instead. Raises psycopg.Error.
    """
    decision = loaded.record.decision
    messages = []
    for call in calls:
        row = connection.execute(
            QUERIES["intend_call"].sql,
            {
                "decision_id": decision.decision_id,
                "fence": hold.fence,
                "call_id": call_id(loaded.record, calls_seq, call),
                "step_seq": calls_seq,
                "agent": call.agent,
                "agent_version": call.agent_version,
                "attempt": call.attempt,
                "request_sha256": call.request_sha256,
                "micros": call.micros,
                "deadline": hold.policy.call_deadline(decision, call, loaded.now),
                "budget_scope": BUDGET_SCOPE,
                "day_limit": hold.policy.daily_budget_micros,
            },
        ).fetchone()
        if row is not None and row[0]:
            messages.append(announcements.call_requested(loaded.record, calls_seq, call, loaded.now))
        else:
            append(connection, hold, loaded, budget_exhausted(calls_seq, call), seen_seq=None)
    emit(connection, *messages)


def end_lost_calls(connection: Connection[Any], hold: Hold) -> int:
    """Ends the attempts that nobody will answer any more, and returns how many those were. Raises psycopg.Error."""
    row = connection.execute(
        QUERIES["end_lost_calls"].sql, {"decision_id": hold.decision_id, "fence": hold.fence}
    ).fetchone()
    return 0 if row is None else int(row[0])
