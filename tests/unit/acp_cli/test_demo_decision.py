from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from acp_cli import demo_command
from acp_cli.demo_decision import DEFAULT_DAY, Look, _why_none
from control_plane.decisions.reading import DecisionSummary
from local_cloud.market import Market, MarketChoice, StartDay, real_day
from local_cloud.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

SINCE = datetime(2026, 1, 5, 14, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def anomaly(entity: str, *, score: float = -5.0, state: str = "detected") -> Mapping[str, Any]:
    return {"entity_id": entity, "occurred_at": SINCE + MINUTE, "kind": "return", "score": score, "state": state}


def decision(entity: str, state: str) -> DecisionSummary:
    return DecisionSummary(
        UUID(int=1), entity, "return", SINCE + MINUTE, "p", state, False, SINCE, None, SINCE, 1, 0, None
    )


def look(*found: Any, newest: datetime | None = SINCE + MINUTE, unseen: int = 0) -> Look:
    anomalies = [one for one in found if not isinstance(one, DecisionSummary)]
    return Look.within(SINCE, newest, unseen, anomalies, [one for one in found if isinstance(one, DecisionSummary)])


@pytest.mark.parametrize("given", [{"newest": None}, {"newest": SINCE}, {"unseen": 1}])
def test_the_days_are_awaited(given: dict[str, Any]) -> None:
    assert not look(anomaly("A"), decision("A", "refused"), **given).is_done


def test_the_most_unusual_bar_is_shown_once_it_rests() -> None:
    worse, other = anomaly("A", score=-9.0), anomaly("B")
    assert not look(worse, other, decision("B", "refused")).is_done, "A's decision is awaited"
    assert not look(worse, other, decision("A", "proposed"), decision("B", "refused")).is_done
    done = look(other, worse, decision("A", "awaiting_approval"), decision("B", "refused"))
    assert done.is_done
    assert done.decision is not None
    assert done.decision.entity_id == "A"


def test_other_days_are_left_out() -> None:
    later = {**anomaly("B", score=-20.0), "occurred_at": SINCE + 2 * MINUTE}
    earlier = {**anomaly("C", score=-20.0), "occurred_at": SINCE - MINUTE}
    found = look(earlier, later, anomaly("A"), decision("A", "refused"))
    assert [one["entity_id"] for one in found.detected] == ["A"]
    assert found.is_done


def test_an_explained_bar_needs_no_decision() -> None:
    done = look(anomaly("A", state="explained"))
    assert (done.is_done, done.decision) == (True, None)
    overtaken = look(anomaly("A", state="explained"), decision("A", "observing"))
    assert (overtaken.is_done, overtaken.decision) == (True, overtaken.decisions[0])


def test_a_minute_has_its_real_day() -> None:
    start = StartDay("2008-09-26", SINCE.isoformat())
    assert [real_day(start, SINCE + n * MINUTE) for n in (-1, 0, 1)] == ["2008-09-25", "2008-09-26", "2008-09-29"]


def test_a_split_says_why_nothing_is_decided() -> None:
    action = {"kind": "split", "ratio_ppm": 2_000_000}
    details = {"return_ppm": 8_000, "as_traded_ppm": -496_000, "corporate_actions": [action]}
    market = {"entities": 4, "fell": 2, "market_return": 0.003, "told_event_id": None}
    explained = {**anomaly("AAPL", score=0.15, state="explained"), "details": details, **market}
    lines = "\n".join(_why_none(look(explained), StartDay("2005-02-25", SINCE.isoformat())))
    assert "Nothing was decided" in lines
    assert "on 2005-02-28" in lines
    assert "a split, 2 for 1: -49.6% as traded, +0.8% adjusted" in lines
    nothing = "\n".join(_why_none(look(), StartDay("2005-02-25", SINCE.isoformat())))
    assert nothing.startswith("Nothing was unusual on 2005-02-25")


@pytest.mark.parametrize(("market", "day"), [("replay", DEFAULT_DAY), ("yahoo", None)])
def test_a_day_is_replayed_where_yahoo_is_out_of_reach(
    market: str, day: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_command, "choose", lambda _: Market(MarketChoice(market), "so it is"))
    assert demo_command._day_without_yahoo(Progress()) == day
    assert ("Yahoo is out of reach" in capsys.readouterr().err) is (day is not None)
