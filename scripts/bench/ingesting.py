"""The scenario of ingestion: storing many looks, beside COPY of the same rows, and with much stored already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bench.figures import Bar, Measured, median, ratio, worst
from bench.rig import BenchError, Seed
from bench.turns import race, rounds_of, short
from local_cloud.roles import INGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.rig import Database, Rig
    from bench.sizes import Sizes

_MIB: Final = 1_048_576
_TRANSACTION: Final = 5_000
"""Looks that are stored together, as ingestion does."""


def ingest(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares what store_events writes with COPY of the same rows, and its rate with much stored and with little.

    The write is its statements and the commit; making the events from the looks, their ids included, comes on top.
    Its memory is that of a process that stores four times as many looks: it must not grow with them.
    """
    small, large = Seed(0, delivered=sizes.stored_before), Seed(0, delivered=sizes.stored_before_large)
    rounds: list[dict[str, Any]] = []
    say(f"filling in {large.delivered:,} events")
    with rig.filled(large) as full:
        for place, number in enumerate(rounds_of(sizes.rounds)):
            say(f"{number}: store_events")
            with rig.fresh(small) as database:
                stored = _measure(rig, "measured_ingest", database, sizes.looks)
            say(f"{number}: COPY")
            with rig.fresh(small) as database:
                copied = _measure(rig, "bare_copy", database, sizes.looks)
            say(f"{number}: {short(large.delivered)} events stored before")
            on_large = _measure(rig, "measured_ingest", full, sizes.looks, first=place * sizes.looks)
            say(f"{number}: four times as many")
            with rig.fresh(small) as database:
                longer = _measure(rig, "measured_ingest", database, 4 * sizes.looks)
            rounds.append({"stored": stored, "copied": copied, "large": on_large, "longer": longer})
    return Measured(
        [
            ratio(
                "set-based write ÷ COPY of the same rows",
                _rates(rounds, "stored", "write_seconds"),
                _rates(rounds, "copied"),
                Bar("≥", 0.5),
            ),
            ratio(
                "store_events, with making the events ÷ COPY",
                _rates(rounds, "stored"),
                _rates(rounds, "copied"),
                None,
            ),
            ratio(
                f"{short(large.delivered)} events stored before ÷ {short(small.delivered)}",
                _rates(rounds, "large"),
                _rates(rounds, "stored"),
                Bar("≥", 0.8),
            ),
            worst(
                f"peak memory, {short(4 * sizes.looks)} looks",
                [one["longer"]["peak_memory_bytes"] / _MIB for one in rounds],
                "MiB",
                Bar("≤", 192),
            ),
            worst(
                f"peak memory, {short(sizes.looks)} looks",
                [one["stored"]["peak_memory_bytes"] / _MIB for one in rounds],
                "MiB",
            ),
            median("store_events", _rates(rounds, "stored"), "/s"),
            median("COPY", _rates(rounds, "copied"), "/s"),
            median(
                "processor time of a look, without Postgres",
                [1e6 * one["stored"]["cpu_seconds"] / one["stored"]["stored"] for one in rounds],
                "µs",
            ),
        ],
        rounds,
        {"looks": sizes.looks, "of_a_transaction": _TRANSACTION, "stored_before": [small.delivered, large.delivered]},
    )


def _measure(rig: Rig, program: str, database: Database, looks: int, first: int = 0) -> dict[str, Any]:
    """Runs one side and returns its report. Raises BenchError if it stored another number than ``looks``."""
    child = rig.child(
        program,
        database,
        options={"looks": looks, "first": first, "size": _TRANSACTION},
        more_environ={"BENCH_INGEST_URL": rig.url_as(INGEST, database), "BENCH_ADMIN_URL": database.admin_url},
    )
    with child:
        (report,), _ = race(rig, [child])
    if report["stored"] != looks:
        msg = f"{report['stored']:,} looks were stored, not {looks:,}."
        raise BenchError(msg, details=str(report))
    return report


def _rates(rounds: Sequence[dict[str, Any]], side: str, seconds: str = "seconds") -> list[float]:
    return [one[side]["stored"] / one[side][seconds] for one in rounds]
