"""The scenario of scaling: service times measured one by one, and what a simulation makes of them at larger loads."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import psycopg

from bench.figures import Bar, Figure, Measured, median, percentile
from bench.rig import QUERIES, SUBSCRIPTION, Queues, Seed, deployed_settings
from bench.simulation import Stage, bursts, simulate
from bench.turns import KEPT_BACK_SECONDS, drain, relay_options, rounds_of
from control_plane.outbox.publisher import MAX_BATCH_ENTRIES
from domains.finance.events import MARKET_TICKS
from local_cloud.build import TEMPLATE
from local_cloud.roles import CONSUME
from local_cloud.template import read_template
from queue_endpoint import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.rig import Child, Database, Rig
    from bench.simulation import Passage
    from bench.sizes import Sizes

EVENTS_A_DAY: Final = (1_000_000, 10_000_000, 100_000_000)
MINUTES_A_DAY: Final = 390
"""How long a stock exchange is open: all of a day's events come in these minutes, each minute's at once."""
MEBIBYTES_OF_A_CORE: Final = 1_769
"""A Lambda function with so much memory has one core; one with less has its share of it."""
_MOST_BUSY: Final = 0.5
"""How busy the consumer is at most where the simulation is checked: near its limit, a small error in its service time
becomes a large one in the delay."""


def scaling(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures what a message costs the relay, a consumer and Postgres, and simulates the pipeline with that.

    The simulation is checked against a real run: bursts that a lingering relay publishes and SignalLab consumes.
    """
    consumer = _consumer(rig)
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: the relay")
        relay = _relay(rig, sizes.events)
        say(f"{number}: the consumer")
        consumed = _consume(rig, sizes.consumed, consumer.batch)
        every_seconds = sizes.burst * consumed["seconds_a_message"] / _MOST_BUSY
        say(f"{number}: {sizes.bursts} bursts of {sizes.burst}, every {every_seconds:.1f} s")
        real = _real_delays(rig, sizes, consumer.batch, every_seconds)
        stages = [
            Stage("relay", 1, MAX_BATCH_ENTRIES, 0, relay["seconds_a_message"]),
            Stage("consumer", 1, consumer.batch, 0, consumed["seconds_a_message"]),
        ]
        simulated = simulate(bursts(count=sizes.burst, every_seconds=every_seconds, times=sizes.bursts), stages)[-1]
        rounds.append(
            {
                "relay": relay,
                "consumer": consumed,
                "real": {"delay_p50": percentile(real, 50), "delay_p99": percentile(real, 99)},
                "simulated": {"delay_p50": simulated.delay_p50, "delay_p99": simulated.delay_p99},
            }
        )
    return Measured(
        [*_service_times(rounds), *_check(rounds), *_projections(rounds, consumer, sizes.simulated_minutes)],
        rounds,
        {"events": sizes.events, "consumed": sizes.consumed, "burst": sizes.burst, "bursts": sizes.bursts},
    )


def _consumer(rig: Rig) -> Stage:
    """Returns SignalLab's workers and batch, those of the template, without service times."""
    function = read_template(rig.workspace.checkout / TEMPLATE)["Resources"]["SignalLabFunction"]["Properties"]
    trigger = function["Events"]["MarketTicks"]["Properties"]
    return Stage("consumer", trigger["ScalingConfig"]["MaximumConcurrency"], trigger["BatchSize"], 0, 0)


def _relay(rig: Rig, events: int) -> dict[str, float]:
    with rig.fresh(Seed(0)) as empty:
        bytes_before = _bytes_on_disk(empty)
    with rig.fresh(Seed(events)) as database:
        before = rig.server_cpu_seconds()
        report = drain(rig, database, events)
        used = rig.server_cpu_seconds() - before
        grown = _bytes_on_disk(database) - bytes_before
    return _per_message(report, events, used) | {"bytes_a_message": grown / events}


def _consume(rig: Rig, messages: int, batch: int) -> dict[str, float]:
    with rig.fresh(Seed(0)) as database:
        bytes_before, before = _bytes_on_disk(database), rig.server_cpu_seconds()
        report = timed_consumer(rig, database, messages, batch, due=None)
        used = rig.server_cpu_seconds() - before
        grown = _bytes_on_disk(database) - bytes_before
    return _per_message(report, messages, used) | {"bytes_a_message": grown / messages}


def _per_message(report: Mapping[str, Any], messages: int, server_seconds: float) -> dict[str, float]:
    return {
        "seconds_a_message": report["seconds"] / messages,
        "cpu_a_message": report["cpu_seconds"] / messages,
        "postgres_a_message": server_seconds / messages,
    }


def timed_consumer(
    rig: Rig, database: Database, messages: int, batch: int, *, due: Sequence[float] | None
) -> dict[str, Any]:
    """Runs SignalLab on so many messages; returns its report."""
    child: Child = rig.child(
        "measured_consumer",
        database,
        options={"messages": messages, "batch": batch, "due": list(due) if due else None},
        more_environ={
            **deployed_settings(rig.workspace, "SignalLabFunction"),
            "DATABASE_URL": rig.url_as(CONSUME, database),
            "PYTHONPATH": rig.pythonpath("signal_lab"),
        },
    )
    with child:
        child.wait_until_ready()
        child.go()
        return child.report()


def _real_delays(rig: Rig, sizes: Sizes, batch: int, every_seconds: float) -> list[float]:
    """Commits bursts into a lingering relay, and lets SignalLab take them as they arrived; returns seconds of delay.

    The consumer runs after the relay, at the same pace, so that the two do not share the machine's cores.
    """
    seconds = every_seconds * sizes.bursts
    with rig.fresh(Seed(0)) as database, serve(latency_ms=rig.latency_ms) as endpoint:
        queues = Queues(endpoint.url, {SUBSCRIPTION: endpoint.queue_url(SUBSCRIPTION)})
        options = relay_options(seconds + KEPT_BACK_SECONDS, linger_seconds=seconds, warm_up=True)
        with rig.child("measured_relay", database, queues, options) as relay:
            relay.wait_until_ready()
            relay.go()
            committed = _commit_bursts(database, sizes, every_seconds)
            relay.report()
        arrived = [request.at for request in endpoint.requests() for _ in range(request.entries)]
    due = [at - committed[0] for at in arrived]
    with rig.fresh(Seed(0)) as database:
        through = timed_consumer(rig, database, len(due), batch, due=due)["through"]
    born = [at - committed[0] for at in committed for _ in range(sizes.burst)]
    return [max(end - start, 0.0) for end, start in zip(through, born, strict=True)]


def _commit_bursts(database: Database, sizes: Sizes, every_seconds: float) -> list[float]:
    """Commits the bursts at even intervals; returns when each commit returned, by ``time.monotonic()``."""
    asked = {"padding": 0, "delivered": False, "event_id": None, "topic": MARKET_TICKS, "subscriptions": [SUBSCRIPTION]}
    committed = []
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(QUERIES["make_subscriptions"].sql, asked)
        started = time.monotonic()
        for number in range(sizes.bursts):
            time.sleep(max(started + number * every_seconds - time.monotonic(), 0))
            connection.execute(QUERIES["make_events"].sql, asked | {"count": sizes.burst})
            committed.append(time.monotonic())
    return committed


def _bytes_on_disk(database: Database) -> int:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        row = connection.execute(QUERIES["bytes_on_disk"].sql).fetchone()
    assert row is not None, "a function's value is a row"
    return int(row[0])


def _service_times(rounds: Sequence[Mapping[str, Any]]) -> list[Figure]:
    def micros(side: str, name: str) -> list[float]:
        return [1_000_000 * one[side][name] for one in rounds]

    return [
        *(
            median(f"{side}, a message: {title}", micros(side, name), "µs")
            for side in ("relay", "consumer")
            for title, name in (
                ("time", "seconds_a_message"),
                ("its processor time", "cpu_a_message"),
                ("Postgres's processor time", "postgres_a_message"),
            )
        ),
        *(
            median(f"{title}: on disk", [one[side]["bytes_a_message"] for one in rounds], "bytes")
            for side, title in (("relay", "an event and its delivered message"), ("consumer", "consumer, a message"))
        ),
    ]


def _check(rounds: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Returns by which factor the simulated delays differ from the real ones, whichever is larger."""
    return [
        median(
            f"commit to consumed, {name[-3:]}: simulation off by",
            [
                max(one["simulated"][name] / one["real"][name], one["real"][name] / one["simulated"][name])
                for one in rounds
            ],
            "×",
            Bar("≤", 1.5),
        )
        for name in ("delay_p50", "delay_p99")
    ]


def _projections(rounds: Sequence[Mapping[str, Any]], consumer: Stage, minutes: int) -> list[Figure]:
    """Returns the delays at loads that were not run: one relay, and the template's consumers, at Lambda's speed."""
    relay, consumed = (
        statistics.median(_on_lambda(one[side], memory=512) for one in rounds) for side in ("relay", "consumer")
    )
    stages = [
        Stage("relay", 1, MAX_BATCH_ENTRIES, 0, relay),
        Stage("consumer", consumer.workers, consumer.batch, 0, consumed),
    ]
    figures = [Figure(f"{stage.name}s at 512 MB, {stage.workers}", stage.most_a_second, "/s") for stage in stages]
    for a_day in EVENTS_A_DAY:
        for passage in simulate(bursts(count=a_day // MINUTES_A_DAY, every_seconds=60, times=minutes), stages):
            figures += _projected(f"{a_day // 1_000_000}M a day, {passage.stage}", passage)
    return figures


def _projected(title: str, passage: Passage) -> list[Figure]:
    return [
        Figure(f"{title}: most waiting", passage.most_waiting, ""),
        Figure(f"{title}: delay, p99", passage.delay_p99, "s"),
        Figure(f"{title}: busy", 100 * passage.busy, "%"),
    ]


def _on_lambda(service: Mapping[str, float], *, memory: int) -> float:
    """Returns the seconds that a message takes where the processor is shared: what is waited for stays as it is."""
    waited = max(service["seconds_a_message"] - service["cpu_a_message"], 0)
    return waited + service["cpu_a_message"] * MEBIBYTES_OF_A_CORE / memory
