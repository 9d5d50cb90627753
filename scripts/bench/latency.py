"""Scenarios of latency: from a commit to the message's arrival at the queue."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg

from bench.figures import Bar, Measured, median, percentile, ratio
from bench.rig import QUERIES, SUBSCRIPTION, BenchError, Queues, Seed
from bench.turns import KEPT_BACK_SECONDS, TICK_BYTES, relay_options, rounds_of
from control_plane.model.contract import SYSTEM_EVENTS
from domains.finance.events import MARKET_TICKS
from queue_endpoint import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.figures import Round
    from bench.rig import Database, Rig
    from bench.sizes import Sizes

_START_SECONDS = 1.0
"""How long a relay runs before its latencies count.

An invocation lasts a minute, so what it catches up with at its start delays less than a hundredth of its messages.
"""
_NEIGHBOUR = "system_events"
"""A subscription of another topic."""
_SLOW_MS = 1_500
"""How long a slow neighbour's queue takes to answer."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another subscription of the same relay: what is wrong with its queue, and what is pending for it."""

    fault: Mapping[str, Any]
    """The arguments of :meth:`queue_endpoint.QueueEndpoint.set`."""
    backlog: Seed


def latency(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures from a commit's return to the message's arrival at the queue, at a steady rate into a lingering relay.

    The queue's own time is not part of it. Both times are read from this machine's clock.
    """
    rounds: list[Round] = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: {sizes.latency_rate} events/s for {sizes.latency_seconds:g} s")
        rounds.append(
            {"relay": {"latencies_ms": _latencies(rig, rate=sizes.latency_rate, seconds=sizes.latency_seconds)}}
        )
    by_round = [one["relay"]["latencies_ms"] for one in rounds]
    title = f"commit to publish at {sizes.latency_rate}/s"
    return Measured(
        [
            median(f"{title}, p50", [percentile(one, 50) for one in by_round], "ms", Bar("≤", 25)),
            median(f"{title}, p99", [percentile(one, 99) for one in by_round], "ms", Bar("≤", 100)),
        ],
        rounds,
        {"events_per_second": sizes.latency_rate, "seconds": sizes.latency_seconds, "queue_latency_ms": rig.latency_ms},
    )


def neighbours(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares the latency of one subscription while another's queue is slow or down with its latency alone.

    One relay serves both. The other has a backlog that outlasts the turn, with bodies of 1 KiB or of 900 kB.
    """
    rounds: list[dict[str, Any]] = []
    cases: dict[str, Neighbour | None] = {
        "alone": None,
        **{
            f"{how}, bodies of {size}": Neighbour(
                fault, Seed(backlog, padding=padding, topic=SYSTEM_EVENTS, subscriptions=(_NEIGHBOUR,))
            )
            for how, fault in (("slow", {"latency_ms": _SLOW_MS}), ("down", {"answer": "close", "accepts": "never"}))
            for size, padding, backlog in (("1 KiB", 1024 - TICK_BYTES, 2_000), ("900 kB", 900_000, 40))
        },
    }
    for number in rounds_of(sizes.rounds):
        one = {}
        for name, neighbour in cases.items():
            say(f"{number}: {name}")
            one[name] = {
                "latencies_ms": _latencies(
                    rig, rate=sizes.latency_rate, seconds=sizes.neighbour_seconds, neighbour=neighbour
                )
            }
        rounds.append(one)
    p99 = {name: [percentile(one[name]["latencies_ms"], 99) for one in rounds] for name in cases}
    return Measured(
        [
            *(
                ratio(f"commit to publish, p99: neighbour {name} ÷ alone", p99[name], p99["alone"], Bar("≤", 1.5))
                for name, neighbour in cases.items()
                if neighbour is not None
            ),
            median("commit to publish, p99, alone beside an idle neighbour", p99["alone"], "ms"),
        ],
        rounds,
        {"events_per_second": sizes.latency_rate, "seconds": sizes.neighbour_seconds, "slow_ms": _SLOW_MS},
    )


def _latencies(rig: Rig, *, rate: int, seconds: float, neighbour: Neighbour | None = None) -> list[float]:
    """Commits one event after another while one relay lingers; returns each latency in milliseconds, in that order.

    The relay serves the neighbour's queue, too, even if nothing is pending for it.
    """
    early = round(rate * _START_SECONDS)
    wanted = early + max(round(rate * seconds), 1)
    with rig.fresh(Seed(0)) as database, serve(latency_ms=rig.latency_ms) as endpoint:
        queues = Queues(endpoint.url, {name: endpoint.queue_url(name) for name in (SUBSCRIPTION, _NEIGHBOUR)})
        # The relay gets little more time than that: at its end it waits for all that a slow neighbour has in flight.
        linger_seconds = _START_SECONDS + seconds + 1
        options = relay_options(linger_seconds + KEPT_BACK_SECONDS, linger_seconds=linger_seconds, warm_up=True)
        with rig.child("measured_relay", database, queues, options) as relay:
            relay.wait_until_ready()
            if neighbour is not None:
                endpoint.set(_NEIGHBOUR, **neighbour.fault)
                rig.fill(database, neighbour.backlog)
            rig.checkpoint()
            relay.go()
            committed = trickle(database, wanted, every_seconds=1 / rate)
            report = relay.report()
        # Requests and messages are recorded in the same order.
        messages = (message for message in endpoint.accepted() if message.queue == SUBSCRIPTION)
        arrived = {
            str(next(messages).event_id): request.at
            for request in endpoint.requests()
            if request.queue == SUBSCRIPTION
            for _ in range(request.entries)
        }
    if missing := committed.keys() - arrived.keys():
        msg = f"{len(missing):,} of {wanted:,} messages did not arrive."
        raise BenchError(msg, details=str(report["result"]))
    # A commit is visible to others a moment before its writer is told, so a fast relay may publish before that.
    latencies = [round(max(1000 * (arrived[event_id] - at), 0.0), 3) for event_id, at in committed.items()]
    return latencies[early:]


def trickle(
    database: Database, events: int, *, every_seconds: float, at_most_seconds: float = math.inf
) -> dict[str, float]:
    """Commits events at even intervals; returns by event id when the commit returned, by ``time.monotonic()``.

    A machine too busy for the pace commits fewer in ``at_most_seconds``.
    """
    committed = {}
    # Committed as the owner, since the pipeline's own role may not set a message's timestamps.
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        started = time.monotonic()
        for number in range(events):
            time.sleep(max(started + number * every_seconds - time.monotonic(), 0))
            if time.monotonic() - started > at_most_seconds:
                break
            event_id = str(uuid4())
            connection.execute(
                QUERIES["make_events"].sql,
                {
                    "count": 1,
                    "padding": 0,
                    "delivered": False,
                    "event_id": event_id,
                    "topic": MARKET_TICKS,
                    "subscriptions": [SUBSCRIPTION],
                },
            )
            committed[event_id] = time.monotonic()
    return committed
