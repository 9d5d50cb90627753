"""How far back the source asks, in which windows, in every time zone."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.unit.finance.market import MINUTE, Market, minute_of, yahoo

from control_plane.ingestion.source import Fetched, Gap, Observation
from domains.finance import yahoo_reach
from domains.finance import yfinance_source as module
from domains.finance.events import MarketTick
from market_replay import server as replay_server
from market_replay.chart import chart
from market_replay.prices import bar_at

# How far back


def test_without_a_beginning_the_newest_hour_is_fetched(market: Market) -> None:
    fetched = market.fetch("IBM", None)
    newest = market.clock.now.replace(second=0) - MINUTE
    assert [bar.occurred_at for bar in bars(fetched)] == [newest - (59 - n) * MINUTE for n in range(60)]
    assert len(market.requests) == 1


@pytest.mark.parametrize("closed_for", [timedelta(minutes=90), timedelta(days=2), timedelta(days=9)])
def test_without_a_beginning_a_closed_market_gives_its_last_hour(
    market: Market, monkeypatch: pytest.MonkeyPatch, closed_for: timedelta
) -> None:
    bell = market.clock.now.replace(second=0) - closed_for

    def closed_since(*question: Any) -> dict[str, Any]:
        answer = chart(*question)
        result = answer["chart"]["result"][0]
        rows = [row for row in zip(*columns_of(result), strict=True) if row[0] < bell.timestamp()]
        return yahoo(rows)

    monkeypatch.setattr(replay_server, "chart", closed_since)
    fetched = market.fetch("AAPL", None)
    assert [observation.occurred_at for observation in fetched.observations] == [
        bell - (60 - n) * MINUTE for n in range(60)
    ]
    assert isinstance(fetched.raw, list)
    assert len(fetched.raw) == len(market.requests)


def columns_of(result: dict[str, Any]) -> list[list[Any]]:
    quote = result["indicators"]["quote"][0]
    return [result["timestamp"], *(quote[name] for name in module.COLUMNS)]


def test_more_than_a_week_is_fetched_in_windows_without_gaps(market: Market) -> None:
    since = market.clock.now - timedelta(days=16)
    fetched = market.fetch("AAPL", since)
    first = since.replace(second=0) + MINUTE
    newest = market.clock.now.replace(second=0) - MINUTE
    starts = [bar.occurred_at for bar in bars(fetched)]
    assert starts == [first + n * MINUTE for n in range(16 * 24 * 60 - 1)]
    assert starts[-1] == newest
    assert isinstance(fetched.raw, list)
    assert len(fetched.raw) == 3
    assert fetched.gap is None
    assert market.source().describe(fetched).entity_type == "equity"


def test_what_yahoo_no_longer_keeps_is_reported_as_a_gap(market: Market) -> None:
    since = market.clock.now - timedelta(days=45)
    fetched = market.fetch("AAPL", since)
    oldest = market.clock.now - yahoo_reach.HISTORY
    assert fetched.gap == Gap(since, oldest)
    assert fetched.observations[0].occurred_at == oldest.replace(second=0) + MINUTE


def test_nothing_is_asked_about_the_future(market: Market) -> None:
    fetched = market.fetch("AAPL", market.clock.now + timedelta(minutes=5))
    assert (fetched.raw, fetched.observations, market.requests) == ([], (), [])


# Time zones

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        (datetime(2026, 1, 15, 9, 32, tzinfo=NEW_YORK), datetime(2026, 1, 15, 14, 32, tzinfo=UTC)),
        (datetime(2026, 7, 15, 9, 32, tzinfo=NEW_YORK), datetime(2026, 7, 15, 13, 32, tzinfo=UTC)),
    ],
    ids=["winter", "summer"],
)
def test_half_past_nine_in_new_york_is_converted_to_utc(market: Market, local: datetime, utc: datetime) -> None:
    market.clock.now = utc + timedelta(minutes=3)
    (first, *_) = market.fetch("AAPL", local).observations
    assert first.occurred_at.isoformat() == utc.isoformat()
    assert first.occurred_at.astimezone(NEW_YORK).replace(tzinfo=None) == local.replace(tzinfo=None)


ZONES = st.sampled_from(
    [ZoneInfo(name) for name in ("America/New_York", "Europe/London", "Australia/Lord_Howe", "UTC")]
)
AROUND_CLOCK_CHANGES = st.one_of(
    st.datetimes(datetime(2026, 3, 7), datetime(2026, 3, 10)),  # noqa: DTZ001 - a zone is given to each below
    st.datetimes(datetime(2026, 10, 31), datetime(2026, 11, 3)),  # noqa: DTZ001 - likewise
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),  # noqa: DTZ001 - likewise
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(instant=AROUND_CLOCK_CHANGES, zone=ZONES, hours=st.integers(min_value=1, max_value=30))
@example(instant=datetime(2026, 11, 1, 6), zone=NEW_YORK, hours=1)  # noqa: DTZ001 - a zone is given to it below
def test_an_instant_stays_the_same_instant_whatever_the_clocks_do(
    market: Market, instant: datetime, zone: ZoneInfo, hours: int
) -> None:
    """No bar is lost, doubled or moved on the night the clocks change."""
    now = instant.replace(tzinfo=UTC)
    market.clock.now = now.astimezone(zone)
    since = (now - timedelta(hours=hours)).astimezone(zone)
    observations = bars(market.fetch("MSFT", since))
    assert len(observations) in {hours * 60 - 1, hours * 60}
    minutes = [minute_of(observation.occurred_at) for observation in observations]
    assert minutes == list(range(minutes[0], minutes[0] + len(minutes)))
    assert since <= observations[0].occurred_at < since.astimezone(UTC) + MINUTE
    assert observations[-1].occurred_at + MINUTE <= now < observations[-1].occurred_at + 2 * MINUTE
    assert [bar["price"] for bar in payloads_of(observations)] == [bar_at("MSFT", minute).close for minute in minutes]


def bars(fetched: Fetched) -> tuple[Observation, ...]:
    """The bars among what was fetched: now and then there is a dividend, too."""
    return tuple(one for one in fetched.observations if one.event_type == MarketTick.event_type)


def payloads_of(observations: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [observation.payload for observation in observations]
