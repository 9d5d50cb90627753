"""What makes a bar unusual: robust scores of its return and of its range, against bars of the same kind before it.

Everything here is a pure function. Prices are as traded; splits and dividends are taken out of a return, never put into
a bar.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import exp, log
from statistics import median
from typing import Any, Final, Literal
from uuid import UUID

from control_plane.model.ids import canonical_instant

WINDOW: Final = 250
"""Bars of the same kind that a bar is compared with, at most: about a year of days, or four hours of minutes."""
WARM_UP: Final = 40
"""Bars of the same kind without which nothing is called unusual. A first ingestion brings an hour: 59 returns."""
RETURN_THRESHOLD: Final = 4.0
RANGE_THRESHOLD: Final = 8.0
"""Higher than that of returns, for shadows of bars have fatter tails: so both are about as rare."""
SMALLEST_SCALE: Final = 1e-4
"""One basis point: where prices hardly move, a tick is not yet unusual for being many times as much."""
SESSION_GAP: Final = timedelta(minutes=30)
"""A market that has had no bar for so long was closed, or we were: the price then moves as it does overnight."""

_NORMAL_OF_MEDIAN: Final = 1.4826
_NORMAL_OF_MEAN: Final = 1.2533
"""What makes a median, or a mean, of absolute deviations a standard deviation where things are normally distributed."""
_LARGEST_PPM: Final = 10**15
_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1)}
_INTERVAL: Final = re.compile(r"(\d+)([a-z]+)")

type Kind = Literal["return", "range"]


@dataclass(frozen=True, slots=True)
class Action:
    """A split (``amount`` new shares per old one) or a dividend (``amount`` of ``currency`` per share)."""

    kind: str
    occurred_at: datetime
    amount: float
    currency: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns it as evidence says it, in whole numbers."""
        name = "ratio_ppm" if self.kind == "split" else "amount_micros"
        return {"kind": self.kind, "occurred_at": canonical_instant(self.occurred_at), name: ppm(self.amount)}


@dataclass(frozen=True, slots=True)
class Prices:
    """What a bar was traded at."""

    occurred_at: datetime
    open: float
    high: float
    low: float
    price: float
    currency: str


@dataclass(frozen=True, slots=True)
class Measures:
    """What is derived from a bar, the one before it and the actions between; a row of detector_bars has the same."""

    previous_at: datetime | None
    follows_gap: bool
    log_return: float | None
    adjustment: float
    excursion: float | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A stored bar that is judged."""

    occurred_at: datetime
    event_id: UUID
    revision: int
    measures: Measures


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of one bar in one respect. ``is_explained``: unusual but for a corporate action."""

    kind: Kind
    bar: Judged
    score: float
    threshold: float
    scale: float
    is_explained: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def follows_gap(previous_at: datetime | None, occurred_at: datetime, interval: str) -> bool:
    """Whether the market was closed before a bar. Days, weeks and months follow each other whatever lies between."""
    match = _INTERVAL.fullmatch(interval)
    if previous_at is None or match is None or match[2] not in _UNITS:
        return False
    return occurred_at - previous_at >= int(match[1]) * _UNITS[match[2]] + SESSION_GAP


def measure(previous: Prices | None, bar: Prices, actions: Iterable[Action], interval: str) -> Measures:
    """Returns a bar's measures. ``actions`` are those after the bar before and not after this one.

    Of bars longer than a day nothing says on which side of an action their prices lie: they have no return.
    """
    previous_at = None if previous is None else previous.occurred_at
    plain, adjustment = None, 0.0
    if previous is not None and previous.price > 0 and bar.price > 0 and not interval.endswith(("wk", "mo")):
        plain = log(bar.price) - log(previous.price)
        adjustment = _adjustment(previous, bar, plain, actions)
    return Measures(
        previous_at=previous_at,
        follows_gap=follows_gap(previous_at, bar.occurred_at, interval),
        log_return=None if plain is None else plain + adjustment,
        adjustment=adjustment,
        excursion=_excursion(bar),
    )


def _adjustment(previous: Prices, bar: Prices, plain: float, actions: Iterable[Action]) -> float:
    adjustment, before = 0.0, previous.price
    for action in sorted(actions, key=lambda one: (one.kind, one.occurred_at)):  # dividends first: per old share
        if action.kind == "dividend":
            # A dividend in another currency, or of more than the share, is not one of this price.
            if action.currency == bar.currency and action.amount < before:
                adjustment += log(before) - log(before - action.amount)
                before -= action.amount
        elif abs(plain + adjustment + log(action.amount)) < abs(plain + adjustment):
            # Otherwise the source has put the split into the earlier prices itself.
            adjustment += log(action.amount)
    return adjustment


def _excursion(bar: Prices) -> float | None:
    if min(bar.open, bar.price, bar.low, bar.high) <= 0:
        return None
    below = max(log(min(bar.open, bar.price)) - log(bar.low), 0.0)
    above = max(log(bar.high) - log(max(bar.open, bar.price)), 0.0)
    return -below if below > above else above


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the middle of a window is, and how wide it is: as a standard deviation, but an outlier moves neither."""

    center: float
    width: float
    count: int

    def score(self, value: float) -> float:
        """Returns how many widths a value is from the middle."""
        return (value - self.center) / self.width


def scale_of(values: Sequence[float]) -> Scale | None:
    """Returns the middle and the width of a window; None where it has fewer than WARM_UP values."""
    if len(values) < WARM_UP:
        return None
    center = median(values)
    deviations = [abs(value - center) for value in values]
    width = _NORMAL_OF_MEDIAN * median(deviations)
    if width < SMALLEST_SCALE:  # more than half of them hardly move, and say nothing of the others
        width = max(SMALLEST_SCALE, _NORMAL_OF_MEAN * sum(deviations) / len(deviations))
    return Scale(center, width, len(values))


def findings(bar: Judged, returns: Sequence[float | None], excursions: Sequence[float | None]) -> list[Finding]:
    """Returns what is unusual about a bar, given what bars of its kind before it measured: the last WINDOW count."""
    found = (_unusual_return(bar, returns[-WINDOW:]), _unusual_range(bar, excursions[-WINDOW:]))
    return [one for one in found if one is not None]


def _unusual_return(bar: Judged, window: Sequence[float | None]) -> Finding | None:
    adjusted = bar.measures.log_return
    if adjusted is None:
        return None
    scale = scale_of([value for value in window if value is not None])
    if scale is None:
        return None
    score = scale.score(adjusted)
    as_traded = adjusted - bar.measures.adjustment
    is_explained = abs(score) < RETURN_THRESHOLD <= abs(scale.score(as_traded))
    if abs(score) < RETURN_THRESHOLD and not is_explained:
        return None
    details = {
        "return_ppm": fraction_ppm(adjusted),
        "as_traded_ppm": fraction_ppm(as_traded),
        **_of_window(scale, bar),
    }
    return Finding("return", bar, _rounded(score), RETURN_THRESHOLD, scale.width, is_explained, details)


def _unusual_range(bar: Judged, window: Sequence[float | None]) -> Finding | None:
    excursion = bar.measures.excursion
    if excursion is None:
        return None
    scale = scale_of([abs(value) for value in window if value is not None])
    if scale is None or (score := scale.score(abs(excursion))) < RANGE_THRESHOLD:
        return None
    side = "low" if excursion < 0 else "high"
    details = {"side": side, "beyond_ppm": fraction_ppm(excursion), **_of_window(scale, bar)}
    return Finding("range", bar, _rounded(score), RANGE_THRESHOLD, scale.width, details=details)


def _of_window(scale: Scale, bar: Judged) -> dict[str, Any]:
    return {
        "median_ppm": ppm(scale.center),
        "width_ppm": ppm(scale.width),
        "window": scale.count,
        "follows_gap": bar.measures.follows_gap,
    }


def is_market_wide(*, entities: int, fell: int, median_log_return: float, scale: float) -> bool:
    """Whether an entity fell with its market: of at least three, three in four fell, and the median by two widths."""
    return entities >= 3 and fell * 4 >= entities * 3 and median_log_return <= -2 * scale


def fraction_ppm(log_return: float) -> int:
    """Returns a logarithm of a ratio as the change that it is, in parts per million."""
    return ppm(exp(min(log_return, 30.0)) - 1)


def ppm(value: float) -> int:
    """Returns a number in millionths, within what a JSON number holds exactly."""
    return round(max(-_LARGEST_PPM, min(_LARGEST_PPM, value * 1e6)))


def _rounded(score: float) -> float:
    return round(max(-1e9, min(1e9, score)), 3)
