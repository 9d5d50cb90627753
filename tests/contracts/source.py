"""What every source must do: one suite for fakes and real sources.

Subclass SourceContract and give it a market.
"""

import json
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import ClassVar
from zoneinfo import ZoneInfo

import pytest

from control_plane.ingestion.source import Fetched, Source
from control_plane.model.contract import parse_payload
from control_plane.model.errors import ContractViolation, SourceError
from domains.finance.events import MarketTick

MINUTE = timedelta(minutes=1)


class Market(ABC):
    """A source's market: more than an hour of one-minute bars of each symbol, up to ``newest``."""

    symbols: ClassVar[tuple[str, str]]
    unknown: ClassVar[str]

    @property
    @abstractmethod
    def source(self) -> Source:
        """The source under test."""

    @property
    @abstractmethod
    def now(self) -> datetime:
        """The present, by the clock that the source uses."""

    @property
    @abstractmethod
    def newest(self) -> datetime:
        """The instant of the newest closed bar of each symbol."""

    @property
    @abstractmethod
    def kept_from(self) -> datetime:
        """Makes the source forget everything before this instant."""

    def fetch(self, symbol: str, since: datetime | None) -> Fetched:
        """Returns what the source answers at present."""
        return self.source.fetch(symbol, since, self.now)

    @abstractmethod
    def spoil_newest_price(self, symbol: str) -> None:
        """Removes the price of the newest bar from now on."""

    @abstractmethod
    def correct_newest_price(self, symbol: str) -> None:
        """Changes the price of the newest bar from now on."""


class SourceContract(ABC):
    """Tests for subclasses, which define the fixture ``market``."""

    @pytest.fixture
    @abstractmethod
    def market(self) -> Market: ...

    def test_it_has_a_name_for_its_events(self, market: Market) -> None:
        assert market.source.name
        assert market.source.name.isprintable()

    def test_everything_from_the_instant_asked_for_comes_in_order(self, market: Market) -> None:
        since = market.newest - 9 * MINUTE
        fetched = market.fetch(market.symbols[0], since)
        assert fetched.symbol == market.symbols[0]
        assert [bar.occurred_at for bar in fetched.observations] == [since + n * MINUTE for n in range(10)]
        assert fetched.gap is None

    def test_the_instant_may_be_given_in_any_time_zone(self, market: Market) -> None:
        since = market.newest - 9 * MINUTE
        in_tokyo = since.astimezone(ZoneInfo("Asia/Tokyo"))
        there, here = (market.fetch(market.symbols[0], instant) for instant in (in_tokyo, since))
        assert there.observations == here.observations

    def test_a_first_look_is_the_most_recent_hour(self, market: Market) -> None:
        instants = [bar.occurred_at for bar in market.fetch(market.symbols[0], None).observations]
        assert instants[-1] == market.newest
        assert instants[0] > market.newest - timedelta(hours=1)
        assert instants == sorted(set(instants))

    def test_instants_are_aware_and_payloads_keep_the_contract(self, market: Market) -> None:
        for bar in market.fetch(market.symbols[0], None).observations:
            assert bar.occurred_at.utcoffset() == timedelta(0)
            assert bar.event_type == MarketTick.event_type
            parse_payload(MarketTick, bar.payload)

    def test_the_same_look_twice_sees_the_same(self, market: Market) -> None:
        since = market.newest - 9 * MINUTE
        first, second = (market.fetch(market.symbols[0], since) for _ in range(2))
        assert first.observations == second.observations

    def test_a_correction_is_seen(self, market: Market) -> None:
        symbol, since = market.symbols[0], market.newest - 9 * MINUTE
        before = market.fetch(symbol, since).observations
        market.correct_newest_price(symbol)
        after = market.fetch(symbol, since).observations
        assert after[:-1] == before[:-1]
        assert after[-1].occurred_at == before[-1].occurred_at
        assert after[-1].payload["price"] != before[-1].payload["price"]

    def test_bar_without_price_is_left_to_the_contract(self, market: Market) -> None:
        market.spoil_newest_price(market.symbols[0])
        *good, spoiled = market.fetch(market.symbols[0], market.newest - 9 * MINUTE).observations
        assert len(good) == 9
        assert spoiled.occurred_at == market.newest
        with pytest.raises(ContractViolation, match="price"):
            parse_payload(MarketTick, spoiled.payload)

    def test_a_kept_answer_reads_as_it_was_fetched(self, market: Market) -> None:
        for since in (None, market.newest - 9 * MINUTE, market.kept_from - timedelta(days=1)):
            fetched = market.fetch(market.symbols[0], since)
            kept = json.loads(json.dumps(fetched.raw))
            assert market.source.read(kept, symbol=market.symbols[0], since=since, asked_at=market.now) == fetched

    def test_a_kept_refusal_raises_the_same_error(self, market: Market) -> None:
        with pytest.raises(SourceError) as refused:
            market.fetch(market.unknown, None)
        kept = json.loads(json.dumps(refused.value.raw))
        with pytest.raises(SourceError) as again:
            market.source.read(kept, symbol=market.unknown, since=None, asked_at=market.now)
        assert (again.value.kind, again.value.reason) == (refused.value.kind, refused.value.reason)

    def test_a_source_names_the_type_of_its_observations(self, market: Market) -> None:
        for bar in market.fetch(market.symbols[0], None).observations:
            assert (bar.event_type, bar.series) == (market.source.event_type, market.source.series)

    def test_the_raw_answer_is_json(self, market: Market) -> None:
        fetched = market.fetch(market.symbols[0], None)
        assert fetched.raw
        assert json.loads(json.dumps(fetched.raw, allow_nan=False)) == fetched.raw

    def test_unknown_symbol_raises_its_own_error_with_the_answer(self, market: Market) -> None:
        with pytest.raises(SourceError) as refused:
            market.fetch(market.unknown, None)
        assert (refused.value.symbol, refused.value.kind) == (market.unknown, "unknown_symbol")
        assert refused.value.reason
        assert refused.value.raw is not None

    def test_what_the_source_no_longer_has_is_a_gap(self, market: Market) -> None:
        since = market.kept_from - timedelta(days=1)
        fetched = market.fetch(market.symbols[0], since)
        assert fetched.gap is not None
        assert fetched.gap.since == since
        assert fetched.gap.until == market.kept_from
        assert all(bar.occurred_at >= market.kept_from for bar in fetched.observations)

    def test_the_entity_is_described_from_the_answer(self, market: Market) -> None:
        entity = market.source.describe(market.fetch(market.symbols[0], None))
        assert entity.entity_id == market.symbols[0]
        assert entity.entity_type == "equity"
        assert entity.time_zone == "America/New_York"

    def test_a_session_in_progress_holds_the_newest_bar(self, market: Market) -> None:
        session = market.fetch(market.symbols[0], None).session
        assert session is not None
        assert session.start <= market.newest < session.end

    def test_threads_that_ask_at_once_each_get_their_own_symbol(self, market: Market) -> None:
        asked = market.symbols * 4
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda symbol: market.fetch(symbol, None), asked))
        assert [answer.symbol for answer in answers] == list(asked)
        first, second = answers[0].observations, answers[1].observations
        assert first != second
        assert [answer.observations for answer in answers] == [first, second] * 4
