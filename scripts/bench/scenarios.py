"""What is measured, each scenario by one function: a rig, the sizes and how to say how far it is in, Measured out.

Sides take turns (A B A B …), each turn on a database that starts the same, in processes of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median as median_of
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg

from bench.figures import Bar, Figure, Measured, median, percentile, ratio, worst
from bench.layouts import LAYOUTS
from bench.rig import QUERIES, SUBSCRIPTION, BenchError, Queues, Seed, emulated_sqs, new_queue
from control_plane.model.contract import SYSTEM_EVENTS
from domains.finance.events import MARKET_TICKS
from queue_endpoint import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.figures import Round
    from bench.layouts import Layout
    from bench.rig import Child, Database, Rig


type Scenario = Callable[[Rig, Sizes, Callable[[str], object]], Measured]

_KEPT_BACK_SECONDS = 12.0
"""What a relay keeps of its invocation for its last send and settlement. Were it another, the turn would only be that
much longer or shorter: rates are by the time it really took."""
_START_SECONDS = 1.0
"""How long a relay is watched before its latency counts. An invocation lasts a minute: what it catches up with at its
start delays no hundredth of its messages."""
_TICK_BYTES = 430
_MIB = 1_048_576


_SECOND = "detector"
"""Another subscription of the same topic."""
_NEIGHBOUR = "system_events"
"""A subscription of another topic."""
_SLOW_MS = 1_500


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another subscription that the relay serves: what is wrong with its queue, and what is pending for it."""

    fault: Mapping[str, Any]
    """As :meth:`queue_endpoint.QueueEndpoint.set` takes it."""
    backlog: Seed


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. Durations in seconds."""

    rounds: int = 5
    events: int = 20_000
    emulated_events: int = 10_000
    small_backlog: int = 10_000
    large_backlog: int = 1_000_000
    """Pending, and as many delivered."""
    backlog_seconds: float = 5
    latency_seconds: float = 10
    latency_rate: int = 50
    neighbour_seconds: float = 8
    """Of each case of a neighbour."""
    cold_starts: int = 4
    """Per round and side."""
    large_bodies: int = 200
    idle_seconds: float = 10


QUICK = Sizes(
    rounds=1,
    events=1_000,
    emulated_events=100,
    small_backlog=1_000,
    large_backlog=5_000,
    backlog_seconds=0.2,
    latency_seconds=1,
    neighbour_seconds=1,
    cold_starts=1,
    large_bodies=20,
    idle_seconds=1,
)
"""To see that everything works. The figures mean nothing."""


def publishing(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """The relay beside a bare loop of boto3's send_message_batch, which has no database to look after."""
    return _against_bare_publishing(rig, sizes.rounds, sizes.events, say, bar=Bar("≥", 2.0))


def publishing_localstack(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """The same on LocalStack's SQS, or on that of --endpoint."""
    with emulated_sqs(rig, say) as endpoint_url:
        return _against_bare_publishing(
            rig, sizes.rounds, sizes.emulated_events, say, bar=Bar("≥", 0.95), endpoint_url=endpoint_url
        )


def claiming(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """The relay with a publisher that does nothing beside a bare loop of the outbox's own claim and settle."""
    seed = Seed(sizes.events)
    rounds = []
    for number in _rounds(sizes.rounds):
        say(f"{number}: relay")
        with rig.fresh(seed) as database:
            relay = _drain(rig, database, sizes.events, publish=False)
        say(f"{number}: bare loop")
        with rig.fresh(seed) as database:
            bare = _timed(rig, rig.child("bare_claim", database), sizes.events)
        rounds.append({"relay": relay, "bare": bare})
    return Measured(
        [
            ratio(
                "relay that sends nothing ÷ bare claim and settle",
                _rates(rounds, "relay"),
                _rates(rounds, "bare"),
                Bar("≥", 0.95),
            ),
            median("relay that sends nothing", _rates(rounds, "relay"), "/s"),
            median("bare claim and settle", _rates(rounds, "bare"), "/s"),
        ],
        rounds,
        {"events": sizes.events},
    )


def layouts(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Bare loops of claim and settle on the layout that is used, on the one before it, and on two that were not chosen.

    What a loop has the database write is read from the write-ahead log, from a checkpoint on: each page that is changed
    is then written whole once, as it is after every checkpoint.
    """
    seed = Seed(sizes.events)
    rounds: list[dict[str, Any]] = []
    for number in _rounds(sizes.rounds):
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
                _rates(rounds, "new"),
                _rates(rounds, "old"),
                Bar("≥", 1.25),
            ),
            median("WAL of a message, claimed and settled", wal["new"], "bytes", Bar("≤", 1_000)),
            *(
                figure
                for name, layout in LAYOUTS.items()
                for figure in (
                    median(f"{layout.title}: bare loop", _rates(rounds, name), "/s"),
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
    """As many deliveries to two subscriptions as to one, and what a second subscription of a topic costs on disk."""
    both = (SUBSCRIPTION, _SECOND)
    one_of, two_of = Seed(sizes.events), Seed(sizes.events // 2, subscriptions=both)
    rounds = []
    for number in _rounds(sizes.rounds):
        say(f"{number}: two")
        queues = Queues(rig.queues.endpoint_url, {name: f"{rig.queues.urls[SUBSCRIPTION]}-{name}" for name in both})
        with rig.fresh(two_of) as database:
            two = _drain(rig, database, sizes.events // 2 * 2, queues=queues)
        say(f"{number}: one")
        with rig.fresh(one_of) as database:
            one = _drain(rig, database, sizes.events)
        rounds.append({"two": two, "one": one})
    say("what a second one costs on disk")
    pending = _extra_bytes(rig, Seed(sizes.events), "public.pending_deliveries")
    delivered = _extra_bytes(rig, Seed(0, delivered=sizes.events), "public.deliveries")
    return Measured(
        [
            ratio(
                "deliveries to two subscriptions ÷ to one", _rates(rounds, "two"), _rates(rounds, "one"), Bar("≥", 0.8)
            ),
            median("deliveries to two subscriptions", _rates(rounds, "two"), "/s"),
            Figure("a second subscription, of a message that is pending", pending, "bytes"),
            Figure("a second subscription, of a message that is delivered", delivered, "bytes"),
        ],
        rounds,
        {"deliveries": sizes.events},
    )


def backlog(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Throughput on a large backlog, as much again being delivered already, beside that on a small one."""
    small, large = Seed(sizes.small_backlog), Seed(sizes.large_backlog, delivered=sizes.large_backlog)
    large_text = _short(sizes.large_backlog)
    rounds = []
    say(f"filling in {large.pending:,} pending, {large.delivered:,} delivered")
    with rig.filled(large) as big_database:
        for number in _rounds(sizes.rounds):
            say(f"{number}: large")
            on_large = _timed(
                rig,
                rig.child("measured_relay", big_database, options=_relay(_KEPT_BACK_SECONDS + sizes.backlog_seconds)),
            )
            say(f"{number}: small")
            with rig.fresh(small) as database:
                on_small = _drain(rig, database, small.pending)
            rounds.append({"large": on_large, "small": on_small})
    return Measured(
        [
            ratio(
                f"{large_text} pending, {large_text} delivered ÷ {_short(small.pending)} pending",
                _rates(rounds, "large"),
                _rates(rounds, "small"),
                Bar("≥", 0.85),
            ),
            median(f"relay, {large_text} pending", _rates(rounds, "large"), "/s"),
        ],
        rounds,
        {"small": asdict(small), "large": asdict(large), "seconds_on_large": sizes.backlog_seconds},
    )


def pinned(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Throughput while an old transaction keeps every dead row version, beside that without."""
    seed = Seed(sizes.events)
    rounds = []
    for number in _rounds(sizes.rounds):
        say(f"{number}: pinned")
        with rig.fresh(seed) as database, _snapshot(database):
            held = _drain(rig, database, seed.pending)
        say(f"{number}: free")
        with rig.fresh(seed) as database:
            free = _drain(rig, database, seed.pending)
        rounds.append({"pinned": held, "free": free})
    return Measured(
        [
            ratio(
                f"pinned horizon ÷ free, {_short(seed.pending)} events",
                _rates(rounds, "pinned"),
                _rates(rounds, "free"),
                Bar("≥", 0.65),
            )
        ],
        rounds,
        {"events": sizes.events},
    )


def latency(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """From a commit's return to the message's arrival at the queue, at a steady trickle into a lingering relay.

    The arrival ends it, so the queue's own time is not in it; both ends are read from this machine's one clock.
    """
    rounds: list[Round] = []
    for number in _rounds(sizes.rounds):
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
    """The latency of one subscription while another's queue is slow or down, beside its latency alone.

    One relay serves both. The other has a backlog that outlasts the turn, of bodies of a kibibyte or of 900 kB.
    """
    rounds: list[dict[str, Any]] = []
    cases: dict[str, Neighbour | None] = {
        "alone": None,
        **{
            f"{how}, bodies of {size}": Neighbour(
                fault, Seed(backlog, padding=padding, topic=SYSTEM_EVENTS, subscriptions=(_NEIGHBOUR,))
            )
            for how, fault in (("slow", {"latency_ms": _SLOW_MS}), ("down", {"answer": "close", "accepts": "never"}))
            for size, padding, backlog in (("1 KiB", 1024 - _TICK_BYTES, 2_000), ("900 kB", 900_000, 40))
        },
    }
    for number in _rounds(sizes.rounds):
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


def cold_start(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """A fresh process to the end of its first claim, beside one that imports boto3 and psycopg and asks one query."""
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
            _seconds_of(program, environ)  # has the bytecode written and the files read
        for number in _rounds(sizes.rounds):
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
    """The most memory a relay ever has resident, at a backlog of many claims."""
    sides = {
        "1 KiB": (Seed(sizes.events, padding=1024 - _TICK_BYTES), 128),
        # The attributes count too: this is as large as one may be.
        "1 MiB": (Seed(sizes.large_bodies, padding=_MIB - 1_600), 256),
    }
    rounds: list[dict[str, Any]] = []
    for number in _rounds(sizes.rounds):
        one = {}
        for name, (seed, _) in sides.items():
            say(f"{number}: {seed.pending:,} bodies of {name}")
            with rig.fresh(seed) as database:
                one[name] = _drain(rig, database, seed.pending)
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
    """What a relay that lingers and finds nothing takes of a core."""
    rounds = []
    with rig.fresh(Seed(0)) as database:
        for number in _rounds(sizes.rounds):
            say(f"{number}: {sizes.idle_seconds:g} s")
            options = _relay(600, linger_seconds=sizes.idle_seconds, warm_up=True)
            rounds.append({"relay": _timed(rig, rig.child("measured_relay", database, options=options), 0)})
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


def relays(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """1, 2 and 4 relays at once on one outbox, as processes."""
    seed = Seed(sizes.events)
    rounds: list[dict[str, Any]] = []
    for number in _rounds(sizes.rounds):
        one: dict[str, Any] = {}
        for how_many in (1, 2, 4):
            say(f"{number}: {how_many}")
            with rig.fresh(seed) as database, contextlib.ExitStack() as stack:
                children = [
                    stack.enter_context(rig.child("measured_relay", database, options=_relay(600)))
                    for _ in range(how_many)
                ]
                reports, seconds = _race(rig, children)
                published = _published(reports, seed.pending)
                one[str(how_many)] = {"seconds": seconds, "result": {"published": published}, "relays": reports}
        rounds.append(one)
    return Measured(
        [median(f"{name} relay{'s' if name > '1' else ''} at once", _rates(rounds, name), "/s") for name in rounds[0]],
        rounds,
        {"events": sizes.events},
    )


SCENARIOS: Mapping[str, Scenario] = {
    "publishing": publishing,
    "publishing-localstack": publishing_localstack,
    "claiming": claiming,
    "layouts": layouts,
    "subscriptions": subscriptions,
    "backlog": backlog,
    "pinned-horizon": pinned,
    "latency": latency,
    "neighbours": neighbours,
    "cold-start": cold_start,
    "memory": memory,
    "idle": idle,
    "relays": relays,
}


def _against_bare_publishing(
    rig: Rig, rounds: int, events: int, say: Callable[[str], object], *, bar: Bar, endpoint_url: str | None = None
) -> Measured:
    seed = Seed(events)
    where = ""
    if endpoint_url is not None:
        where = ", LocalStack's SQS" if rig.endpoint_url is None else f", {rig.endpoint_url}"
    taken = []

    def queues() -> contextlib.AbstractContextManager[Queues]:
        """What is in a queue already may slow it down: an emulator's is new for each turn."""
        return contextlib.nullcontext(rig.queues) if endpoint_url is None else new_queue(endpoint_url)

    for number in _rounds(rounds):
        say(f"{number}: relay")
        with rig.fresh(seed) as database, queues() as one:
            relay = _drain(rig, database, events, queues=one)
        say(f"{number}: bare loop")
        with rig.fresh(seed) as database, queues() as one:
            bare = _timed(rig, rig.child("bare_publish", database, one), events)
        taken.append({"relay": relay, "bare": bare})
    return Measured(
        [
            ratio(
                f"relay ÷ bare boto3 loop{where}",
                _rates(taken, "relay"),
                _rates(taken, "bare"),
                bar,
            ),
            median(f"relay{where}", _rates(taken, "relay"), "/s"),
            median(f"bare boto3 loop{where}", _rates(taken, "bare"), "/s"),
        ],
        taken,
        {"events": events, "queue_latency_ms": rig.latency_ms if endpoint_url is None else None},
    )


def _rounds(how_many: int) -> Iterator[str]:
    return (f"round {number} of {how_many}" for number in range(1, how_many + 1))


def _rates(rounds: Sequence[Round], side: str) -> list[float]:
    """Messages per second."""
    return [one[side]["result"]["published"] / one[side]["seconds"] for one in rounds]


def _short(number: int) -> str:
    """1M, 10k, 500."""
    for factor, suffix in ((1_000_000, "M"), (1_000, "k")):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{suffix}"
    return str(number)


def _relay(
    remaining_seconds: float, *, linger_seconds: float = 0, warm_up: bool = False, publish: bool = True
) -> dict[str, Any]:
    """The options of measured_relay."""
    return {
        "remaining_seconds": remaining_seconds,
        "linger_seconds": linger_seconds,
        "warm_up": warm_up,
        "publish": publish,
    }


def _drain(
    rig: Rig, database: Database, events: int, *, queues: Queues | None = None, publish: bool = True
) -> dict[str, Any]:
    """One relay until nothing is left."""
    return _timed(rig, rig.child("measured_relay", database, queues, _relay(600, publish=publish)), events)


def _run_layout(rig: Rig, database: Database, name: str, layout: Layout, seed: Seed) -> dict[str, Any]:
    """One loop until nothing is left; its report, and what it made the database write and keep."""
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
            _published([report], seed.pending)
            wal_bytes = _wal_position(connection) - before
        row = connection.execute(QUERIES["written_rows"].sql, {"tables": list(layout.tables)}).fetchone()
        assert row is not None
        return {**report, "wal_bytes": wal_bytes, "dead_rows": row[0], "disk_bytes": row[1]}


def _extra_bytes(rig: Rig, seed: Seed, table: str) -> float:
    """What a table takes on disk for each message when a second subscription has it, more than for one alone."""
    taken = []
    for names in ((SUBSCRIPTION,), (SUBSCRIPTION, _SECOND)):
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
    """How many bytes of write-ahead log there have been."""
    row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
    assert row is not None
    position: int = row[0]
    return position


def _timed(rig: Rig, child: Child, events: int | None = None) -> dict[str, Any]:
    """What a child measured. Raises BenchError where it did not publish `events`, or without a number, any."""
    with child:
        (report,), _ = _race(rig, [child])
    if events is None and not report["result"]["published"]:
        msg = "The relay published nothing in the time it was given."
        raise BenchError(msg, details=str(report["result"]))
    if events is not None:
        _published([report], events)
    return report


def _race(rig: Rig, children: Sequence[Child]) -> tuple[list[dict[str, Any]], float]:
    """The reports of children started together, and the seconds until the last one's was in."""
    for child in children:
        child.wait_until_ready()
    rig.checkpoint()
    started = time.perf_counter()
    for child in children:
        child.go()
    return [child.report() for child in children], time.perf_counter() - started


def _published(reports: Sequence[Mapping[str, Any]], events: int) -> int:
    """How many messages they published together. Raises BenchError where it is another number than asked for."""
    published: int = sum(report["result"]["published"] for report in reports)
    if published != events:
        msg = f"{published:,} messages were published, not {events:,}."
        raise BenchError(msg, details="\n".join(str(report["result"]) for report in reports))
    return published


@contextlib.contextmanager
def _snapshot(database: Database) -> Iterator[None]:
    """A transaction that still sees the database as it is now, as a forgotten report would."""
    with psycopg.connect(database.reader_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM schema_migrations")
        yield


def _latencies(rig: Rig, *, rate: int, seconds: float, neighbour: Neighbour | None = None) -> list[float]:
    """One relay lingers, one connection commits an event at a time; milliseconds, in the order of the commits.

    The relay serves the neighbour's queue, too, whether there is anything for it or not.
    """
    early = round(rate * _START_SECONDS)
    wanted = early + max(round(rate * seconds), 1)
    with rig.fresh(Seed(0)) as database, serve(latency_ms=rig.latency_ms) as endpoint:
        queues = Queues(endpoint.url, {name: endpoint.queue_url(name) for name in (SUBSCRIPTION, _NEIGHBOUR)})
        # Not for longer: it would go on to wait for all that it has claimed of a slow neighbour's.
        linger_seconds = _START_SECONDS + seconds + 1
        options = _relay(linger_seconds + _KEPT_BACK_SECONDS, linger_seconds=linger_seconds, warm_up=True)
        with rig.child("measured_relay", database, queues, options) as relay:
            relay.wait_until_ready()
            if neighbour is not None:
                endpoint.set(_NEIGHBOUR, **neighbour.fault)
                rig.fill(database, neighbour.backlog)
            rig.checkpoint()
            relay.go()
            committed = _trickle(database, wanted, every_seconds=1 / rate)
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
    # Visible to others a moment before its writer hears of it: a fast relay may be even faster than that.
    latencies = [round(max(1000 * (arrived[event_id] - at), 0.0), 3) for event_id, at in committed.items()]
    return latencies[early:]


def _trickle(database: Database, events: int, *, every_seconds: float) -> dict[str, float]:
    """Commit events at even intervals: event_id → when its commit returned, by ``time.monotonic()``."""
    committed = {}
    # As the owner: what a message dates from is for the database to say, in the pipeline.
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        started = time.monotonic()
        for number in range(events):
            time.sleep(max(started + number * every_seconds - time.monotonic(), 0))
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


def _seconds_of(program: str, environ: Mapping[str, str]) -> float:
    """How long a Python process takes, from its start to its end. Raises BenchError where it fails."""
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
