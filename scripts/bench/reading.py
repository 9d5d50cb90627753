"""The scenario of reading: what the API's most frequent requests take with much stored, beside the same with little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg

from bench.figures import Bar, Figure, Measured, percentile
from bench.rig import QUERIES, SUBSCRIPTION, Seed
from domains.finance.events import MARKET_TICKS
from local_cloud.roles import READER

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.rig import Database, Rig
    from bench.sizes import Sizes

_SUBSCRIPTIONS: Final = (SUBSCRIPTION, "detector")
_SAMPLED: Final = 50
"""How many events' timelines are asked for, half of them of events whose messages are gone."""
_PAGE: Final = 50


def reading(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares requests of one warm OpsApiFunction for each of two databases, turn about in one process.

    Half of each database's messages are pending, and a tenth are dead letters, for two subscriptions.
    """
    small, large = (sizes.small_backlog, sizes.small_backlog), (sizes.stored_before_large, sizes.read_messages)
    with rig.filled(Seed(0)) as little, rig.filled(Seed(0)) as much:
        for database, (events, messages) in ((much, large), (little, small)):
            say(f"filling in {events:,} events and {messages:,} messages")
            _fill(rig, database, events, messages)
        sides = {"little": little, "much": much}
        say(f"{sizes.reads} rounds of requests")
        child = rig.child(
            "measured_reading",
            little,
            options={
                "sides": {side: f"BENCH_{side.upper()}_URL" for side in sides},
                "requests": {side: _requests(database) for side, database in sides.items()},
                "rounds": sizes.reads,
            },
            more_environ={
                **{f"BENCH_{side.upper()}_URL": rig.url_as(READER, database) for side, database in sides.items()},
                "PYTHONPATH": rig.pythonpath("ops_api"),
            },
        )
        with child:
            child.wait_until_ready()
            rig.checkpoint()
            child.go()
            taken = child.report()
    return Measured(
        [figure for title in taken["much"] for figure in _figures(title, taken["much"][title], taken["little"][title])],
        [taken],
        {"events": [small[0], large[0]], "messages": [small[1], large[1]], "reads": sizes.reads},
    )


def _figures(title: str, much: list[float], little: list[float]) -> list[Figure]:
    """Returns the ratio of the two sides' medians and of their 99th percentiles, and the time itself."""
    return [
        Figure(f"{title}: much ÷ little, p50", percentile(much, 50) / percentile(little, 50), "×", Bar("≤", 1.5)),
        Figure(f"{title}: much ÷ little, p99", percentile(much, 99) / percentile(little, 99), "×", Bar("≤", 1.5)),
        Figure(f"{title}: much, p50", percentile(much, 50), "ms"),
    ]


def _fill(rig: Rig, database: Database, events: int, messages: int) -> None:
    """Stores so many events in all, so many of which have a message: pending, delivered or given up on."""
    letters = messages // 10
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")
        admin.execute(QUERIES["make_old_events"].sql, {"count": events - messages})
    pending = messages // 2 + letters
    rig.fill(database, Seed(pending, delivered=messages - pending, topic=MARKET_TICKS, subscriptions=_SUBSCRIPTIONS))
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute(QUERIES["give_up_on"].sql, {"subscription": SUBSCRIPTION, "count": letters})
        admin.execute(QUERIES["process_delivered"].sql)
        admin.execute("VACUUM (ANALYZE)")


def _requests(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Returns by title what is asked of a database: pages at the beginning and in the middle of a list, timelines."""
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        ids = [str(row[0]) for row in admin.execute(QUERIES["sample_events"].sql, {"count": _SAMPLED // 2})]

    def one(path: str, **query: str) -> dict[str, Any]:
        return {"path": path, "query": query, "items": int(query.get("limit", 0))}

    page = {"limit": str(_PAGE)}
    return {
        "/events/{id}": [one(f"/events/{event_id}") for event_id in ids],
        "/events": [one("/events", **page)],
        "/dead-letters": [one("/dead-letters", **page)],
        "/flow": [one("/flow")],
        "/health": [one("/health")],
    }
