"""The operation ``erasure``: removes whatever is stored about an entity or one observation, and leaves a tombstone.

The tombstone (tables ``erasures`` and ``decision_tombstones``) says who asked, when, and how many rows are gone, and
keeps a hash of what it was about. Unless the filter says ``take_in_again``, ingestion refuses looks at it from the
first step on.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.model.ids import is_storable_text
from control_plane.operations.kind import Operation, OperationRefused, Planned, Stepped
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

type Forget = Callable[[Connection[Any], UUID, Sequence[UUID]], int]
"""A domain's part: removes its consumers' rows about an erasure's entity, or about these events; returns how many."""

_BATCH: Final = 500
_WAITS: Final = timedelta(seconds=30)
_ROWS_PER_SECOND: Final = 2_000
_LONGEST: Final = 256
_SOURCE: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")
_EFFECT: Final = (
    "Live traffic of others goes on. Deliveries and dead letters of what is erased go, too, and messages of it that a "
    "queue still holds change nothing. It cannot be brought back."
)


class Erasure:
    """Erases one entity (of one source, or of all), or all revisions of one event's observation."""

    name = "erasure"

    def __init__(self, forgetting: Sequence[Forget]) -> None:
        """``forgetting`` are the domains' parts (``domains.load_forgetting``)."""
        self._forgetting = forgetting

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the filter: ``entity_id`` and ``source``, or ``event_id``; and ``take_in_again``.

        Raises OperationRefused.
        """
        unknown = set(wanted) - {"entity_id", "source", "event_id", "take_in_again"}
        entity, source, event = wanted.get("entity_id"), wanted.get("source"), wanted.get("event_id")
        again = wanted.get("take_in_again", False)
        if unknown or (entity is None) == (event is None) or (event is not None and source is not None):
            raise OperationRefused(
                "an erasure takes either entity_id, with or without source, or event_id; and take_in_again"
            )
        if not isinstance(again, bool):
            raise OperationRefused(f"take_in_again is true or false, not {again!r}")
        if event is not None:
            try:
                return {"event_id": str(UUID(event)), "take_in_again": again}
            except (AttributeError, TypeError, ValueError):
                raise OperationRefused(f"{event!r} is no event_id") from None
        if not isinstance(entity, str) or not 0 < len(entity) <= _LONGEST or not is_storable_text(entity):
            raise OperationRefused(f"an entity_id is text of 1 to {_LONGEST} characters")
        if source is not None and (not isinstance(source, str) or _SOURCE.fullmatch(source) is None):
            raise OperationRefused(f"{source!r} is no source's name")
        return {"entity_id": entity, "source": source, "take_in_again": again}

    def plan(self, connection: Connection[Any], operation: Operation) -> Planned:
        """Counts what is to go; the plan names nothing of it. Raises OperationRefused where there is nothing."""
        rows = dict(
            connection.execute(QUERIES["count_erasable"].sql, {"operation_id": operation.operation_id}).fetchall()
        )
        waiting, shared = rows.pop("waiting"), rows.pop("shared_raw_payloads")
        total = rows["events"] + rows["decisions"] + rows["raw_payloads"]
        if total == 0:
            raise OperationRefused("nothing is stored of what is to be erased")
        return Planned(
            {
                "what": rows,
                "total": total,
                "decisions_to_wait_for": waiting,
                "raw_payloads_that_stay": shared,
                "sample": [],
                "estimated_seconds": round(total / _ROWS_PER_SECOND, 1),
                "effect": _EFFECT,
            },
            is_complete=True,
        )

    def step(self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float) -> Stepped:
        """Removes batches, decisions first. Waits where a decision is open, or its head is not anchored yet."""
        until = time.monotonic() + seconds
        removed = Counter({what: int(rows) for what, rows in (operation.cursor.get("removed") or {}).items()})
        done = 0
        while True:
            about = {"operation_id": operation.operation_id, "most": min(_BATCH, max(1, most - done))}
            rows = connection.execute(QUERIES["erase_step"].sql, about).fetchall()
            if not rows:
                break
            for what, count, event_ids in rows:
                if what == "waiting":
                    cursor = {"removed": dict(removed), "decisions_to_wait_for": count}
                    return Stepped(done, 0, cursor, next_at=datetime.now(UTC) + _WAITS)
                removed[what] += count
                if what in {"events", "decisions", "raw_payloads"}:
                    done += count
                if event_ids:
                    removed["consumers_rows"] += self._forget(connection, operation.operation_id, event_ids)
            if done >= most or time.monotonic() >= until:
                return Stepped(done, 0, {"removed": dict(removed)})
        removed["consumers_rows"] += self._forget(connection, operation.operation_id, [])
        connection.execute(
            QUERIES["finish_erasure"].sql,
            {"operation_id": operation.operation_id, "removed": json.dumps(dict(removed))},
        )
        skipped = max(0, operation.total - operation.done - done)
        return Stepped(done, skipped, {"removed": dict(removed)}, is_finished=True)

    def cancel(self, connection: Connection[Any], operation: Operation) -> None:
        """Has nothing to take back: what is erased is gone, and ingestion goes on refusing it."""

    def _forget(self, connection: Connection[Any], operation_id: UUID, event_ids: Sequence[UUID]) -> int:
        return sum(forget(connection, operation_id, event_ids) for forget in self._forgetting)
