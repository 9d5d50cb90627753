"""Finance's agents in their deterministic form: each is a pure function from the request's bytes to a typed answer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from control_plane.model.deciding import AgentResult, Answer
from domains.finance.deciding import measures
from domains.finance.deciding.answers import (
    Explanation,
    Forecast,
    HypothesesAnswer,
    ImpactAnswer,
    PatternAnswer,
    RecommendationAnswer,
    RiskAnswer,
    SignalAnswer,
    SummaryAnswer,
)
from domains.finance.deciding.recommending import recommend

_CALM_PPM: Final = 200_000
"""How often a 5-bar move exceeds 1.5 robust standard deviations where nothing is known: prices' tails are fat."""
_AFTER_SHOCK_PPM: Final = 350_000
"""How often it does after an unusual bar: large moves come in clusters."""


@dataclass(slots=True)
class RuleAgent:
    """An agent whose answer our own code computes. It costs nothing and needs no account."""

    name: str
    version: str
    answer_type: type[Answer]
    answer: Callable[[Mapping[str, Any]], Answer]
    model: str | None = None

    def most_micros(self, request: bytes) -> int:  # noqa: ARG002
        """See :class:`~control_plane.model.deciding.Agent`."""
        return 0

    def call(self, request: bytes, *, attempt: int, seconds_left: float) -> AgentResult:  # noqa: ARG002
        """See :class:`~control_plane.model.deciding.Agent`."""
        return AgentResult("answered", self.answer(json.loads(request)).model_dump_json().encode())


def detect_signal(request: Mapping[str, Any]) -> SignalAnswer:
    """Says how unusual the bar is among the returns before it."""
    returns, move = request["returns_ppm"], request["adjusted_return_ppm"]
    sigma = measures.sigma_ppm(returns)
    is_range = "range" in request["kind"]
    threshold = measures.large_move_ppm(sigma)
    windows = measures.moves_ppm(returns)
    hits = sum(abs(window) > threshold for window in windows)
    # Windows overlap: five of them tell as much as one.
    calm = measures.shrunk_ppm(hits // measures.HORIZON_BARS, len(windows) // measures.HORIZON_BARS, _CALM_PPM, 10)
    return SignalAnswer(
        what="range" if is_range else "fall" if move < 0 else "rise",
        return_ppm=move,
        z_milli=measures.in_sigmas_milli(move, sigma),
        rarer_than_ppm=measures.share_ppm(sum(abs(value) < abs(move) for value in returns), len(returns)),
        forecasts=[Forecast(event="large_move", threshold_ppm=threshold, probability_ppm=calm)],
    )


def recognise_pattern(request: Mapping[str, Any]) -> PatternAnswer:
    """Says what followed the nearest past episodes."""
    neighbours = request["neighbours"]
    followed = sorted(neighbour["followed_ppm"] for neighbour in neighbours)
    large = sum(abs(neighbour["followed_milli"]) > 1_500 for neighbour in neighbours)
    return PatternAnswer(
        episodes=len(neighbours),
        median_followed_ppm=measures.median(followed) if followed else None,
        worst_followed_ppm=followed[0] if followed else None,
        forecasts=[
            Forecast(
                event="large_move",
                threshold_ppm=measures.large_move_ppm(request["sigma_ppm"]),
                probability_ppm=measures.shrunk_ppm(large, len(neighbours), _AFTER_SHOCK_PPM, 10),
            )
        ],
    )


def propose_hypotheses(request: Mapping[str, Any]) -> HypothesesAnswer:
    """Names what the evidence supports, by rules."""
    explanations = []
    if any(action["kind"] == "split" for action in request["corporate_actions"]):
        explanations.append(
            Explanation(hypothesis="split", confidence_ppm=990_000, why="A split took effect with this bar.")
        )
    elif request["problem"] is not None:
        explanations.append(Explanation(hypothesis="data_error", confidence_ppm=900_000, why=request["problem"]))
    elif request["adjusted_return_ppm"] < 0 and "range" not in request["kind"]:
        if request["is_market_wide"]:
            why = f"{request['fell']} of {request['entities']} entities fell together."
            explanations.append(Explanation(hypothesis="market_wide_fall", confidence_ppm=900_000, why=why))
        else:
            why = "It fell by far more than the others of its market."
            explanations.append(Explanation(hypothesis="single_name_fall", confidence_ppm=800_000, why=why))
    explanations.append(
        Explanation(hypothesis="unexplained", confidence_ppm=100_000, why="Prices alone do not say why they move.")
    )
    return HypothesesAnswer(explanations=explanations)


def assess_impact(request: Mapping[str, Any]) -> ImpactAnswer:
    """Says what the position may lose over the horizon, by every window of the returns before."""
    windows = sorted(measures.moves_ppm(request["returns_ppm"]))
    position = request["position_micros"]
    tail = windows[: max(1, len(windows) // 20)]
    at_risk, shortfall = max(0, -tail[-1]), max(0, -sum(tail) // len(tail))
    return ImpactAnswer(
        position_micros=position,
        exposure_ppm=min(measures.MILLION, measures.share_ppm(abs(position), request["portfolio_micros"])),
        value_at_risk_micros=measures.nearest(abs(position) * at_risk, measures.MILLION),
        expected_shortfall_micros=measures.nearest(abs(position) * shortfall, measures.MILLION),
        forecasts=[Forecast(event="loss_beyond_var95", threshold_ppm=at_risk, probability_ppm=50_000)],
    )


def prioritise_risk(request: Mapping[str, Any]) -> RiskAnswer:
    """Says how urgent it is: severity × exposure, both computed from the evidence."""
    exposure, severity = request["exposure_ppm"], request["severity"]
    return RiskAnswer(
        severity=severity,
        exposure_ppm=exposure,
        priority=min(100, measures.nearest(25 * severity * exposure, measures.MILLION)),
        why=f"Severity {severity} of 4, and {exposure // 10_000} % of the portfolio is exposed.",
    )


def recommend_action(request: Mapping[str, Any]) -> RecommendationAnswer:
    """Chooses among the simulated options."""
    choice = recommend(request)
    forecast = Forecast(
        event="large_move",
        threshold_ppm=request["large_move"]["threshold_ppm"],
        probability_ppm=request["large_move"]["probability_ppm"],
    )
    return RecommendationAnswer(option=choice.option, why=choice.why, rejected=choice.rejected, forecasts=[forecast])


def summarise(request: Mapping[str, Any]) -> SummaryAnswer:
    """Says it in a few sentences."""
    move, entity = _percent(request["adjusted_return_ppm"]), request["entity_id"]
    shortfall = f"{request['expected_shortfall_micros'] / measures.MILLION:,.0f} {request['currency']}"
    sigmas = f"{abs(request['z_milli']) / 1000:.1f}"
    return SummaryAnswer(
        headline=f"{entity} {move}: {request['hypothesis'].replace('_', ' ')}",
        text=(
            f"{entity} moved by {move}, {sigmas} standard deviations of the bars before. "
            f"Severity {request['severity']} of 4. In the worst twentieth of the simulated paths the account loses "
            f"{shortfall} on average within {measures.HORIZON_BARS} bars. "
            f"Recommended: {request['option'].replace('_', ' ')}. {request['why']}"
        ),
    )


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:+.1f} %"


AGENTS: Final = (
    RuleAgent("signal_detection", "1", SignalAnswer, detect_signal),
    RuleAgent("pattern_recognition", "1", PatternAnswer, recognise_pattern),
    RuleAgent("hypotheses", "1", HypothesesAnswer, propose_hypotheses),
    RuleAgent("financial_impact", "1", ImpactAnswer, assess_impact),
    RuleAgent("risk_prioritisation", "1", RiskAnswer, prioritise_risk),
    RuleAgent("action_recommender", "1", RecommendationAnswer, recommend_action),
    RuleAgent("executive_summary", "1", SummaryAnswer, summarise),
)
"""The six that the vision names, and the hypotheses, in their deterministic form."""

STAND_INS: Final = (
    RuleAgent("hypotheses_by_rule", "1", HypothesesAnswer, propose_hypotheses),
    RuleAgent("executive_summary_by_rule", "1", SummaryAnswer, summarise),
)
"""Asked where an agent that may have a model behind it gave no answer."""
