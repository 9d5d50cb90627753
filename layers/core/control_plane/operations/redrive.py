"""Redrive: makes the messages of dead letters pending again, and marks the letters as redriven."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from psycopg import Connection

from control_plane.operations import filters
from control_plane.operations.kind import MOST_SAMPLED, Operation, OperationRefused, Planned, Stepped
from control_plane.operations.rows import QUERIES

FREEZES: Final = 20_000
"""How many dead letters one step of planning freezes."""
PACE_SECONDS: Final = 10.0
"""With a rate, how far ahead a step promises."""
UNPACED: Final = 1000.0
"""Letters per second that a step without a rate is estimated to do; a relay sends more slowly than that."""


class Redrive:
    """Each dead letter that the filter selects becomes a pending delivery of the operation, with all its attempts.

    The letters' ids are frozen when it is planned. Without a rate they are made pending as fast as the database takes
    it; the relay's lanes keep that from holding up other subscriptions.
    """

    name = "redrive"

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._fields: Mapping[str, filters.Field] = {
            "ids": filters.ids,
            "kind": filters.one_of("relay", "consumer", "invocation"),
            "subscription": filters.subscription,
            "event_id": filters.event_or_trace,
            "trace_id": filters.event_or_trace,
            "reason": filters.text,
            "since": filters.instant,
            "until": filters.instant,
            "newer_than_seconds": filters.ago(now),
            "older_than_seconds": filters.ago(now),
            "everything": filters.flag,
        }

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Reads ids, kind, subscription, reason (a part of it), event_id, trace_id, since and until, or everything.

        ``newer_than_seconds`` and ``older_than_seconds`` become since and until.
        """
        chosen = filters.read_fields(self.name, wanted, self._fields)
        everything = chosen.pop("everything", False)
        for relative, absolute in (("newer_than_seconds", "since"), ("older_than_seconds", "until")):
            if relative in chosen:
                if absolute in chosen:
                    raise OperationRefused(f"both {relative} and {absolute} are given: give one of them")
                chosen[absolute] = chosen.pop(relative)
        if bool(chosen) == everything:
            raise OperationRefused(
                "everything is asked for, and less: leave one of them out"
                if everything
                else "it is not said what to redrive: give ids, a subscription, a reason, a time, or everything: true"
            )
        return chosen

    def plan(self, connection: Connection[Any], operation: Operation) -> Planned:
        """Freezes the next letters; the plan is complete when the filter selects no more."""
        notes = operation.plan or {
            "after_id": 0,
            "last_id": _value(connection, "newest_letter", {}),
            "letters": {},
            "inactive": {},
            "unknown": {},
            "sample": [],
            "digest": "",
        }
        row = connection.execute(
            QUERIES["freeze_letters"].sql,
            {
                "operation_id": operation.operation_id,
                "after_id": notes["after_id"],
                "last_id": notes["last_id"],
                "most": FREEZES,
            },
        ).fetchone()
        assert row is not None, "the function returns a row"
        ids, chosen, inactive, unknown, looked_at = row
        letters = _added(notes["letters"], chosen)
        left_out = {"inactive": _added(notes["inactive"], inactive), "unknown": _added(notes["unknown"], unknown)}
        sample = [*notes["sample"], *ids][:MOST_SAMPLED]
        digest = hashlib.sha256(f"{notes['digest']}{ids}".encode()).hexdigest()
        if looked_at is not None:
            return Planned(
                {
                    "after_id": looked_at,
                    "last_id": notes["last_id"],
                    "letters": letters,
                    **left_out,
                    "sample": sample,
                    "digest": digest,
                },
                is_complete=False,
            )
        total = sum(letters.values())
        return Planned(
            {
                "total": total,
                "letters": letters,
                **left_out,
                "sample": sample,
                "ids_sha256": digest,
                "estimated_seconds": round(total / (operation.rate or UNPACED), 1),
                "effect": _effect(letters, **left_out),
            },
            is_complete=True,
        )

    def step(self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float) -> Stepped:
        """Makes the next frozen letters pending; with a rate, those of the next seconds, spread over them."""
        del seconds  # A thousand letters take some hundredths of a second.
        rate = operation.rate
        batch = most if rate is None else min(most, max(1, int(rate * PACE_SECONDS)))
        row = connection.execute(
            QUERIES["redrive_letters"].sql,
            {
                "operation_id": operation.operation_id,
                "most": batch,
                "gap_seconds": 0.0 if rate is None else 1 / rate,
            },
        ).fetchone()
        assert row is not None, "the function returns a row"
        done, skipped, remain = row
        next_at = None
        if remain and rate is not None:
            next_at = _value(connection, "database_now", {}) + timedelta(seconds=done / rate)
        return Stepped(done, skipped, is_finished=not remain, next_at=next_at)

    def cancel(self, connection: Connection[Any], operation: Operation) -> None:
        """Takes nothing back: what is pending again stays so, and the other letters were not touched."""


def _value(connection: Connection[Any], query: str, parameters: Mapping[str, Any]) -> Any:
    row = connection.execute(QUERIES[query].sql, parameters).fetchone()
    assert row is not None, "the query returns a row"
    return row[0]


def _added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) + more.get(name, 0) for name in sorted({*counts, *more})}


def _effect(letters: Mapping[str, int], *, inactive: Mapping[str, int], unknown: Mapping[str, int]) -> str:
    total = sum(letters.values())
    sentence = (
        f"{total} {'message becomes' if total == 1 else 'messages become'} pending again, with new attempts, and go to "
        "their queues beside the live flow; a consumer that has processed one already takes it for a duplicate."
    )
    if inactive:
        sentence += (
            f" Left out, as their subscription is not active: {_counts(inactive)}. Deploy a template that has it, and "
            "plan again."
        )
    if unknown:
        sentence += (
            f" Left out, as the outbox does not hold their message: {_counts(unknown)}. Read what they hold, and "
            "discard them."
        )
    return sentence


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {name}" for name, count in counts.items())
