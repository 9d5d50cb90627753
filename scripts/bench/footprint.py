"""Scenarios of a relay's use of its machine: its cold start, its memory, and its CPU while idle."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from statistics import median as median_of
from typing import TYPE_CHECKING, Any

from bench.figures import Bar, Measured, median, ratio, worst
from bench.rig import BenchError, Seed
from bench.turns import TICK_BYTES, drain, relay_options, rounds_of, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.rig import Rig
    from bench.sizes import Sizes

_MIB = 1_048_576


def cold_start(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares a new relay process, up to the end of its first claim, with one that only imports and asks one query.

    The other process imports boto3 and psycopg, as the relay does.
    """
    relay = (
        "import app, types\n"
        "context = types.SimpleNamespace(aws_request_id='bench', function_name='relay', log_stream_name='bench',\n"
        "    get_remaining_time_in_millis=lambda: 60_000)\n"
        "app.handler({'linger_seconds': 0}, context)\n"
    )
    bare = "import os, boto3, psycopg\npsycopg.connect(os.environ['DATABASE_URL']).execute('SELECT 1').fetchall()\n"
    rounds = []
    with rig.fresh(Seed(0)) as database:
        environ = rig.environ(database)
        for program in (relay, bare):
            _seconds_of(program, environ)  # An unmeasured run writes the bytecode and fills the file cache.
        for number in rounds_of(sizes.rounds):
            say(number)
            pairs = [(_seconds_of(relay, environ), _seconds_of(bare, environ)) for _ in range(sizes.cold_starts)]
            rounds.append({"relay": [one for one, _ in pairs], "bare": [other for _, other in pairs]})
    above = [median_of(one["relay"]) for one in rounds]
    below = [median_of(one["bare"]) for one in rounds]
    return Measured(
        [
            ratio("cold start ÷ bare imports and query", above, below, Bar("≤", 1.4)),
            median("cold start", [1000 * one for one in above], "ms"),
        ],
        rounds,
        {"starts_per_round": sizes.cold_starts},
    )


def memory(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures the relay's peak resident memory while it works through a backlog of many claims."""
    sides = {
        "1 KiB": (Seed(sizes.events, padding=1024 - TICK_BYTES), 128),
        # A message's attributes count, too, so this is the largest possible body.
        "1 MiB": (Seed(sizes.large_bodies, padding=_MIB - 1_600), 256),
    }
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(sizes.rounds):
        one = {}
        for name, (seed, _) in sides.items():
            say(f"{number}: {seed.pending:,} bodies of {name}")
            with rig.fresh(seed) as database:
                one[name] = drain(rig, database, seed.pending)
        rounds.append(one)
    return Measured(
        [
            worst(
                f"peak memory, {name} bodies",
                [one[name]["peak_bytes"] / _MIB for one in rounds],
                "MiB",
                Bar("≤", limit),
            )
            for name, (_, limit) in sides.items()
        ],
        rounds,
        {name: asdict(seed) for name, (seed, _) in sides.items()},
    )


def idle(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures how much of a core a lingering relay uses while it finds nothing to do."""
    rounds = []
    with rig.fresh(Seed(0)) as database:
        for number in rounds_of(sizes.rounds):
            say(f"{number}: {sizes.idle_seconds:g} s")
            options = relay_options(600, linger_seconds=sizes.idle_seconds, warm_up=True)
            rounds.append({"relay": timed(rig, rig.child("measured_relay", database, options=options), 0)})
    return Measured(
        [
            median(
                "CPU of an idle relay",
                [100 * one["relay"]["cpu_seconds"] / one["relay"]["seconds"] for one in rounds],
                "%",
                Bar("≤", 2),
            )
        ],
        rounds,
        {"seconds": sizes.idle_seconds},
    )


def _seconds_of(program: str, environ: Mapping[str, str]) -> float:
    """Returns how many seconds a Python process takes from start to end. Raises BenchError if it fails."""
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    seconds = time.perf_counter() - started
    if ended.returncode != 0:
        msg = "A fresh process failed."
        raise BenchError(msg, details=ended.stderr.decode(errors="replace"))
    return seconds
