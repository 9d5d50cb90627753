"""Scenarios of a relay's use of its machine: its cold start, its memory, and its CPU while idle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict
from statistics import median as median_of
from typing import TYPE_CHECKING, Any

from bench.figures import Bar, Measured, median, ratio, worst
from bench.rig import BenchError, Seed, deployed_settings
from bench.turns import TICK_BYTES, drain, relay_options, rounds_of, timed
from local_cloud.roles import DECIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.rig import Rig
    from bench.sizes import Sizes

_MIB = 1_048_576


_CONTEXT = (
    "import app, json, types\n"
    "context = types.SimpleNamespace(aws_request_id='bench', function_name='bench', log_stream_name='bench',\n"
    "    get_remaining_time_in_millis=lambda: 60_000)\n"
)
_QUERY = "import os, psycopg\npsycopg.connect(os.environ['DATABASE_URL']).execute('SELECT 1').fetchall()\n"


def cold_start(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares a new relay process, up to the end of its first claim, with one that only imports and asks one query.

    The other process imports boto3 and psycopg, as the relay does.
    """
    relay = f"{_CONTEXT}app.handler({{'linger_seconds': 0}}, context)\n"
    with rig.fresh(Seed(0)) as database:
        rounds = _starts(rig.environ(database), relay, f"import boto3\n{_QUERY}", sizes, say)
    return _cold_start("cold start", rounds, sizes)


def cold_start_deciding(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares a new DecisionFunction, up to the end of its first message, with one that only imports and asks a query.

    The other process imports boto3, psycopg, pydantic and powertools, as the function does. The message is the sample.
    """
    checkout = rig.workspace.checkout
    sample = repr(str(checkout / "events" / "decision.json"))
    function = f"{_CONTEXT}assert not app.handler(json.load(open({sample})), context)['batchItemFailures']\n"
    bare = f"import boto3, pydantic\nfrom aws_lambda_powertools import Logger, Metrics\n{_QUERY}"
    with rig.fresh(Seed(0)) as database:
        folders = (checkout / "functions" / "decision", checkout / "layers" / "core")
        environ = {
            **rig.environ(database),
            **deployed_settings(rig.workspace, "DecisionFunction"),
            "DATABASE_URL": rig.url_as(DECIDE, database),
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
        }
        rounds = _starts(environ, function, bare, sizes, say)
    return _cold_start("cold start of DecisionFunction", rounds, sizes)


def _starts(
    environ: Mapping[str, str], function: str, bare: str, sizes: Sizes, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Starts both programs in turns, and returns each round's durations."""
    rounds = []
    for program in (function, bare):
        _seconds_of(program, environ)  # An unmeasured run writes the bytecode and fills the file cache.
    for number in rounds_of(sizes.rounds):
        say(number)
        pairs = [(_seconds_of(function, environ), _seconds_of(bare, environ)) for _ in range(sizes.cold_starts)]
        rounds.append({"function": [one for one, _ in pairs], "bare": [other for _, other in pairs]})
    return rounds


def _cold_start(title: str, rounds: list[dict[str, Any]], sizes: Sizes) -> Measured:
    above = [median_of(one["function"]) for one in rounds]
    below = [median_of(one["bare"]) for one in rounds]
    return Measured(
        [
            ratio(f"{title} ÷ bare imports and query", above, below, Bar("≤", 1.4)),
            median(title, [1000 * one for one in above], "ms"),
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
