"""The results of a measurement: figures, their bars, and the rounds from which they were computed."""

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
    """The limit that a figure has to meet."""

    sense: Literal["≥", "≤"]
    limit: float

    def is_met_by(self, value: float) -> bool:
        """Whether the value meets the limit; a value equal to the limit does."""
        return value >= self.limit if self.sense == "≥" else value <= self.limit


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
        """Whether the bar is met; None if there is no bar."""
        return None if self.bar is None else self.bar.is_met_by(self.value)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figure as it is in the JSON report."""
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
    """The result of a scenario."""

    figures: Sequence[Figure]
    rounds: Sequence[Round]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The counts and durations that are needed to repeat it."""


def ratio(title: str, above: Sequence[float], below: Sequence[float], bar: Bar | None) -> Figure:
    """Returns the quotient of two sides' medians; its spread is that of the quotients of the single rounds."""
    quotients = [one / other for one, other in zip(above, below, strict=True)]
    return Figure(
        title, statistics.median(above) / statistics.median(below), "×", bar, (min(quotients), max(quotients))
    )


def median(title: str, values: Sequence[float], unit: str, bar: Bar | None = None) -> Figure:
    """Returns the median of the rounds."""
    return Figure(title, statistics.median(values), unit, bar, (min(values), max(values)))


def worst(title: str, values: Sequence[float], unit: str, bar: Bar | None = None) -> Figure:
    """Returns the highest value of the rounds, for limits that every round must meet."""
    return Figure(title, max(values), unit, bar, (min(values), max(values)))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank). `values` is not empty."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]
