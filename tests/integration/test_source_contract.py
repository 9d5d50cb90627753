"""Runs the source's contract with the fake source and the real ones."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import ClassVar

import pytest
from tests.contracts.source import MINUTE, Market, SourceContract
from tests.integration import seeds
from tests.integration.fakes import FakeSource

from control_plane.ingestion.source import Observation, Source, TradingSession
from domains.finance.yahoo_reach import HISTORY
from domains.finance.yfinance_source import YFinanceSource
from market_replay import Correction, Fault, MarketReplay, serve


class FakeMarket(Market):
    symbols = ("AAPL", "IBM")
    unknown = "NOPE"
    now = seeds.bar(91).occurred_at
    newest = seeds.bar(89).occurred_at
    kept_from = seeds.FIRST_BAR

    def __init__(self) -> None:
        dearer = [seeds.bar(minute, price=200.0) for minute in range(90)]
        self._source = FakeSource({"AAPL": seeds.bars(90), "IBM": dearer}, kept_from=self.kept_from)
        self._source.sessions["AAPL"] = TradingSession(seeds.FIRST_BAR, seeds.bar(390).occurred_at)

    @property
    def source(self) -> Source:
        return self._source

    def spoil_newest_price(self, symbol: str) -> None:
        self._replace_newest(symbol, seeds.bar(89, price=None))

    def correct_newest_price(self, symbol: str) -> None:
        self._replace_newest(symbol, seeds.bar(89, price=1.0))

    def _replace_newest(self, symbol: str, bar: Observation) -> None:
        bars = self._source.bars[symbol]
        assert not isinstance(bars, Exception)
        self._source.bars[symbol] = [*bars[:-1], bar]


class ReplayMarket(Market):
    symbols = ("AAPL", "IBM")
    unknown = "NOPE"
    now: ClassVar[datetime] = datetime(2026, 3, 10, 17, 30, 20, tzinfo=UTC)
    newest = now.replace(second=0) - MINUTE
    kept_from = now - HISTORY

    def __init__(self, replay: MarketReplay) -> None:
        self._replay = replay
        self._source = YFinanceSource(market_data_url=replay.url)

    @property
    def source(self) -> Source:
        return self._source

    def spoil_newest_price(self, symbol: str) -> None:
        self._replay.faults.put(symbol, Fault(nan=True))

    def correct_newest_price(self, symbol: str) -> None:
        minute = int(self.newest.timestamp()) // 60
        self._replay.faults.put(symbol, Fault(correct=Correction(minute, 1.0)))


class TestFakeSource(SourceContract):
    @pytest.fixture
    def market(self) -> Market:
        return FakeMarket()


class TestYFinanceSource(SourceContract):
    @pytest.fixture
    def market(self) -> Iterator[Market]:
        with serve(clock=lambda: ReplayMarket.now) as replay:
            yield ReplayMarket(replay)
