"""Brings the table ``subscriptions`` in line with the template."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from control_plane.model.errors import ControlPlaneError
from control_plane.model.subscription import Subscription
from control_plane.ops.timeline import QUERIES

REMOVED: Final = "subscription removed"
"""The reason of the dead letters that a removed subscription's pending deliveries become."""


class SubscriptionError(ControlPlaneError):
    """Raised when the template wants another topic for a stored subscription."""


@dataclass(frozen=True, slots=True)
class SubscriptionReport:
    """What a run did; subscriptions are given by name."""

    added: tuple[str, ...] = ()
    """New subscriptions, and removed ones that are active again."""
    removed: tuple[str, ...] = ()
    backfilled: int = 0
    """Earlier messages that became pending for new subscriptions."""
    dead_lettered: int = 0
    """Messages that were pending for removed ones."""


def sync_subscriptions(connection: Connection[Any], wanted: Mapping[str, Subscription]) -> SubscriptionReport:
    """Adds and removes subscriptions so that exactly the wanted ones are active; a second run changes nothing.

    It is one transaction and locks out transactions that store messages, so that a new subscription misses none. What
    was pending for a removed subscription becomes dead letters, which can be redriven once it is active again.
    ``connection`` is the owner's. Raises SubscriptionError if a topic would change.
    """
    with connection.transaction():
        connection.execute(QUERIES["lock_out_new_messages"].sql)
        stored = {
            name: (topic, is_active) for name, topic, is_active in connection.execute(QUERIES["subscriptions"].sql)
        }
        changed = [name for name, one in wanted.items() if name in stored and stored[name][0] != one.topic]
        if changed:
            raise SubscriptionError(
                f"subscription {changed[0]} is for topic {stored[changed[0]][0]}, and {wanted[changed[0]].topic} is "
                "wanted: a subscription keeps its topic. Give the new one another name"
            )
        added = tuple(name for name in wanted if name not in stored or not stored[name][1])
        removed = tuple(name for name, (_, is_active) in stored.items() if is_active and name not in wanted)
        backfilled = 0
        for name in added:
            one = wanted[name]
            connection.execute(QUERIES["add_subscription"].sql, {"name": name, "topic": one.topic})
            if one.from_beginning and name not in stored:
                row = connection.execute(
                    QUERIES["backfill_subscription"].sql, {"name": name, "topic": one.topic}
                ).fetchone()
                assert row is not None, "an aggregate has a row"
                backfilled += row[0]
        dead_lettered = 0
        if removed:
            # Rows of subscriptions are locked before deliveries, in the same order as a redrive, to avoid a deadlock.
            for name in removed:
                connection.execute(QUERIES["remove_subscription"].sql, {"name": name})
            connection.execute(QUERIES["lock_out_settlements"].sql)
            dead_lettered = connection.execute(
                QUERIES["dead_letter_pending"].sql, {"names": list(removed), "reason": REMOVED}
            ).rowcount
    return SubscriptionReport(added, removed, backfilled, dead_lettered)
