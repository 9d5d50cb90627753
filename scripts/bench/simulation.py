"""A simulation of the pipeline: messages arrive, and each stage's workers take them in batches, oldest first.

It knows queues and service times alone: no retries, no failures, no contention beyond what the service times hold.
docs/scaling.md uses it for loads that no single machine makes; ``acp bench --scenario scaling`` checks it against a
real run at a small one.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Arrival:
    """Messages that reach a stage together; times are in seconds from the start."""

    at: float
    count: int
    born: float
    """When they were committed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Workers that share one queue. A worker takes up to ``batch`` waiting messages, and works on them."""

    name: str
    workers: int
    batch: int
    seconds_a_batch: float
    seconds_a_message: float

    @property
    def most_a_second(self) -> float:
        """How many messages a second its workers carry at best, with full batches."""
        return self.workers * self.batch / (self.seconds_a_batch + self.batch * self.seconds_a_message)


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of the messages at one stage; delays are in seconds since their commit."""

    stage: str
    most_waiting: int
    """The largest backlog before the stage."""
    delay_p50: float
    delay_p99: float
    busy: float
    """The share of the workers' time, until the last message is through, in which they worked."""


def bursts(*, count: int, every_seconds: float, times: int) -> Iterator[Arrival]:
    """Yields ``times`` bursts of ``count`` messages, such as those of an ingestion that runs each minute."""
    for number in range(times):
        yield Arrival(number * every_seconds, count, number * every_seconds)


def simulate(arrivals: Iterable[Arrival], stages: Sequence[Stage]) -> list[Passage]:
    """Sends the messages through the stages, one after the other, and returns what became of them at each."""
    passages = []
    coming = list(arrivals)
    for stage in stages:
        passage, coming = _pass(coming, stage)
        passages.append(passage)
    return passages


def _pass(coming: Sequence[Arrival], stage: Stage) -> tuple[Passage, list[Arrival]]:
    """Returns a stage's passage, and what leaves it in the order in which it leaves."""
    arrivals = deque(sorted(coming, key=lambda one: one.at))
    waiting: deque[Arrival] = deque()
    free_at = [0.0] * stage.workers
    gone: list[Arrival] = []
    backlog = most_waiting = 0
    worked = 0.0
    while arrivals or waiting:
        now = heapq.heappop(free_at)
        if not waiting:
            now = max(now, arrivals[0].at)
        while arrivals and arrivals[0].at <= now:
            waiting.append(arrivals.popleft())
            backlog += waiting[-1].count
        most_waiting = max(most_waiting, backlog)
        taken = _take(waiting, stage.batch)
        size = sum(count for _, count in taken)
        backlog -= size
        seconds = stage.seconds_a_batch + size * stage.seconds_a_message
        worked += seconds
        gone += [Arrival(now + seconds, count, born) for born, count in taken]
        heapq.heappush(free_at, now + seconds)
    gone.sort(key=lambda one: one.at)
    return _passage(stage, gone, most_waiting, worked), gone


def _take(waiting: deque[Arrival], most: int) -> list[tuple[float, int]]:
    """Takes up to ``most`` messages from the front; returns when they were born, and how many."""
    taken = []
    while waiting and most:
        first = waiting.popleft()
        count = min(first.count, most)
        taken.append((first.born, count))
        most -= count
        if count < first.count:
            waiting.appendleft(Arrival(first.at, first.count - count, first.born))
    return taken


def _passage(stage: Stage, gone: Sequence[Arrival], most_waiting: int, worked: float) -> Passage:
    delays = sorted((one.at - one.born, one.count) for one in gone)
    messages = sum(count for _, count in delays)
    busy = worked / (stage.workers * gone[-1].at) if gone else 0.0
    return Passage(stage.name, most_waiting, _weighted(delays, messages, 0.50), _weighted(delays, messages, 0.99), busy)


def _weighted(delays: Sequence[tuple[float, int]], messages: int, share: float) -> float:
    """Returns the smallest delay that at least this share of the messages do not exceed; 0 without messages."""
    so_far = 0
    for delay, count in delays:
        so_far += count
        if so_far >= share * messages:
            return delay
    return 0.0
