"""Scenarios of throughput: messages per second, beside a bare loop or beside the same relay with less load."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psycopg

from bench.figures import Bar, Measured, median, ratio
from bench.rig import Queues, Seed, emulated_sqs, new_queue
from bench.turns import KEPT_BACK_SECONDS, check_published, drain, race, rates, relay_options, rounds_of, short, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.rig import Database, Rig
    from bench.sizes import Sizes


def publishing(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares the relay with a bare loop of boto3's send_message_batch, which does nothing in the database."""
    return _against_bare_publishing(rig, sizes.rounds, sizes.events, say, bar=Bar("≥", 2.0))


def publishing_localstack(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures the same as ``publishing`` on LocalStack's SQS, or on the SQS of --endpoint."""
    with emulated_sqs(rig, say) as endpoint_url:
        return _against_bare_publishing(
            rig, sizes.rounds, sizes.emulated_events, say, bar=Bar("≥", 0.95), endpoint_url=endpoint_url
        )


def claiming(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares a relay whose publisher does nothing with a bare loop of the outbox's own claim and settle."""
    seed = Seed(sizes.events)
    rounds = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: relay")
        with rig.fresh(seed) as database:
            relay = drain(rig, database, sizes.events, publish=False)
        say(f"{number}: bare loop")
        with rig.fresh(seed) as database:
            bare = timed(rig, rig.child("bare_claim", database), sizes.events)
        rounds.append({"relay": relay, "bare": bare})
    return Measured(
        [
            ratio(
                "relay that sends nothing ÷ bare claim and settle",
                rates(rounds, "relay"),
                rates(rounds, "bare"),
                Bar("≥", 0.95),
            ),
            median("relay that sends nothing", rates(rounds, "relay"), "/s"),
            median("bare claim and settle", rates(rounds, "bare"), "/s"),
        ],
        rounds,
        {"events": sizes.events},
    )


def backlog(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares throughput on a large backlog, with as many deliveries already made, with that on a small one."""
    small, large = Seed(sizes.small_backlog), Seed(sizes.large_backlog, delivered=sizes.large_backlog)
    large_text = short(sizes.large_backlog)
    rounds = []
    say(f"filling in {large.pending:,} pending, {large.delivered:,} delivered")
    with rig.filled(large) as big_database:
        for number in rounds_of(sizes.rounds):
            say(f"{number}: large")
            on_large = timed(
                rig,
                rig.child(
                    "measured_relay", big_database, options=relay_options(KEPT_BACK_SECONDS + sizes.backlog_seconds)
                ),
            )
            say(f"{number}: small")
            with rig.fresh(small) as database:
                on_small = drain(rig, database, small.pending)
            rounds.append({"large": on_large, "small": on_small})
    return Measured(
        [
            ratio(
                f"{large_text} pending, {large_text} delivered ÷ {short(small.pending)} pending",
                rates(rounds, "large"),
                rates(rounds, "small"),
                Bar("≥", 0.85),
            ),
            median(f"relay, {large_text} pending", rates(rounds, "large"), "/s"),
        ],
        rounds,
        {"small": asdict(small), "large": asdict(large), "seconds_on_large": sizes.backlog_seconds},
    )


def pinned(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares throughput while an old transaction keeps vacuum from removing dead rows with throughput without it."""
    seed = Seed(sizes.events)
    rounds = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: pinned")
        with rig.fresh(seed) as database, _snapshot(database):
            held = drain(rig, database, seed.pending)
        say(f"{number}: free")
        with rig.fresh(seed) as database:
            free = drain(rig, database, seed.pending)
        rounds.append({"pinned": held, "free": free})
    return Measured(
        [
            ratio(
                f"pinned horizon ÷ free, {short(seed.pending)} events",
                rates(rounds, "pinned"),
                rates(rounds, "free"),
                Bar("≥", 0.65),
            )
        ],
        rounds,
        {"events": sizes.events},
    )


def relays(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Measures 1, 2 and 4 relay processes that share one outbox."""
    seed = Seed(sizes.events)
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(sizes.rounds):
        one: dict[str, Any] = {}
        for how_many in (1, 2, 4):
            say(f"{number}: {how_many}")
            with rig.fresh(seed) as database, contextlib.ExitStack() as stack:
                children = [
                    stack.enter_context(rig.child("measured_relay", database, options=relay_options(600)))
                    for _ in range(how_many)
                ]
                reports, seconds = race(rig, children)
                published = check_published(reports, seed.pending)
                one[str(how_many)] = {"seconds": seconds, "result": {"published": published}, "relays": reports}
        rounds.append(one)
    return Measured(
        [median(f"{name} relay{'s' if name > '1' else ''} at once", rates(rounds, name), "/s") for name in rounds[0]],
        rounds,
        {"events": sizes.events},
    )


def _against_bare_publishing(
    rig: Rig, rounds: int, events: int, say: Callable[[str], object], *, bar: Bar, endpoint_url: str | None = None
) -> Measured:
    seed = Seed(events)
    where = ""
    if endpoint_url is not None:
        where = ", LocalStack's SQS" if rig.endpoint_url is None else f", {rig.endpoint_url}"
    taken = []

    def queues() -> contextlib.AbstractContextManager[Queues]:
        """Makes a new queue for each turn on an emulator, since the messages in a queue may slow it down."""
        return contextlib.nullcontext(rig.queues) if endpoint_url is None else new_queue(endpoint_url)

    for number in rounds_of(rounds):
        say(f"{number}: relay")
        with rig.fresh(seed) as database, queues() as one:
            relay = drain(rig, database, events, queues=one)
        say(f"{number}: bare loop")
        with rig.fresh(seed) as database, queues() as one:
            bare = timed(rig, rig.child("bare_publish", database, one), events)
        taken.append({"relay": relay, "bare": bare})
    return Measured(
        [
            ratio(
                f"relay ÷ bare boto3 loop{where}",
                rates(taken, "relay"),
                rates(taken, "bare"),
                bar,
            ),
            median(f"relay{where}", rates(taken, "relay"), "/s"),
            median(f"bare boto3 loop{where}", rates(taken, "bare"), "/s"),
        ],
        taken,
        {"events": events, "queue_latency_ms": rig.latency_ms if endpoint_url is None else None},
    )


@contextlib.contextmanager
def _snapshot(database: Database) -> Iterator[None]:
    """Keeps a transaction open that sees the database as it is now, as a forgotten report would."""
    with psycopg.connect(database.reader_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM schema_migrations")
        yield
