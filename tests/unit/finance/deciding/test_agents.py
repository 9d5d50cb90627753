"""Finance's deterministic agents: pure functions of their request."""

import json
from typing import Any

import pytest
from tests.unit.finance.deciding.records import evidence, quiet_returns

from domains.finance.deciding.agents import AGENTS
from domains.finance.deciding.playbook import (
    hypotheses_request,
    impact_request,
    pattern_request,
    risk_request,
    signal_request,
)
from domains.finance.deciding.recommending import allowed_options

BY_NAME = {agent.name: agent for agent in AGENTS}


def ask(name: str, request: Any) -> Any:
    agent = BY_NAME[name]
    result = agent.call(json.dumps(request).encode(), attempt=1, seconds_left=1)
    assert result.outcome == "answered"
    assert result.answer is not None
    assert agent.call(json.dumps(request).encode(), attempt=2, seconds_left=9).answer == result.answer
    return agent.answer_type.model_validate_json(result.answer)


def test_they_cost_nothing_and_have_no_model() -> None:
    assert {agent.most_micros(b"{}") for agent in AGENTS} == {0}
    assert {agent.model for agent in AGENTS} == {None}
    assert len(BY_NAME) == 7


def test_signal_detection_measures_the_move() -> None:
    answer = ask("signal_detection", signal_request(evidence(-180_000)))
    assert answer.what == "fall"
    assert answer.z_milli < -8_000
    assert answer.rarer_than_ppm == 1_000_000
    assert 10_000 <= answer.forecasts[0].probability_ppm <= 990_000


def test_a_range_is_told_from_a_fall() -> None:
    assert ask("signal_detection", signal_request(evidence(-10_000, anomaly={"kind": "range"}))).what == "range"
    assert ask("signal_detection", signal_request(evidence(+90_000))).what == "rise"


def neighbour(followed: int, milli: int) -> dict[str, Any]:
    return {"entity_id": "IBM", "occurred_at": "", "distance_ppm": 1, "followed_ppm": followed, "followed_milli": milli}


def test_large_moves_of_neighbours_raise_the_forecast() -> None:
    calm = ask("pattern_recognition", pattern_request(evidence(neighbours=[neighbour(-1_000, -100)] * 10)))
    wild = ask("pattern_recognition", pattern_request(evidence(neighbours=[neighbour(-90_000, -2_500)] * 10)))
    assert calm.forecasts[0].probability_ppm < 350_000 < wild.forecasts[0].probability_ppm
    assert (wild.episodes, wild.worst_followed_ppm) == (10, -90_000)


def test_without_neighbours_the_forecast_is_the_prior() -> None:
    answer = ask("pattern_recognition", pattern_request(evidence()))
    assert (answer.episodes, answer.median_followed_ppm) == (0, None)
    assert answer.forecasts[0].probability_ppm == 350_000


@pytest.mark.parametrize(
    ("changes", "likeliest"),
    [
        ({}, "single_name_fall"),
        ({"is_market_wide": True}, "market_wide_fall"),
        ({"corporate_actions": [{"kind": "split", "occurred_at": "", "ratio_ppm": 2_000_000}]}, "split"),
        ({"problem": "A price is not positive."}, "data_error"),
        ({"anomaly": {"kind": "range"}}, "unexplained"),
    ],
)
def test_hypotheses_follow_the_evidence(changes: dict[str, Any], likeliest: str) -> None:
    answer = ask("hypotheses", hypotheses_request(evidence(**changes)))
    assert answer.explanations[0].hypothesis == likeliest
    assert answer.explanations[-1].hypothesis == "unexplained"


def test_a_rise_is_unexplained() -> None:
    answer = ask("hypotheses", hypotheses_request(evidence(+180_000)))
    assert [each.hypothesis for each in answer.explanations] == ["unexplained"]


def test_impact_grows_with_the_position() -> None:
    small, large = (ask("financial_impact", impact_request(evidence(held=held))) for held in (10, 100))
    assert large.expected_shortfall_micros == pytest.approx(10 * small.expected_shortfall_micros, rel=1e-6)
    assert 0 < large.value_at_risk_micros < large.expected_shortfall_micros
    assert large.forecasts[0].probability_ppm == 50_000


def test_risk_is_severity_times_exposure() -> None:
    answer = ask("risk_prioritisation", {"severity": 4, "exposure_ppm": 500_000})
    assert answer.priority == 50
    assert ask("risk_prioritisation", risk_request(evidence(held=0))).priority == 0


def test_shocks_in_the_returns_raise_the_impact() -> None:
    calm, wild = quiet_returns(), [*quiet_returns(250), *[-80_000] * 10]
    assert (
        ask("financial_impact", impact_request(evidence(returns_ppm=wild))).expected_shortfall_micros
        > ask("financial_impact", impact_request(evidence(returns_ppm=calm))).expected_shortfall_micros
    )


@pytest.mark.parametrize("hypothesis", ["split", "data_error", "unexplained"])
def test_what_is_no_fall_admits_nothing(hypothesis: str) -> None:
    assert allowed_options(hypothesis, severity=4, exposure_ppm=900_000) == ("do_nothing",)


def test_only_a_falling_market_admits_large_sales() -> None:
    assert "reduce_half" in allowed_options("market_wide_fall", severity=4, exposure_ppm=900_000)
    assert "reduce_half" not in allowed_options("market_wide_fall", severity=4, exposure_ppm=100_000)
    assert allowed_options("single_name_fall", severity=4, exposure_ppm=900_000) == ("do_nothing", "hedge_small")
    assert allowed_options("single_name_fall", severity=1, exposure_ppm=900_000) == ("do_nothing",)
