"""Scenarios of what deliveries cost in the database: with other layouts of the tables, and with more subscriptions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import psycopg

from bench.figures import Bar, Figure, Measured, median, ratio
from bench.layouts import LAYOUTS
from bench.rig import QUERIES, SUBSCRIPTION, Queues, Seed
from bench.turns import check_published, drain, rates, rounds_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.layouts import Layout
    from bench.rig import Database, Rig
    from bench.sizes import Sizes

_SECOND_SUBSCRIPTION = "detector"
"""Another subscription of the same topic."""


def layouts(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares bare loops of claim and settle on four layouts: the one in use, the one before it, two rejected ones.

    A loop's writes are read from the write-ahead log. Each turn begins with a checkpoint, because Postgres writes a
    page in full when it first changes after one.
    """
    seed = Seed(sizes.events)
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(sizes.rounds):
        one = {}
        for name, layout in LAYOUTS.items():
            say(f"{number}: {name}")
            with rig.fresh(seed) as database:
                one[name] = _run_layout(rig, database, name, layout, seed)
        rounds.append(one)
    wal = {name: [one[name]["wal_bytes"] / sizes.events for one in rounds] for name in LAYOUTS}
    return Measured(
        [
            ratio(
                "bare loop ÷ that of the layout before",
                rates(rounds, "new"),
                rates(rounds, "old"),
                Bar("≥", 1.25),
            ),
            median("WAL of a message, claimed and settled", wal["new"], "bytes", Bar("≤", 1_000)),
            *(
                figure
                for name, layout in LAYOUTS.items()
                for figure in (
                    median(f"{layout.title}: bare loop", rates(rounds, name), "/s"),
                    median(f"{layout.title}: WAL of a message", wal[name], "bytes"),
                    median(
                        f"{layout.title}: dead rows of a message",
                        [one[name]["dead_rows"] / sizes.events for one in rounds],
                        "",
                    ),
                    median(
                        f"{layout.title}: on disk, of a message",
                        [one[name]["disk_bytes"] / sizes.events for one in rounds],
                        "bytes",
                    ),
                )
            ),
        ],
        rounds,
        {"events": sizes.events},
    )


def subscriptions(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares as many deliveries to two subscriptions as to one, and measures a second subscription's cost on disk."""
    both = (SUBSCRIPTION, _SECOND_SUBSCRIPTION)
    one_of, two_of = Seed(sizes.events), Seed(sizes.events // 2, subscriptions=both)
    rounds = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: two")
        queues = Queues(rig.queues.endpoint_url, {name: f"{rig.queues.urls[SUBSCRIPTION]}-{name}" for name in both})
        with rig.fresh(two_of) as database:
            two = drain(rig, database, sizes.events // 2 * 2, queues=queues)
        say(f"{number}: one")
        with rig.fresh(one_of) as database:
            one = drain(rig, database, sizes.events)
        rounds.append({"two": two, "one": one})
    say("what a second one costs on disk")
    pending = _extra_bytes(rig, Seed(sizes.events), "public.pending_deliveries")
    delivered = _extra_bytes(rig, Seed(0, delivered=sizes.events), "public.deliveries")
    return Measured(
        [
            ratio(
                "deliveries to two subscriptions ÷ to one", rates(rounds, "two"), rates(rounds, "one"), Bar("≥", 0.8)
            ),
            median("deliveries to two subscriptions", rates(rounds, "two"), "/s"),
            Figure("a second subscription, of a message that is pending", pending, "bytes"),
            Figure("a second subscription, of a message that is delivered", delivered, "bytes"),
        ],
        rounds,
        {"deliveries": sizes.events},
    )


def _run_layout(rig: Rig, database: Database, name: str, layout: Layout, seed: Seed) -> dict[str, Any]:
    """Runs one loop until nothing is left; returns its report with what the database wrote and still keeps."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        if layout.setup is not None:
            connection.execute(layout.setup)
        connection.execute("VACUUM (ANALYZE)")
        options = {"layout": name, "subscription": seed.subscriptions[0], "topic": seed.topic}
        with rig.child("bare_layout", database, options=options) as child:
            child.wait_until_ready()
            rig.checkpoint()
            before = _wal_position(connection)
            child.go()
            report = child.report()
            check_published([report], seed.pending)
            wal_bytes = _wal_position(connection) - before
        row = connection.execute(QUERIES["written_rows"].sql, {"tables": list(layout.tables)}).fetchone()
        assert row is not None
        return {**report, "wal_bytes": wal_bytes, "dead_rows": row[0], "disk_bytes": row[1]}


def _extra_bytes(rig: Rig, seed: Seed, table: str) -> float:
    """Returns how many more bytes per message a table takes on disk with two subscriptions than with one."""
    taken = []
    for names in ((SUBSCRIPTION,), (SUBSCRIPTION, _SECOND_SUBSCRIPTION)):
        with (
            rig.fresh(dataclasses.replace(seed, subscriptions=names)) as database,
            psycopg.connect(database.admin_url) as connection,
        ):
            row = connection.execute(QUERIES["written_rows"].sql, {"tables": [table]}).fetchone()
            assert row is not None
            taken.append(row[1])
    alone, both = taken
    extra: float = (both - alone) / (seed.pending + seed.delivered)
    return extra


def _wal_position(connection: psycopg.Connection[Any]) -> int:
    """Returns how many bytes of write-ahead log the server has written."""
    row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
    assert row is not None
    position: int = row[0]
    return position
