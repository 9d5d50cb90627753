from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from acp_cli.demo_decision import Look
from control_plane.decisions.reading import DecisionSummary
from local_cloud.market import StartDay, real_day

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
    return Look(SINCE, newest, unseen, anomalies, [one for one in found if isinstance(one, DecisionSummary)])


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


def test_an_explained_bar_needs_no_decision() -> None:
    done = look(anomaly("A", state="explained"))
    assert (done.is_done, done.decision) == (True, None)
    overtaken = look(anomaly("A", state="explained"), decision("A", "observing"))
    assert (overtaken.is_done, overtaken.decision) == (True, overtaken.decisions[0])


def test_a_minute_has_its_real_day() -> None:
    start = StartDay("2008-09-26", SINCE.isoformat())
    assert [real_day(start, SINCE + n * MINUTE) for n in (-1, 0, 1)] == ["2008-09-25", "2008-09-26", "2008-09-29"]
