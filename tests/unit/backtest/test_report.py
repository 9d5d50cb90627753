"""The report of a backtest: what it says of a run, and that it says so whatever it is."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.finance.deciding.records import DECISION

from backtest.report import calibrations, render, to_dict
from backtest.run import Backtest, Decided
from control_plane.model.deciding import Record, Step

CHANCE = 300_000


def decided(number: int, *, happened: bool, option: str | None = None, says: int = CHANCE, **changes: Any) -> Decided:
    """A decision of another month, whose agent said so much."""
    at = datetime(2000 + number // 12, 1 + number % 12, 3, tzinfo=UTC)
    forecasts = [
        {"agent": "seer", "forecast": "large_move", "probability_ppm": says, "happened": happened},
        {"agent": "seer", "forecast": "loss_beyond_var95", "probability_ppm": 50_000, "happened": number == 0},
    ]
    steps: list[tuple[str, Any]] = []
    if option is not None:
        steps = [("proposal", {"option": option, "hypothesis": "single_name_fall"}), ("execution", {})]
    options = [{"name": "hedge_small", "against_nothing_micros": -5_000_000}]
    steps.append(("outcome", {"state": "observed", "forecasts": forecasts, "options": options}))
    steps.append(("closed", {"state": "scored", "reason": "because"}))
    record = Record(
        replace(DECISION, occurred_at=at, state="scored", **changes),
        [Step(seq, None, kind, "engine", at, body) for seq, (kind, body) in enumerate(steps)],
    )
    return Decided(record, "permitted" if option is not None else None, [], is_replayed=True)


def backtest(*found: Decided) -> Backtest:
    return Backtest(
        bars=12_000,
        days=3_000,
        anomalies=len(found),
        decided=found,
        fold_seconds=1.0,
        decide_seconds=2.0,
        replay_seconds=3.0,
        first_day="2000-03-01",
        last_day="2013-03-01",
    )


def report(*found: Decided) -> str:
    return render(to_dict(backtest(*found), seen_on="2026-11-27", machine="2 cores"))


def test_a_forecaster_of_the_base_rate_shows_no_skill() -> None:
    found = [decided(number, happened=number % 10 < 3) for number in range(60)]
    assert calibrations(found)["seer"].skill == pytest.approx(0)
    assert "no skill is shown" in report(*found)


def test_a_forecaster_who_is_wrong_is_told_so() -> None:
    found = [
        decided(number, happened=number % 10 < 3, says=900_000 - 800_000 * (number % 10 < 3)) for number in range(60)
    ]
    assert "**worse than the base rate**" in report(*found)


def test_a_forecaster_who_knows_is_told_so() -> None:
    found = [
        decided(number, happened=number % 10 < 3, says=100_000 + 800_000 * (number % 10 < 3)) for number in range(60)
    ]
    assert "better than the base rate" in report(*found)


def test_what_was_executed_is_compared_with_doing_nothing() -> None:
    text = report(decided(0, happened=False, option="hedge_small"), decided(1, happened=True))
    assert "| executed | 1, of which 0 did better than doing nothing after their cost |" in text
    assert "-5 dollars; the worst -5, the best -5" in text


def test_losses_beyond_the_value_at_risk_are_counted() -> None:
    found = to_dict(backtest(*(decided(number, happened=False) for number in range(20))), seen_on="", machine="")
    assert (found["value_at_risk"]["forecasts"], found["value_at_risk"]["exceptions"]) == (20, 1)
    assert found["value_at_risk"]["p_value"] == pytest.approx(1.0)


def test_days_whose_truth_is_known_are_named() -> None:
    day = replace(decided(0, happened=False).record.decision, occurred_at=datetime(2010, 5, 6, tzinfo=UTC))
    known = decided(0, happened=False)
    text = report(replace(known, record=replace(known.record, decision=day)))
    assert "| AAPL 2010-05-06 | the flash crash | price move |" in text
    assert "| AAPL 2005-02-28 | a split of 2:1 | none | | | | nothing is unusual about it |" in text


def test_refusals_name_their_policies() -> None:
    refused = replace(decided(0, happened=False), verdict="refused", reasons=["daily_releases"])
    assert "| what refused | 1 daily releases |" in report(refused, decided(1, happened=True))


def test_a_run_without_anomalies_is_reported() -> None:
    assert "0 anomalies led to 0 decisions" in report()
