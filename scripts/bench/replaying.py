"""The scenario of a replay: what it costs the live flow, whether it keeps its rate, and how soon a cancel acts."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from bench.figures import Bar, Measured, median, percentile, ratio, worst
from bench.latency import trickle
from bench.rig import SUBSCRIPTION, BenchError, Queues, Seed
from bench.turns import KEPT_BACK_SECONDS, drain, relay_options, rounds_of
from control_plane.operations import service
from control_plane.operations.engine import Engine
from control_plane.operations.kind import State
from control_plane.operations.rows import read_operation
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from domains import load_kinds
from local_cloud.roles import MAINTAIN
from queue_endpoint import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from psycopg import Connection

    from bench.rig import Database, Rig
    from bench.sizes import Sizes
    from control_plane.operations.kind import Kind
    from queue_endpoint import QueueEndpoint

_SHARE: Final = 0.5
"""The replay's rate, as a share of what the relay carries alone in the same round."""
_EARLY_SECONDS: Final = 2.0
"""How long the live flow runs before its latencies count: the relay and the replay begin meanwhile."""
_CANCELLED_SECONDS: Final = 10.0
"""How long the replay that is cancelled would take at least."""
_WAIT_SECONDS: Final = 300.0
_END_SECONDS: Final = 10.0
"""How much longer the relay works than the replay should take."""


def replaying(rig: Rig, sizes: Sizes, say: Callable[[str], object]) -> Measured:
    """Compares the live flow's latency beside a replay at half the relay's rate with its latency alone.

    Relay and OperationsFunction are processes as deployed. Then another replay is cancelled under way.
    """
    rounds: list[dict[str, Any]] = []
    for number in rounds_of(sizes.rounds):
        say(f"{number}: the relay's rate")
        with rig.fresh(Seed(sizes.events)) as database:
            relayed = drain(rig, database, sizes.events)
        rate = round(_SHARE * relayed["result"]["published"] / relayed["seconds"], 1)
        seconds = min(sizes.replayed / rate, sizes.alone_seconds)
        say(f"{number}: the live flow alone, {seconds:.0f} s")
        with rig.fresh(Seed(0, delivered=sizes.replayed)) as database, serve(latency_ms=rig.latency_ms) as endpoint:
            alone = _live(rig, database, endpoint, sizes, seconds)
        say(f"{number}: beside a replay of {sizes.replayed:,} at {rate:,.0f} /s")
        with rig.fresh(Seed(0, delivered=sizes.replayed)) as database:
            beside = _beside(rig, database, sizes, rate)
            say(f"{number}: another one is cancelled")
            cancelled = _cancel(rig, database, sizes, rate)
        rounds.append(
            {
                "relay": {"rate": 2 * rate},
                "alone": alone,
                "beside": beside,
                "cancelled": cancelled,
            }
        )
    return Measured(
        [
            ratio(
                "commit to publish, p99: beside a replay at half the relay's rate ÷ alone",
                [percentile(one["beside"]["latencies_ms"], 99) for one in rounds],
                [percentile(one["alone"]["latencies_ms"], 99) for one in rounds],
                Bar("≤", 1.5),
            ),
            ratio(
                "commit to publish, p50: beside a replay at half the relay's rate ÷ alone",
                [percentile(one["beside"]["latencies_ms"], 50) for one in rounds],
                [percentile(one["alone"]["latencies_ms"], 50) for one in rounds],
                None,
            ),
            median("the replay's rate, asked for", [one["beside"]["asked"] for one in rounds], "/s"),
            median(
                "the replay's rate: off by",
                [100 * abs(one["beside"]["rate"] / one["beside"]["asked"] - 1) for one in rounds],
                "%",
                Bar("≤", 5),
            ),
            worst(
                "cancel: until the last replayed message",
                [one["cancelled"]["last_after_seconds"] for one in rounds],
                "s",
                Bar("≤", 2),
            ),
        ],
        rounds,
        {"replayed": sizes.replayed, "live_events_per_second": sizes.latency_rate},
    )


def _live(
    rig: Rig,
    database: Database,
    endpoint: QueueEndpoint,
    sizes: Sizes,
    seconds: float,
    *,
    begin: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Commits live events while one relay lingers; returns their latencies, and the rate of what came beside them.

    ``begin`` is called once the relay is at work.
    """
    linger_seconds = _EARLY_SECONDS + seconds + _END_SECONDS
    with _relay(rig, database, endpoint, linger_seconds) as report:
        begin()
        lasting = _EARLY_SECONDS + seconds
        committed = trickle(
            database,
            round(lasting * sizes.latency_rate),
            every_seconds=1 / sizes.latency_rate,
            at_most_seconds=lasting,
        )
        report()
    live: dict[str, float] = {}
    others: list[float] = []
    for event_id, at in _arrivals(endpoint):
        if event_id in committed:
            live[event_id] = at
        else:
            others.append(at)
    if missing := committed.keys() - live.keys():
        msg = f"{len(missing):,} of {len(committed):,} live messages did not arrive."
        raise BenchError(msg)
    latencies = [round(max(1000 * (live[event_id] - at), 0.0), 3) for event_id, at in committed.items()]
    counted = latencies[round(_EARLY_SECONDS * sizes.latency_rate) :]
    return {"latencies_ms": counted, "replayed": len(others)} | ({"rate": _rate(others, sizes)} if others else {})


def _rate(arrived: Sequence[float], sizes: Sizes) -> float:
    """Returns how many a second arrived. Raises BenchError if another number arrived than should be replayed."""
    if len(arrived) != sizes.replayed:
        msg = f"{len(arrived):,} messages were replayed, not {sizes.replayed:,}."
        raise BenchError(msg)
    return (len(arrived) - 1) / (max(arrived) - min(arrived))


def _beside(rig: Rig, database: Database, sizes: Sizes, rate: float) -> dict[str, Any]:
    """Measures the live flow while a replay is under way, and the rate of the replay."""
    with (
        serve(latency_ms=rig.latency_ms) as endpoint,
        _commands(rig, database) as commands,
        _operations(rig, database) as work,
    ):
        operation_id = commands.plan(rate)

        def begin() -> None:
            commands.start(operation_id)
            work()

        return _live(rig, database, endpoint, sizes, sizes.replayed / rate, begin=begin) | {"asked": rate}


def _cancel(rig: Rig, database: Database, sizes: Sizes, rate: float) -> dict[str, float]:
    """Cancels a replay under way; returns how long that took, and when its last message came."""
    rate = min(rate, sizes.replayed / _CANCELLED_SECONDS)
    with (
        serve(latency_ms=rig.latency_ms) as endpoint,
        _commands(rig, database) as commands,
        _operations(rig, database) as work,
    ):
        operation_id = commands.plan(rate)
        with _relay(rig, database, endpoint, _CANCELLED_SECONDS + sizes.replayed / rate / 2) as report:
            commands.start(operation_id)
            work()
            _wait_for(endpoint, sizes.replayed // 5)
            asked_at = time.monotonic()
            commands.cancel(operation_id)
            answered_at = time.monotonic()
            report()
        arrived = [at for _, at in _arrivals(endpoint)]
    if len(arrived) >= sizes.replayed:
        msg = "All messages were replayed before the cancel: it had nothing to end."
        raise BenchError(msg)
    return {
        "answered_after_seconds": answered_at - asked_at,
        "last_after_seconds": max(max(arrived) - asked_at, answered_at - asked_at),
        "replayed": len(arrived),
    }


def _wait_for(endpoint: QueueEndpoint, messages: int) -> None:
    """Waits until so many messages have come. Raises BenchError where they do not."""
    ends_at = time.monotonic() + _WAIT_SECONDS
    while len(endpoint.accepted()) < messages:
        if time.monotonic() > ends_at:
            msg = f"{messages:,} messages of the replay did not come within {_WAIT_SECONDS:g} s."
            raise BenchError(msg)
        time.sleep(0.1)


def _arrivals(endpoint: QueueEndpoint) -> Iterator[tuple[str, float]]:
    """Yields each message's event id with when it arrived. Requests and messages are recorded in the same order."""
    messages = iter(endpoint.accepted())
    for request in endpoint.requests():
        for _ in range(request.entries):
            yield str(next(messages).event_id), request.at


@contextlib.contextmanager
def _relay(rig: Rig, database: Database, endpoint: QueueEndpoint, seconds: float) -> Iterator[Callable[[], object]]:
    """Starts a relay that lingers for so long; yields what waits for its end."""
    queues = Queues(endpoint.url, {SUBSCRIPTION: endpoint.queue_url(SUBSCRIPTION)})
    options = relay_options(seconds + KEPT_BACK_SECONDS, linger_seconds=seconds, warm_up=True)
    with rig.child("measured_relay", database, queues, options) as relay:
        relay.wait_until_ready()
        rig.checkpoint()
        relay.go()
        yield relay.report


@contextlib.contextmanager
def _operations(rig: Rig, database: Database) -> Iterator[Callable[[], None]]:
    """Prepares an OperationsFunction; yields what has it work. It is killed at the end of the block."""
    child = rig.child(
        "measured_operations",
        database,
        options={"remaining_seconds": 900},
        more_environ={
            "DATABASE_URL": rig.url_as(MAINTAIN, database),
            "INGESTION_FUNCTION": "none",
            "PYTHONPATH": rig.pythonpath("operations"),
        },
    )
    with child:
        child.wait_until_ready()
        yield child.go


class _Commands:
    """What a person asks for: replays of all messages of the subscription."""

    def __init__(self, command: Connection[Any], engine: Engine, kinds: Sequence[Kind]) -> None:
        self._command = command
        self._engine = engine
        self._kinds = kinds

    def plan(self, rate: float) -> UUID:
        """Plans a replay, and returns its id."""
        operation_id = service.request_operation(
            self._command,
            self._kinds,
            kind="replay",
            wanted={"subscription": SUBSCRIPTION},
            requested_by="bench",
            rate=rate,
        ).after.operation_id
        while (planned := read_operation(self._command, operation_id)) and planned.state is State.PLANNING:
            self._engine.work(only=operation_id)
        return operation_id

    def start(self, operation_id: UUID) -> None:
        """Starts what was planned."""
        planned = read_operation(self._command, operation_id)
        assert planned is not None
        service.start_operation(
            self._command,
            operation_id,
            plan_hash=planned.plan_hash or "",
            started_by="bench",
            reason="a measurement",
        )

    def cancel(self, operation_id: UUID) -> None:
        """Cancels it."""
        service.cancel_operation(self._command, self._kinds, operation_id, by="bench")


@contextlib.contextmanager
def _commands(rig: Rig, database: Database) -> Iterator[_Commands]:
    kinds = load_kinds()
    with (
        connect(database.admin_url, application_name="bench") as command,
        connect(rig.url_as(MAINTAIN, database), application_name="bench") as maintain,
    ):
        yield _Commands(command, Engine(maintain, kinds, Telemetry("bench")), kinds)
