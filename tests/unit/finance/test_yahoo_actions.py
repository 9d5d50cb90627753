"""Splits and dividends in Yahoo's answers."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.unit.finance.market import MINUTE, NOW, Market, bars_of

from domains.finance.events import CorporateDividend, CorporateSplit, MarketTick
from domains.finance.yahoo_actions import MOST_ACTIONS, corporate_actions

OPENING = datetime(2026, 3, 10, 13, 30, tzinfo=UTC)
SECOND = int(OPENING.timestamp())
SPLIT = {"date": SECOND, "numerator": 2, "denominator": 1, "splitRatio": "2:1"}
DIVIDEND = {"amount": 0.26, "date": SECOND}


def told(**events: Any) -> dict[str, Any]:
    document = bars_of([OPENING, OPENING + MINUTE])
    document["chart"]["result"][0]["events"] = events
    return document


def test_a_split_and_a_dividend_come_before_the_bar_they_begin_with(market: Market) -> None:
    market.answers(told(splits={str(SECOND): SPLIT}, dividends={str(SECOND): DIVIDEND}))
    fetched = market.fetch("AAPL", OPENING)
    assert [one.event_type for one in fetched.observations] == [
        CorporateSplit.event_type,
        CorporateDividend.event_type,
        MarketTick.event_type,
        MarketTick.event_type,
    ]
    split, dividend, first, _ = fetched.observations
    assert split.occurred_at == dividend.occurred_at == first.occurred_at == OPENING
    assert (split.payload, split.series) == ({"numerator": 2, "denominator": 1}, "")
    assert dividend.payload == {"amount": 0.26, "currency": "USD"}


def test_they_are_read_again_from_the_kept_answer(market: Market) -> None:
    market.answers(told(splits={str(SECOND): SPLIT}))
    fetched = market.fetch("AAPL", OPENING)
    kept = json.loads(json.dumps(fetched.raw))
    assert market.source().read(kept, symbol="AAPL", since=OPENING, asked_at=NOW) == fetched


def test_they_are_asked_for(market: Market) -> None:
    market.fetch("AAPL", NOW - 5 * MINUTE)
    assert "events=div%2Csplits" in market.requests[-1]


def test_what_is_still_to_come_or_long_gone_is_left_out(market: Market) -> None:
    dates = [SECOND + 86_400, int((NOW - timedelta(days=29, hours=1)).timestamp())]
    market.answers(told(splits={str(date): SPLIT | {"date": date} for date in dates}))
    assert {one.event_type for one in market.fetch("AAPL", OPENING).observations} == {MarketTick.event_type}


def test_an_action_that_two_answers_tell_of_is_one_observation(market: Market) -> None:
    since = NOW - timedelta(days=10)
    market.answers(told(splits={str(SECOND): SPLIT}))
    fetched = market.fetch("AAPL", since)
    assert isinstance(fetched.raw, list)
    assert [one.event_type for one in fetched.observations].count(CorporateSplit.event_type) == 1


def test_of_very_many_some_are_read() -> None:
    many = {str(n): SPLIT | {"date": n} for n in range(1000)}
    assert len(corporate_actions({"splits": many}, {})) == MOST_ACTIONS
