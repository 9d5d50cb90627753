"""The typed answers of finance's agents. Amounts are in millionths, fractions in parts per million."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from control_plane.model.deciding import Answer
from control_plane.model.late import LateModel

type Ppm = Annotated[int, Field(ge=0, le=1_000_000)]
type Prose = Annotated[str, Field(min_length=1, max_length=1200)]
type Line = Annotated[str, Field(min_length=1, max_length=240)]
type Hypothesis = Literal["single_name_fall", "market_wide_fall", "split", "data_error", "unexplained"]


class Forecast(LateModel):
    """A probability that can be scored once the horizon is over."""

    model_config = ConfigDict(strict=True)

    event: Literal["large_move", "loss_beyond_var95"]
    """large_move: the entity moves by more than the threshold, up or down; loss_beyond_var95: it falls by more."""
    threshold_ppm: Annotated[int, Field(ge=0)]
    probability_ppm: Ppm


class SignalAnswer(Answer):
    """What happened, and how unusual it is."""

    what: Literal["fall", "rise", "range"]
    return_ppm: int
    z_milli: int
    """The adjusted return in thousandths of the standard deviation of those before."""
    rarer_than_ppm: Ppm
    """The share of returns before that were smaller."""
    forecasts: list[Forecast]


class PatternAnswer(Answer):
    """What followed the nearest past episodes."""

    episodes: Annotated[int, Field(ge=0)]
    median_followed_ppm: int | None
    worst_followed_ppm: int | None
    forecasts: list[Forecast]


class Explanation(LateModel):
    """One explanation, and why it may hold."""

    model_config = ConfigDict(strict=True)

    hypothesis: Hypothesis
    confidence_ppm: Ppm
    why: Line


class HypothesesAnswer(Answer):
    """What may explain the move, the likeliest first. The playbook refutes what the evidence contradicts."""

    explanations: Annotated[list[Explanation], Field(min_length=1, max_length=5)]


class ImpactAnswer(Answer):
    """What the position may cost over the horizon, by the returns before."""

    position_micros: int
    exposure_ppm: Ppm
    """The position's share of the portfolio."""
    value_at_risk_micros: Annotated[int, Field(ge=0)]
    """The loss that nineteen of twenty horizons stayed within."""
    expected_shortfall_micros: Annotated[int, Field(ge=0)]
    """The mean loss of the worst twentieth."""
    forecasts: list[Forecast]


class RiskAnswer(Answer):
    """How urgent it is: severity × exposure."""

    severity: Annotated[int, Field(ge=0, le=4)]
    exposure_ppm: Ppm
    priority: Annotated[int, Field(ge=0, le=100)]
    why: Line


class RecommendationAnswer(Answer):
    """Which of the simulated options to take, and why not the others."""

    option: Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,63}$")]
    why: Line
    rejected: Annotated[dict[str, Line], Field(max_length=16)]
    forecasts: list[Forecast]


class SummaryAnswer(Answer):
    """What a person reads first; prose, never a source of numbers."""

    headline: Line
    text: Prose
