"""Integer arithmetic of returns and spreads: millionths in, millionths out, the same on every machine."""

from collections.abc import Iterable, Sequence
from math import isqrt
from typing import Final

MILLION: Final = 1_000_000
HORIZON_BARS: Final = 5
"""How many of the entity's own bars a forecast looks ahead."""
FEWEST_RETURNS: Final = 30
"""With fewer returns before it a bar is too new to be compared with anything."""
_LARGEST_SEVERITY: Final = 4
_SEVERITY_STEPS: Final = (4_000, 6_000, 8_000, 12_000)
"""From how many thousandths of a standard deviation on a move has severity 1, 2, 3 and 4."""


def nearest(numerator: int, denominator: int) -> int:
    """Returns the quotient as the nearest integer, a tie upwards. The denominator is positive."""
    return (2 * numerator + denominator) // (2 * denominator)


def return_ppm(value: int, before: int, *, ratio_ppm: int = MILLION, paid: int = 0) -> int:
    """Returns what one unit held since ``before`` has gained, splits and dividends included.

    ``ratio_ppm`` is how many units one became: 2,000,000 after a 2:1 split. Prices are positive.
    """
    return nearest((value * ratio_ppm + paid * MILLION) - before * MILLION, before)


def median(values: Iterable[int]) -> int:
    """Returns the median; of an even number of values the mean of the middle two, rounded down."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


def sigma_ppm(returns: Sequence[int]) -> int:
    """Returns a robust standard deviation: 1.4826 × MAD, or the root mean square where most returns are equal."""
    if not returns:
        return 0
    ordered = sorted(returns)
    centre = median(ordered)
    # In order they fall and then rise again, which sorting takes as two runs.
    spread = nearest(median([abs(value - centre) for value in ordered]) * 14_826, 10_000)
    return spread or isqrt(sum(value * value for value in returns) // len(returns))


def recent_sigma_ppm(returns: Sequence[int]) -> int:
    """Returns the exponentially weighted standard deviation (decay 0.94 a bar), which a large move raises at once."""
    if not returns:
        return 0
    variance = sum(value * value for value in returns) // len(returns)
    for value in returns:
        variance = (94 * variance + 6 * value * value) // 100
    return isqrt(variance)


def in_sigmas_milli(move_ppm: int, sigma: int, bars: int = 1) -> int:
    """Returns a move over so many bars in thousandths of its standard deviation; 0 where there is none."""
    if sigma <= 0:
        return 0
    of_bars = isqrt(bars * sigma * sigma * MILLION)  # in thousandths of a millionth
    size = nearest(abs(move_ppm) * MILLION, of_bars)
    return size if move_ppm >= 0 else -size


def large_move_ppm(sigma: int, bars: int = HORIZON_BARS) -> int:
    """Returns 1.5 standard deviations over the horizon: a larger move, up or down, is the event that is forecast."""
    return isqrt(9 * bars * sigma * sigma // 4)


def severity(z_milli: int, *, is_market_wide: bool) -> int:
    """Returns 0 to 4: how unusual the move is, one more where the market moved with it."""
    steps = sum(abs(z_milli) >= step for step in _SEVERITY_STEPS)
    return min(_LARGEST_SEVERITY, steps + (1 if is_market_wide and steps else 0))


def is_market_wide(z_milli: Sequence[int]) -> bool:
    """Whether entities fell together: at least three of them, three in four fell, and their median by 2 σ or more."""
    fell = sum(z < 0 for z in z_milli)
    return len(z_milli) >= 3 and 4 * fell >= 3 * len(z_milli) and median(z_milli) <= -2_000


def moves_ppm(returns: Sequence[int], bars: int = HORIZON_BARS) -> list[int]:
    """Returns the compounded move of every window of so many bars, oldest first."""
    moves = []
    for start in range(len(returns) - bars + 1):
        level = MILLION
        for value in returns[start : start + bars]:
            level = level * (MILLION + value) // MILLION
        moves.append(level - MILLION)
    return moves


def share_ppm(part: int, whole: int) -> int:
    """Returns a part of a positive whole in parts per million; 0 of nothing."""
    return nearest(part * MILLION, whole) if whole > 0 else 0


def shrunk_ppm(hits: int, of: int, prior_ppm: int, weight: int) -> int:
    """Returns a frequency pulled towards a prior that counts as so many observations; never 0 nor 1."""
    return min(990_000, max(10_000, nearest(hits * MILLION + prior_ppm * weight, of + weight)))
