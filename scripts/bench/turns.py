"""One turn of a scenario: it runs a relay or a bare loop in a process of its own, and checks what was published."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from bench.rig import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.figures import Round
    from bench.rig import Child, Database, Queues, Rig

    type Say = Callable[[str], object]
    """Shows how far a scenario is."""

KEPT_BACK_SECONDS: Final = 12.0
"""Time that a relay keeps free in its invocation for its last send and settlement.

An estimate is enough: it changes how long a turn takes, not the rates, which are by the time that passed.
"""
TICK_BYTES: Final = 430
"""The size of a message body without padding."""


def rounds_of(how_many: int) -> Iterator[str]:
    """Yields each round's name for the progress line."""
    return (f"round {number} of {how_many}" for number in range(1, how_many + 1))


def rates(rounds: Sequence[Round], side: str) -> list[float]:
    """Returns one side's messages per second in each round."""
    return [one[side]["result"]["published"] / one[side]["seconds"] for one in rounds]


def short(number: int) -> str:
    """Returns a number as a short text: 1M, 10k, 500."""
    for factor, suffix in ((1_000_000, "M"), (1_000, "k")):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{suffix}"
    return str(number)


def relay_options(
    remaining_seconds: float, *, linger_seconds: float = 0, warm_up: bool = False, publish: bool = True
) -> dict[str, Any]:
    """Returns the options of measured_relay."""
    return {
        "remaining_seconds": remaining_seconds,
        "linger_seconds": linger_seconds,
        "warm_up": warm_up,
        "publish": publish,
    }


def drain(
    rig: Rig, database: Database, events: int, *, queues: Queues | None = None, publish: bool = True
) -> dict[str, Any]:
    """Runs one relay until it has published all events; returns its report."""
    return timed(rig, rig.child("measured_relay", database, queues, relay_options(600, publish=publish)), events)


def timed(rig: Rig, child: Child, events: int | None = None) -> dict[str, Any]:
    """Runs one child and returns its report.

    Raises BenchError if it published another number than ``events``, or, where that is None, nothing.
    """
    with child:
        (report,), _ = race(rig, [child])
    if events is None and not report["result"]["published"]:
        msg = "The relay published nothing in the time it was given."
        raise BenchError(msg, details=str(report["result"]))
    if events is not None:
        check_published([report], events)
    return report


def race(rig: Rig, children: Sequence[Child]) -> tuple[list[dict[str, Any]], float]:
    """Starts the children together; returns their reports, and the seconds until the last report arrived.

    Each report says what processor time the server has used meanwhile, for all of them together.
    """
    for child in children:
        child.wait_until_ready()
    rig.checkpoint()
    server_cpu_started = rig.server_cpu_seconds()
    started = time.perf_counter()
    for child in children:
        child.go()
    reports = [child.report() for child in children]
    seconds = time.perf_counter() - started
    server_cpu_seconds = rig.server_cpu_seconds() - server_cpu_started
    return [report | {"server_cpu_seconds": server_cpu_seconds} for report in reports], seconds


def check_published(reports: Sequence[Mapping[str, Any]], events: int) -> int:
    """Returns how many messages the children published together. Raises BenchError if that is not ``events``."""
    published: int = sum(report["result"]["published"] for report in reports)
    if published != events:
        msg = f"{published:,} messages were published, not {events:,}."
        raise BenchError(msg, details="\n".join(str(report["result"]) for report in reports))
    return published
