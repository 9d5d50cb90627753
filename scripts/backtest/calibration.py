"""How good forecasts were: reliability, Brier score, and skill against the base rate with a confidence interval."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 2_000
_SEED = 20_130_301
_FEWEST_MONTHS = 2


@dataclass(frozen=True, slots=True)
class Scored:
    """A forecast and what happened. Forecasts of one month are not independent: their windows overlap."""

    probability: float
    happened: bool
    month: str
    """Such as ``2008-09``."""

    @property
    def brier(self) -> float:
        """The squared error."""
        return (self.probability - self.happened) ** 2


@dataclass(frozen=True, slots=True)
class Bin:
    """The forecasts of one range of probabilities."""

    lowest: float
    highest: float
    forecasts: int
    mean_probability: float
    frequency: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How good one agent's forecasts of one event were."""

    forecasts: int
    happened: int
    brier: float
    brier_of_base_rate: float
    """Of a forecaster who says the frequency of the whole sample each time, which nobody knew beforehand."""
    skill: float | None
    """1 - Brier ÷ that of the base rate; None where the event always or never happened."""
    skill_low: float | None
    skill_high: float | None
    """The 95 % confidence interval, by resampling whole months."""
    expected_calibration_error: float
    reliability: tuple[Bin, ...]


def calibrate(scored: Sequence[Scored], *, bins: int = 10, resamples: int = RESAMPLES) -> Calibration:
    """Returns how good the forecasts were. Raises ValueError where there are none."""
    if not scored:
        msg = "there is no forecast to be judged"
        raise ValueError(msg)
    table = reliability(scored, bins)
    low, high = skill_interval(scored, resamples=resamples)
    return Calibration(
        forecasts=len(scored),
        happened=sum(each.happened for each in scored),
        brier=brier(scored),
        brier_of_base_rate=brier_of_base_rate(scored),
        skill=skill(scored),
        skill_low=low,
        skill_high=high,
        expected_calibration_error=sum(each.forecasts * abs(each.mean_probability - each.frequency) for each in table)
        / len(scored),
        reliability=table,
    )


def brier(scored: Sequence[Scored]) -> float:
    """Returns the mean squared error: 0 is perfect, 0.25 is a coin."""
    return math.fsum(each.brier for each in scored) / len(scored)


def brier_of_base_rate(scored: Sequence[Scored]) -> float:
    """Returns the Brier score of always saying how often it happened."""
    rate = sum(each.happened for each in scored) / len(scored)
    return rate * (1 - rate)


def skill(scored: Sequence[Scored]) -> float | None:
    """Returns the share of the base rate's Brier score that the forecasts save; None where that is 0."""
    base = brier_of_base_rate(scored)
    return 1 - brier(scored) / base if base else None


def reliability(scored: Sequence[Scored], bins: int = 10) -> tuple[Bin, ...]:
    """Returns the bins of equal width that hold a forecast, in order."""
    of_bin: dict[int, list[Scored]] = defaultdict(list)
    for each in scored:
        of_bin[min(bins - 1, int(each.probability * bins))].append(each)
    return tuple(
        Bin(
            lowest=number / bins,
            highest=(number + 1) / bins,
            forecasts=len(found),
            mean_probability=math.fsum(each.probability for each in found) / len(found),
            frequency=sum(each.happened for each in found) / len(found),
        )
        for number, found in sorted(of_bin.items())
    )


def skill_interval(scored: Sequence[Scored], *, resamples: int = RESAMPLES) -> tuple[float | None, float | None]:
    """Returns the 95 % interval of skill over resampled months; None, None where there is one month alone.

    The base rate is taken of each resample too: it is no better known than the rest.
    """
    of_month: dict[str, list[Scored]] = defaultdict(list)
    for each in scored:
        of_month[each.month].append(each)
    months = [of_month[month] for month in sorted(of_month)]
    if len(months) < _FEWEST_MONTHS:
        return None, None
    # Sums are all that a resample needs.
    sums = [(len(month), sum(each.happened for each in month), sum(each.brier for each in month)) for month in months]
    chance = random.Random(_SEED)  # noqa: S311  a bootstrap, no secret
    found = []
    for _ in range(resamples):
        drawn = chance.choices(sums, k=len(sums))
        count = sum(each[0] for each in drawn)
        rate = sum(each[1] for each in drawn) / count
        if 0 < rate < 1:
            found.append(1 - sum(each[2] for each in drawn) / count / (rate * (1 - rate)))
    if not found:
        return None, None
    found.sort()
    return found[int(0.025 * len(found))], found[min(len(found) - 1, int(0.975 * len(found)))]


def kupiec(exceptions: int, forecasts: int, probability: float) -> float:
    """Returns the p-value of Kupiec's test: how likely a count so far from the expected one is by chance."""
    if not 0 < probability < 1 or not 0 <= exceptions <= forecasts or not forecasts:
        msg = f"{exceptions} of {forecasts} at {probability} is nothing to be tested"
        raise ValueError(msg)

    def log_likelihood(rate: float) -> float:
        hit = exceptions * math.log(rate) if exceptions else 0.0
        miss = (forecasts - exceptions) * math.log(1 - rate) if forecasts > exceptions else 0.0
        return hit + miss

    ratio = max(0.0, -2 * (log_likelihood(probability) - log_likelihood(exceptions / forecasts)))
    return math.erfc(math.sqrt(ratio / 2))  # of a chi-squared with one degree of freedom
