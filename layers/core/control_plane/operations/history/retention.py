"""The operation ``retention``: deletes what is older than its retention, after a look at how much that is.

MaintenanceFunction does the same by its settings each hour; both delete through control_plane.platform.expiry.
"""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from psycopg import Connection

from control_plane.operations.kind import MOST_SAMPLED, Operation, OperationRefused, Planned, Stepped
from control_plane.platform.expiry import EXPIRING, count_expiring, days_ago, delete_expired

_COUNTED_AT_ONCE: Final = 50_000
"""Rows that one step of planning counts: some hundred milliseconds."""
_ROWS_PER_SECOND: Final = 10_000
"""How many rows about go in a second, for an estimate."""
_FEWEST_DAYS: Final = 30
_MOST_DAYS: Final = 36_500
_EFFECT: Final = (
    "Live traffic goes on: each batch is a transaction of some ten milliseconds. What is deleted cannot be brought "
    "back, replayed or rebuilt from."
)


class Retention:
    """Deletes rows beyond the days that the filter gives for each kind of row."""

    name = "retention"

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns ``{"days": {what: days}}``. Raises OperationRefused for another filter."""
        days = wanted.get("days")
        if set(wanted) != {"days"} or not isinstance(days, Mapping) or not days:
            raise OperationRefused(
                f'a retention takes {{"days": {{…}}}} with the days of at least one of {", ".join(EXPIRING)}'
            )
        for what, kept in days.items():
            if what not in EXPIRING:
                raise OperationRefused(f"{what!r} has no retention: it must be one of {', '.join(EXPIRING)}")
            if type(kept) is not int or not _FEWEST_DAYS <= kept <= _MOST_DAYS:
                raise OperationRefused(f"{what} are kept for {_FEWEST_DAYS} to {_MOST_DAYS} days, not {kept!r}")
        return {"days": dict(days)}

    def plan(self, connection: Connection[Any], operation: Operation) -> Planned:
        """Counts what is to go, a slice of it per step; the first step freezes the instants. Writes nothing."""
        plan = dict(operation.plan) or self._begin(connection, operation.filter["days"])
        kept: dict[str, Any] = plan["notes"]
        what = kept["left"][0]
        of_what = dict(plan["what"][what])
        counted = count_expiring(
            connection,
            what,
            before=datetime.fromisoformat(of_what["before"]),
            after_at=kept["after_at"],
            after_id=kept["after_id"],
            most=_COUNTED_AT_ONCE,
        )
        if of_what["rows"] == 0 and counted.first_at is not None:
            of_what |= {"oldest": counted.first_at.isoformat(), "sample": list(counted.sample[:MOST_SAMPLED])}
        of_what["rows"] += counted.rows
        if counted.rows == _COUNTED_AT_ONCE and counted.last_at is not None:
            kept = {"left": kept["left"], "after_at": counted.last_at.isoformat(), "after_id": counted.last_id}
        else:
            kept = {"left": kept["left"][1:], "after_at": "-infinity", "after_id": ""}
        plan = plan | {"what": plan["what"] | {what: of_what}, "notes": kept}
        if kept["left"]:
            return Planned(plan, is_complete=False)
        total = sum(one["rows"] for one in plan["what"].values())
        return Planned(
            {
                "what": plan["what"],
                "total": total,
                "estimated_seconds": round(total / _ROWS_PER_SECOND, 1),
                "effect": _EFFECT,
            },
            is_complete=True,
        )

    def step(self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float) -> Stepped:
        """Deletes batches of the first kind of row that has any left."""
        until = time.monotonic() + seconds
        left = list(operation.cursor.get("left") or self._order(operation.plan["what"]))
        done = 0
        while left and done < most:
            deleted = delete_expired(
                connection,
                left[0],
                before=datetime.fromisoformat(operation.plan["what"][left[0]]["before"]),
                batch_size=min(most - done, 1000),
                operation_id=operation.operation_id,
            )
            done += deleted
            if deleted == 0:
                left.pop(0)
            if time.monotonic() >= until:
                break
        # An empty list would begin again: the last name stands until the step that ends.
        planned_rest = max(0, operation.total - operation.done - done)
        if not left:
            # What became open meanwhile, or went with something else, is not deleted by itself.
            return Stepped(done, planned_rest, {}, is_finished=True)
        return Stepped(done, 0, {"left": left})

    def cancel(self, connection: Connection[Any], operation: Operation) -> None:
        """Has nothing to take back: each batch is deleted for good."""

    @staticmethod
    def _order(what: Mapping[str, Any]) -> list[str]:
        return [one for one in EXPIRING if one in what]

    def _begin(self, connection: Connection[Any], days: Mapping[str, int]) -> dict[str, Any]:
        return {
            "what": {
                what: {"before": days_ago(connection, days[what]).isoformat(), "rows": 0, "oldest": None, "sample": []}
                for what in self._order(days)
            },
            "notes": {"left": self._order(days), "after_at": "-infinity", "after_id": ""},
        }
