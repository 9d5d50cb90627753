"""What a measurement comes to: figures, their bars, and the rounds they were taken from."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

type Round = Mapping[str, Any]
"""One turn of every side: side → what it reported. Kept raw, as JSON can hold it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The limit a figure is held against."""

    sense: Literal["≥", "≤"]
    limit: float

    def is_met_by(self, value: float) -> bool:
        """Whether the value is on the right side; the limit itself is."""
        return value >= self.limit if self.sense == "≥" else value <= self.limit

    def margin(self, value: float) -> float:
        """How many times better than asked: 1 is just met, 2 twice as good, 0.5 half."""
        better, worse = (value, self.limit) if self.sense == "≥" else (self.limit, value)
        return better / worse if worse else math.inf


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the result. `spread` is its lowest and highest over the rounds; without a bar it only informs."""

    title: str
    value: float
    unit: str
    bar: Bar | None = None
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        return None if self.bar is None else self.bar.is_met_by(self.value)

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON report."""
        return {
            "title": self.title,
            "value": self.value,
            "unit": self.unit,
            "bar": None if self.bar is None else {"sense": self.bar.sense, "limit": self.bar.limit},
            "met": self.met,
            "spread": None if self.spread is None else list(self.spread),
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """A scenario's outcome."""

    figures: Sequence[Figure]
    rounds: Sequence[Round]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What one needs to know to repeat it: counts, durations."""


def ratio(title: str, above: Sequence[float], below: Sequence[float], bar: Bar | None) -> Figure:
    """The quotient of two sides' medians; its spread is that of the rounds' own quotients."""
    quotients = [one / other for one, other in zip(above, below, strict=True)]
    return Figure(
        title, statistics.median(above) / statistics.median(below), "×", bar, (min(quotients), max(quotients))
    )


def median(title: str, values: Sequence[float], unit: str, bar: Bar | None = None) -> Figure:
    """The rounds' median."""
    return Figure(title, statistics.median(values), unit, bar, (min(values), max(values)))


def worst(title: str, values: Sequence[float], unit: str, bar: Bar | None = None) -> Figure:
    """The rounds' highest: of a peak, no round may be forgiven."""
    return Figure(title, max(values), unit, bar, (min(values), max(values)))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank). `values` is not empty."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]
