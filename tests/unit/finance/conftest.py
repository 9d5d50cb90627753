"""Fixtures of the source's tests: the market, as it was at the start of each test."""

from collections.abc import Iterator

import pytest
from tests.unit.finance.market import NOW, Clock, Market

from market_replay import serve


@pytest.fixture(scope="module")
def running() -> Iterator[Market]:
    clock = Clock(NOW)
    requests: list[str] = []
    with serve(clock=clock, log=requests.append) as replay:
        yield Market(replay, clock, requests)


@pytest.fixture
def market(running: Market) -> Market:
    running.replay.faults.clear()
    running.requests.clear()
    running.clock.now = NOW
    return running
