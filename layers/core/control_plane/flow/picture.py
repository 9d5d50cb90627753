"""The flow at one moment: each stage's rate, backlog, oldest age and failures, and what waits for a person."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

from psycopg import Connection

from control_plane.flow.counts import Hour, one_snapshot, read_hour, read_parts, read_rows, read_tuples, read_unfolded
from control_plane.ops.status import ConsumerLag, read_consumer_lag

NEWEST_MESSAGES: Final = 1000
"""How many of the newest messages are searched for deliveries that no consumer has processed."""

_SHOWN_FOR: Final = timedelta(days=7)
"""For how long a part of a stage is shown after something last happened to it."""

type Open = Mapping[str, tuple[int | None, float | None]]
"""By part: its backlog, and the age in seconds of the oldest; each None where it is not known."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the flow, and which counts are its rate and its failures."""

    name: str
    counted: tuple[str, str]
    """The stage and the outcome of the counts that are its rate."""
    failed: tuple[str, frozenset[str]] | None
    """The stage and the outcomes of the counts that are its failures."""
    has_backlog: bool = True


STAGES: Final = (
    Stage("source", ("source", "fetched"), ("source", frozenset({"failed"})), has_backlog=False),
    Stage("store", ("store", "stored"), None, has_backlog=False),
    Stage("outbox", ("outbox", "published"), ("outbox", frozenset({"failed", "dead_lettered", "exhausted"}))),
    # What goes into a queue is what the outbox has published; what it gives up on comes out of its dead-letter queue.
    Stage("queue", ("outbox", "published"), ("queue", frozenset({"consumer"}))),
    Stage("consumer", ("consumer", "processed"), ("consumer", frozenset({"failed"})), has_backlog=False),
    Stage("decision", ("decision", "opened"), ("decision", frozenset({"abandoned"}))),
    Stage("action", ("action", "executed"), ("action", frozenset({"failed"}))),
)
"""In the order in which an event passes them."""


def read_picture(connection: Connection[Any]) -> dict[str, Any]:
    """Reads the flow in one snapshot, at a cost that does not grow with a backlog.

    ``connection`` is in autocommit mode. Raises psycopg.errors.QueryCanceled if the database takes too long.
    """
    with one_snapshot(connection):
        ((at,),) = read_tuples(connection, "now")
        unfolded = read_unfolded(connection)
        hour = read_hour(connection, unfolded)
        parts = read_parts(connection, unfolded, since=at - _SHOWN_FOR)
        subscriptions = read_rows(connection, "subscriptions")
        lag = read_consumer_lag(connection, newest=NEWEST_MESSAGES)
        decisions = read_tuples(connection, "open_decisions")
        actions = read_tuples(connection, "open_actions")
        ((approvals, oldest_approval),) = read_tuples(connection, "waiting_approvals")
        dead_letters = dict(read_tuples(connection, "open_dead_letters"))
        newest_letters = read_rows(connection, "newest_dead_letters")
        [spending] = read_rows(connection, "spending")
        breakers = read_rows(connection, "breakers")
        switches = read_rows(connection, "switches_off")
        operations = read_rows(connection, "operations")
        [events] = read_rows(connection, "events")
    open_parts: dict[str, Open] = {
        "source": {
            name: (None, max((at - success).total_seconds(), 0.0))
            for (stage, name), success in parts.items()
            if stage == "source" and success is not None
        },
        "outbox": {
            one["subscription"]: (one["pending"], _age(one["oldest_pending_age_seconds"]))
            for one in subscriptions
            if one["is_active"] or one["pending"]
        },
        "queue": _lag_of(lag, subscriptions),
        "decision": {playbook: (count, _age(age)) for playbook, count, age in decisions},
        "action": {action_type: (count, _age(age)) for action_type, count, age in actions},
    }
    oldest_letter = next((_age(one["oldest_age_seconds"]) for one in newest_letters), None)
    names: dict[str, set[str]] = {}
    for stage, name in parts:
        names.setdefault(stage, set()).add(name)
    return {
        "at": at,
        "stages": [_stage(stage, hour, open_parts.get(stage.name, {}), names) for stage in STAGES],
        "waiting": {
            "approvals": approvals,
            "oldest_approval_age_seconds": _age(oldest_approval),
            "dead_letters": sum(dead_letters.values()),
            "oldest_dead_letter_age_seconds": oldest_letter,
        },
        "dead_letters": [
            {name: value for name, value in one.items() if name != "oldest_age_seconds"} for one in newest_letters
        ],
        "spending": spending,
        "open_breakers": [one for one in breakers if one["state"] != "closed"],
        "switches_off": switches,
        "operations": operations,
        "events": events,
        "subscriptions": subscriptions,
        "consumers": [asdict(one) for one in lag],
    }


def _stage(stage: Stage, hour: Hour, open_parts: Open, names: Mapping[str, set[str]]) -> dict[str, Any]:
    sources = {stage.counted[0]} | ({stage.failed[0]} if stage.failed else set())
    # A queue's dead letters of invocations are no subscription's, and a stage of the same counts has other parts.
    known = set().union(*(names.get(source, ()) for source in sources)) if stage.name != "queue" else set(open_parts)
    parts = [_part(stage, hour, open_parts, name) for name in sorted(known | open_parts.keys())]
    ages = [part["oldest_age_seconds"] for part in parts if part["oldest_age_seconds"] is not None]
    return {
        "stage": stage.name,
        "minutes": [sum(column) for column in zip(*(part["minutes"] for part in parts), strict=True)] or [0] * 60,
        "last_minute": sum(part["last_minute"] for part in parts),
        "backlog": sum(part["backlog"] or 0 for part in parts) if stage.has_backlog else None,
        "oldest_age_seconds": max(ages, default=None) if stage.has_backlog else None,
        "failed_hour": sum(part["failed_hour"] for part in parts),
        "parts": parts,
    }


def _part(stage: Stage, hour: Hour, open_parts: Open, name: str) -> dict[str, Any]:
    source, outcome = stage.counted
    key = (source, name, outcome)
    backlog, age = open_parts.get(name, (0 if stage.has_backlog else None, None))
    return {
        "name": name,
        "minutes": hour.minutes.get(key, [0] * 60),
        "last_minute": hour.last_minute.get(key, 0),
        "backlog": backlog,
        "oldest_age_seconds": age,
        "failed_hour": _failed(hour, stage.failed, name),
    }


def _failed(hour: Hour, failed: tuple[str, Iterable[str]] | None, name: str) -> int:
    if failed is None:
        return 0
    keys = [(failed[0], name, outcome) for outcome in failed[1]]
    return sum(sum(hour.minutes.get(key, ())) + hour.current.get(key, 0) for key in keys)


def _lag_of(lag: Sequence[ConsumerLag], subscriptions: Sequence[Mapping[str, Any]]) -> Open:
    """Returns the lag of each active subscription; it is 0 too for one whose consumer keeps no record."""
    late = {one.subscription: (one.count, _age(one.oldest_age_seconds)) for one in lag}
    return {one["subscription"]: late.get(one["subscription"], (0, None)) for one in subscriptions if one["is_active"]}


def _age(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(seconds, 0.0), 3)
