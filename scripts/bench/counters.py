"""The scenario of counters: what it costs to count what happens where it happens, and to read what was counted."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import psycopg

from bench.figures import Bar, Measured, median, percentile, ratio, worst
from bench.measured_consumer import look
from bench.rig import QUERIES, BenchError, Seed
from bench.scaling import timed_consumer
from bench.turns import drain, rates, rounds_of, short
from control_plane.flow.exposition import read_metrics, render
from control_plane.ingestion.store import store_events
from control_plane.platform.database import connect
from local_cloud.roles import READER

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.rig import Database, Rig
    from bench.sizes import Sizes

BATCH: Final = 50
"""How many messages a consumer gets at a time, as in the template."""
COUNTING: Final = re.compile(r",\n    counted AS \(\n.*?\n    \)(?=[,\n])", re.DOTALL)
"""The part of a statement that counts."""


def counters(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares the relay, and a consumer, with the same that counts nothing; and measures how long a scrape takes."""
    seed = Seed(sizes.events)
    rounds: list[dict[str, Any]] = []
    for place, number in enumerate(rounds_of(sizes.rounds)):
        one: dict[str, Any] = {}
        # The sides of a ratio run one right after the other, each first in its turn, since other work on the machine
        # comes and goes.
        sides = ("counting", "not counting")[:: -1 if place % 2 else 1]
        for side in sides:
            say(f"{number}: relay, {side}")
            with rig.fresh(seed) as database:
                if side == "not counting":
                    count_nothing(database)
                one[f"relay {side}"] = _with_server(
                    rig, sizes.events, partial(drain, rig, database, sizes.events, publish=False)
                )
        for side in sides:
            say(f"{number}: consumer, {side}")
            with rig.fresh(Seed(0)) as database:
                _store(database, sizes.consumed)
                if side == "not counting":
                    count_nothing(database)
                one[f"consumer {side}"] = _with_server(
                    rig,
                    sizes.consumed,
                    partial(timed_consumer, rig, database, sizes.consumed, BATCH, due=None),
                )
        rounds.append(one)
    stored = short(sizes.stored_before_large)
    say(f"scrapes, {sizes.stored_before_large:,} events and an hour that is not folded")
    scrapes, cpu_milliseconds = _scrapes(rig, sizes)
    rounds[0]["scrapes"] = {"milliseconds": scrapes, "cpu_milliseconds": cpu_milliseconds}
    return Measured(
        [
            ratio(
                "relay that counts ÷ one that does not",
                rates(rounds, "relay counting"),
                rates(rounds, "relay not counting"),
                Bar("≥", 0.95),
            ),
            ratio(
                "consumer that counts ÷ one that does not",
                rates(rounds, "consumer counting"),
                rates(rounds, "consumer not counting"),
                Bar("≥", 0.95),
            ),
            ratio(
                "Postgres's processor time of a relay that counts ÷ one that does not",
                [one["relay counting"]["postgres_seconds"] for one in rounds],
                [one["relay not counting"]["postgres_seconds"] for one in rounds],
                None,
            ),
            ratio(
                "Postgres's processor time of a consumer that counts ÷ one that does not",
                [one["consumer counting"]["postgres_seconds"] for one in rounds],
                [one["consumer not counting"]["postgres_seconds"] for one in rounds],
                None,
            ),
            worst(
                f"scrape of {stored} events, an hour not folded, p99", [percentile(scrapes, 99)], "ms", Bar("≤", 50.0)
            ),
            median(f"scrape of {stored} events, an hour not folded", scrapes, "ms"),
            median("processor time of a scrape, Postgres's and the function's", [cpu_milliseconds], "ms"),
        ],
        rounds,
        {
            "events": sizes.events,
            "consumed": sizes.consumed,
            "stored": sizes.stored_before_large,
            "not_folded": sizes.not_folded,
            "scrapes": sizes.scrapes,
        },
    )


def count_nothing(database: Database) -> None:
    """Makes the functions of a database the same without what counts. Raises BenchError if there is nothing of it."""
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        for name in ("claim_deliveries", "settle_deliveries"):
            row = admin.execute(QUERIES["definition"].sql, {"name": name}).fetchone()
            assert row is not None, "the migrations make it"
            without, found = COUNTING.subn("", row[0])
            if found != 1:
                msg = f"{name} counts in {found} places, not in one."
                raise BenchError(msg)
            admin.execute(without)
        admin.execute(QUERIES["count_no_consumed"].sql)


def _store(database: Database, messages: int) -> None:
    """Stores the events of the messages that a consumer is about to get."""
    with psycopg.connect(database.admin_url, autocommit=True) as admin, admin.transaction():
        store_events(admin, [], [look(number) for number in range(messages)])


def _with_server(rig: Rig, messages: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns a report with the processor time that Postgres has used meanwhile."""
    before = rig.server_cpu_seconds()
    report = measure()
    return {"result": {"published": messages}, **report, "postgres_seconds": rig.server_cpu_seconds() - before}


def _scrapes(rig: Rig, sizes: Sizes) -> tuple[list[float], float]:
    """Returns how many milliseconds each scrape took, as the API makes it, and the processor time of one."""
    with rig.filled(Seed(0, delivered=sizes.stored_before_large)) as database:
        with psycopg.connect(database.admin_url, autocommit=True) as admin:
            admin.execute(QUERIES["count_for_an_hour"].sql, {"rows": sizes.not_folded})
            admin.execute("VACUUM (ANALYZE) flow_deltas")
        with connect(rig.url_as(READER, database), application_name="acp-bench", prepares=True) as connection:
            render(read_metrics(connection))  # A warm environment has its imports and its connection.
            taken = []
            cpu_began = rig.server_cpu_seconds() + time.process_time()
            for _ in range(sizes.scrapes):
                began = time.perf_counter()
                render(read_metrics(connection))
                taken.append(1000 * (time.perf_counter() - began))
            cpu_seconds = rig.server_cpu_seconds() + time.process_time() - cpu_began
    return taken, 1000 * cpu_seconds / sizes.scrapes
