"""The operation ``rebuild``: makes a consumer's tables again from the events that it has processed, and swaps them in.

Its phases: the consumer writes to its tables and to their shadows; the events that it had processed before are folded
into the shadows (``fold``); both are compared in one snapshot (``compare``), and a difference, which a mended fold
makes, waits for a person's acceptance (``acceptance``); the shadows take the tables' place in one short transaction
(``swap``).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import Connection, errors

from control_plane.model.contract import EventTypes
from control_plane.model.domain import Consumer
from control_plane.operations.kind import Operation, OperationConflict, OperationRefused, Planned, Stepped
from control_plane.platform.queries import load_queries
from control_plane.platform.shadow import in_shadow

QUERIES: Final = load_queries(__package__)
_BATCH: Final = 500
_BATCH_SECONDS: Final = 0.5
"""About how long a batch takes of a consumer whose fold is slow: the live flow waits for what a step has locked."""
_RETRY: Final = timedelta(seconds=3)
"""When a swap is tried again after somebody has read the tables for longer than it waits."""
_ASKED_AGAIN: Final = timedelta(seconds=5)
"""How often it is looked whether a difference was accepted."""
_EFFECT: Final = (
    "The consumer writes everything twice meanwhile. Readers see its tables as they are until the new ones take their "
    "place, for which they wait a moment. Nothing is told or sent."
)


class Rebuild:
    """Rebuilds one consumer of those that declare how (``control_plane.model.domain.Rebuild``)."""

    name = "rebuild"

    def __init__(self, consumers: Iterable[Consumer], event_types: EventTypes) -> None:
        """``consumers`` are the domains'; those without ``rebuild`` are refused."""
        self._consumers = {consumer.name: consumer for consumer in consumers if consumer.rebuild is not None}
        self._event_types = event_types

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns ``{"subscription": the consumer's name}``. Raises OperationRefused for another filter."""
        name = wanted.get("subscription")
        if set(wanted) != {"subscription"} or name not in self._consumers:
            known = ", ".join(sorted(self._consumers)) or "none"
            raise OperationRefused(f'a rebuild takes {{"subscription": …}}, one of those that can be rebuilt: {known}')
        return {"subscription": name}

    def plan(self, connection: Connection[Any], operation: Operation) -> Planned:
        """Counts. Raises OperationRefused where retention has deleted what some row was made of."""
        declared = self._consumers[operation.subscription].rebuild
        assert declared is not None, "those without one are refused"
        rows = connection.execute(QUERIES["plan_rebuild"].sql, {"consumer": operation.subscription}).fetchall()
        total = sum(held for table, held, _ in rows if not table)
        tables = {table: held for table, held, _ in rows if table}
        gone = {table: count for table, _, count in rows if count}
        if gone:
            lost = ", ".join(f"{count} of {table}" for table, count in sorted(gone.items()))
            raise OperationRefused(
                f"the events of some rows, or the record that they were processed, are gone by retention or erasure: "
                f"{lost}. A rebuild would lose them"
            )
        return Planned(
            {
                "total": total,
                "tables": tables,
                "sample": sorted(tables)[:5],
                "estimated_seconds": round(total / declared.events_per_second, 1),
                "effect": _EFFECT,
            },
            is_complete=True,
        )

    def step(self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float) -> Stepped:
        """Makes one step of the phase that the cursor names. Raises OperationRefused where the shadows are spoiled."""
        about = {"operation_id": operation.operation_id}
        cursor = dict(operation.cursor)
        if not cursor:
            connection.execute(QUERIES["begin_rebuild"].sql, about)
            return Stepped(0, 0, {"phase": "fold", "seq": 0})
        row = connection.execute(QUERIES["rebuild_state"].sql, about).fetchone()
        if row is None:
            raise OperationRefused("its shadow tables are gone: cancel it, and plan another one")
        _, _, accepted_by, spoiled_by = row
        if spoiled_by is not None:
            raise OperationRefused(f"the consumer could not write to the shadow tables: {spoiled_by}")
        match cursor["phase"]:
            case "fold":
                return self._fold(connection, operation, cursor, most, time.monotonic() + seconds)
            case "compare":
                return _compare(connection, operation.operation_id)
            case "acceptance" if accepted_by is None:
                return Stepped(0, 0, cursor, next_at=datetime.now(UTC) + _ASKED_AGAIN)
            case _:
                return _swap(connection, operation.operation_id, cursor)

    def cancel(self, connection: Connection[Any], operation: Operation) -> None:
        """Drops the shadow tables, and has the consumer write to its own alone."""
        connection.execute(QUERIES["end_rebuild"].sql, {"operation_id": operation.operation_id})

    def _fold(
        self, connection: Connection[Any], operation: Operation, cursor: Mapping[str, Any], most: int, until: float
    ) -> Stepped:
        consumer = self._consumers[operation.subscription]
        assert consumer.rebuild is not None, "those without one are refused"
        batch = min(_BATCH, max(1, round(consumer.rebuild.events_per_second * _BATCH_SECONDS)))
        seq, done = int(cursor["seq"]), 0
        while done < most and (done == 0 or time.monotonic() < until):
            rows = connection.execute(
                QUERIES["rebuild_events"].sql,
                {
                    "operation_id": operation.operation_id,
                    "topic": consumer.topic,
                    "event_types": list(consumer.rebuild.event_types),
                    "after_seq": seq,
                    "most": min(batch, most - done),
                },
            ).fetchall()
            if not rows:
                return Stepped(done, 0, {"phase": "compare"})
            events = [self._event_types.parse_event(body) for _, body in rows if body is not None]
            with in_shadow(connection):
                consumer.rebuild.fold(connection, events)
            seq = rows[-1][0]
            done += len(events)
            if not events and time.monotonic() >= until:
                break
        return Stepped(done, 0, {"phase": "fold", "seq": seq})


def accept(connection: Connection[Any], operation_id: UUID, *, accepted_by: str) -> None:
    """Accepts that a rebuild's tables differ from those in use. Raises OperationConflict where none waits for it."""
    row = connection.execute(
        QUERIES["accept_rebuild"].sql, {"operation_id": operation_id, "accepted_by": accepted_by}
    ).fetchone()
    if row is None or not row[0]:
        raise OperationConflict(f"operation {operation_id} is no rebuild that waits for an acceptance")


def _compare(connection: Connection[Any], operation_id: UUID) -> Stepped:
    rows = connection.execute(QUERIES["compare_rebuild"].sql, {"operation_id": operation_id}).fetchall()
    is_equal = all(live == shadow for live, shadow in _paired(rows))
    connection.execute(QUERIES["judge_rebuild"].sql, {"operation_id": operation_id, "is_equal": is_equal})
    tables = {
        table: {"rows": live_rows, "digest": live_digest, "rebuilt_rows": rows_, "rebuilt_digest": digest}
        for table, live_rows, live_digest, rows_, digest in rows
    }
    if is_equal:
        return Stepped(0, 0, {"phase": "swap", "tables": tables})
    return Stepped(0, 0, {"phase": "acceptance", "awaiting": "acceptance", "tables": tables})


def _paired(rows: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    """The rows and the digest of each table, and those of its shadow."""
    return [((row[1], row[2]), (row[3], row[4])) for row in rows]


def _swap(connection: Connection[Any], operation_id: UUID, cursor: Mapping[str, Any]) -> Stepped:
    ended = {"phase": "swapped", "tables": cursor.get("tables", {})}
    try:
        with connection.transaction():
            connection.execute(QUERIES["swap_rebuild"].sql, {"operation_id": operation_id})
    except errors.LockNotAvailable:
        return Stepped(0, 0, cursor, next_at=datetime.now(UTC) + _RETRY)
    return Stepped(0, 0, ended, is_finished=True)
