"""Replay: sends a window of stored messages again, to one subscription or to all of a topic, at a rate."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg import Connection

from control_plane.model.domain import OnReplay
from control_plane.operations import filters
from control_plane.operations.kind import MOST_SAMPLED, Operation, OperationRefused, Planned, Stepped
from control_plane.operations.rows import QUERIES

DEFAULT_RATE: Final = 100.0
"""Deliveries per second, where no rate is given."""
AHEAD_SECONDS: Final = 60.0
"""How far ahead deliveries are promised. The engine may pause for as long, and another rate acts within it."""
SLICE_SECONDS: Final = 5.0
"""How many seconds' deliveries a step promises at least."""
LOOKS: Final = 20_000
"""How many messages one step looks at, whether the filter selects them or not."""

FIELDS: Final[Mapping[str, filters.Field]] = {
    "subscription": filters.subscription,
    "topic": filters.topic,
    "event_type": filters.text,
    "entity_id": filters.text,
    "source": filters.text,
    "occurred_since": filters.instant,
    "occurred_until": filters.instant,
    "ingested_since": filters.instant,
    "ingested_until": filters.instant,
}


class Replay:
    """Messages of a frozen window become pending deliveries of the operation, spread in time so that live ones keep
    their latency.

    The window ends with the last message there is when planning begins, and before the first transaction that has not
    ended then. What a replay means for a consumer is declared with it; whoever declares nothing refuses it.
    """

    name = "replay"

    def __init__(self, on_replay: Mapping[str, OnReplay]) -> None:
        """``on_replay`` says what a replay means for each consumer, by its subscription's name."""
        self._on_replay = on_replay

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Reads subscription or topic, and event_type, entity_id, source, occurred_… and ingested_… since and until."""
        chosen = filters.read_fields(self.name, wanted, FIELDS)
        if ("subscription" in chosen) == ("topic" in chosen):
            raise OperationRefused("a replay goes to one subscription, or to all of a topic: name one of the two")
        for clock in ("occurred", "ingested"):
            since, until = chosen.get(f"{clock}_since"), chosen.get(f"{clock}_until")
            if since and until and datetime.fromisoformat(since) >= datetime.fromisoformat(until):
                raise OperationRefused(f"{clock}_since is not before {clock}_until: the window is empty")
        if "subscription" in chosen:
            self._meaning(chosen["subscription"])
        return chosen

    def plan(self, connection: Connection[Any], operation: Operation) -> Planned:
        """First freezes the window, then counts a part of it with each call."""
        if not operation.plan:
            return Planned(self._freeze(connection, operation), is_complete=False)
        notes = operation.plan
        row = connection.execute(
            QUERIES["plan_replay"].sql,
            {
                "operation_id": operation.operation_id,
                "after_id": notes["after_id"],
                "most": LOOKS,
                "most_sampled": MOST_SAMPLED,
            },
        ).fetchone()
        assert row is not None, "the function returns a row"
        messages, oldest, sample, looked_at = row
        self._check_memory(notes["remembered_since"], oldest)
        counted = notes["messages"] + messages
        oldest = min(filter(None, (_instant(notes["oldest"]), oldest)), default=None)
        seen = {
            "messages": counted,
            "sample": [*notes["sample"], *sample][:MOST_SAMPLED],
            "oldest": oldest and oldest.isoformat(),
        }
        if looked_at is not None:
            return Planned({**notes, **seen, "after_id": looked_at}, is_complete=False)
        plan = {name: value for name, value in notes.items() if name not in {"after_id", "remembered_since"}}
        total = counted * len(notes["subscriptions"])
        rate = operation.rate or DEFAULT_RATE
        return Planned(
            {
                **plan,
                **seen,
                "total": total,
                "rate": rate,
                "estimated_seconds": round(total / rate, 1),
                "effect": _effect(counted, notes["subscriptions"], rate),
            },
            is_complete=True,
        )

    def step(self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float) -> Stepped:
        """Promises what is due in the next minute, and waits until the last of it is due."""
        del seconds  # The number of messages that a step looks at bounds it.
        cursor, rate = operation.cursor, operation.rate or DEFAULT_RATE
        if not cursor:
            # From here on retention waits. Before, it may have deleted what the plan has relied on.
            meanings = operation.plan["subscriptions"]
            self._check_memory(_memories(connection, meanings), _instant(operation.plan["oldest"]))
        now = _database_now(connection)
        promised_until = max(_instant(cursor.get("promised_until")) or now, now)
        subscriptions = len(operation.plan["subscriptions"])
        if cursor.get("is_at_end"):
            return _ended(operation, cursor, promised_until, now)
        room = math.floor((now + timedelta(seconds=AHEAD_SECONDS) - promised_until).total_seconds() * rate)
        slice_size = min(math.ceil(SLICE_SECONDS * rate), most)
        missing = max(slice_size, subscriptions) - room
        if missing > 0 and promised_until > now:
            # At a low rate a minute has no room for one message: the next one then follows the last.
            return Stepped(0, 0, cursor=cursor, next_at=min(now + timedelta(seconds=missing / rate), promised_until))
        row = connection.execute(
            QUERIES["promise_replay"].sql,
            {
                "operation_id": operation.operation_id,
                "after_id": cursor.get("outbox_id", 0),
                "most": max(min(room, most) // subscriptions, 1),
                "looks": LOOKS,
                "first_due": promised_until,
                "gap_seconds": subscriptions / rate,
            },
        ).fetchone()
        assert row is not None, "the function returns a row"
        messages, promised, looked_at = row
        promised_until += timedelta(seconds=messages * subscriptions / rate)
        return Stepped(
            done=promised,
            skipped=messages * subscriptions - promised,
            cursor={
                "outbox_id": looked_at,
                "promised_until": promised_until.isoformat(),
                "is_at_end": looked_at is None,
            },
        )

    def cancel(self, connection: Connection[Any], operation: Operation) -> int:
        """Takes back every delivery that no relay has claimed."""
        row = connection.execute(QUERIES["withdraw_replay"].sql, {"operation_id": operation.operation_id}).fetchone()
        assert row is not None, "the function returns a row"
        return int(row[0])

    def _freeze(self, connection: Connection[Any], operation: Operation) -> Mapping[str, Any]:
        chosen = operation.filter
        targets = connection.execute(
            QUERIES["subscriptions_of"].sql, {"topic": chosen.get("topic"), "name": chosen.get("subscription")}
        ).fetchall()
        if not targets:
            raise OperationRefused(
                f"there is no active subscription {_wanted(chosen)}: deploy a template that has it, and run "
                "MigrationFunction"
            )
        meanings = {name: self._meaning(name) for name, _ in targets}
        topic = targets[0][1]
        window = connection.execute(QUERIES["freeze_window"].sql, {"topic": topic}).fetchone()
        assert window is not None, "the function returns a row"
        last_outbox_id, stored_before, left_out = window
        return {
            "topic": topic,
            "subscriptions": {name: str(meaning) for name, meaning in meanings.items()},
            "last_outbox_id": last_outbox_id,
            "stored_before": stored_before,
            "left_out": left_out,
            "held_back_by": _oldest_writer(connection) if left_out else None,
            "messages": 0,
            "sample": [],
            "oldest": None,
            "after_id": 0,
            "remembered_since": _memories(connection, meanings),
        }

    def _meaning(self, subscription: str) -> OnReplay:
        meaning = self._on_replay.get(subscription, OnReplay.REFUSE)
        if meaning is OnReplay.REFUSE:
            raise OperationRefused(
                f"subscription {subscription} takes no replay: its consumer does not declare that it may see a message "
                "again (docs/writing_a_consumer.md), because what it does reaches beyond its own tables"
            )
        return meaning

    def _check_memory(self, remembered_since: Mapping[str, str | None], oldest: datetime | None) -> None:
        """Refuses what a consumer that skips what it has processed may have processed and forgotten."""
        for name, since in remembered_since.items():
            if oldest is not None and (since is None or oldest < datetime.fromisoformat(since)):
                raise OperationRefused(
                    f"the window begins with {oldest.isoformat()}, and {name} remembers what it has processed "
                    + ("not at all" if since is None else f"only since {since}")
                    + ": what it has forgotten it would do again. Give a later ingested_since"
                )


def _ended(operation: Operation, cursor: Mapping[str, Any], promised_until: datetime, now: datetime) -> Stepped:
    """Waits for the last promise to be due; what the plan counted and nobody found was deleted meanwhile: skipped."""
    if promised_until > now:
        return Stepped(0, 0, cursor=cursor, next_at=promised_until)
    return Stepped(0, max(operation.total - operation.done - operation.skipped, 0), cursor=cursor, is_finished=True)


def _database_now(connection: Connection[Any]) -> datetime:
    row = connection.execute(QUERIES["database_now"].sql).fetchone()
    assert row is not None, "the query returns a row"
    now: datetime = row[0]
    return now


def _wanted(chosen: Mapping[str, Any]) -> str:
    return str(chosen["subscription"]) if "subscription" in chosen else f"of {chosen['topic']}"


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _memories(connection: Connection[Any], meanings: Mapping[str, str]) -> dict[str, str | None]:
    """Returns since when each subscription remembers of those that skip what they have processed."""
    return {name: _remembered_since(connection, name) for name, one in meanings.items() if one == OnReplay.SKIP}


def _remembered_since(connection: Connection[Any], consumer: str) -> str | None:
    row = connection.execute(QUERIES["processed_since"].sql, {"consumer": consumer}).fetchone()
    assert row is not None, "the function returns a row"
    return None if row[0] is None else row[0].isoformat()


def _oldest_writer(connection: Connection[Any]) -> str | None:
    row = connection.execute(QUERIES["oldest_writer"].sql).fetchone()
    if row is None:
        return None
    kind, name, username, application, age_seconds = row
    whose = ", ".join(filter(None, (username, application)))
    since = "" if age_seconds is None else f", for {age_seconds:.0f} s"
    return f"{kind} {name}{f' ({whose})' if whose else ''}, which has not ended its transaction{since}"


def _effect(messages: int, subscriptions: Mapping[str, str], rate: float) -> str:
    meanings = {
        OnReplay.SAFE: "runs its effect again",
        OnReplay.SKIP: "acts only on what it has never processed",
    }
    what = "; ".join(f"{name} {meanings[OnReplay(meaning)]}" for name, meaning in subscriptions.items())
    return (
        f"{messages} {'message goes' if messages == 1 else 'messages go'} to {len(subscriptions)} "
        f"{'subscription' if len(subscriptions) == 1 else 'subscriptions'}, {rate:g} deliveries a second beside the "
        f"live flow: {what}."
    )
