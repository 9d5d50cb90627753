"""Integer arithmetic of returns and spreads."""

import random
import statistics

import pytest
from tests.unit.finance.deciding.records import quiet_returns

from domains.finance.deciding import measures


@pytest.mark.parametrize(
    ("numerator", "denominator", "found"), [(7, 2, 4), (-7, 2, -3), (6, 4, 2), (-1, 3, 0), (0, 5, 0)]
)
def test_nearest_rounds_ties_upwards(numerator: int, denominator: int, found: int) -> None:
    assert measures.nearest(numerator, denominator) == found


def test_a_return_counts_splits_and_dividends() -> None:
    assert measures.return_ppm(50_000_000, 100_000_000) == -500_000
    assert measures.return_ppm(50_400_000, 100_000_000, ratio_ppm=2_000_000) == 8_000
    assert measures.return_ppm(99_000_000, 100_000_000, paid=1_000_000) == 0


def test_sigma_is_close_to_a_standard_deviation() -> None:
    chance = random.Random(1)
    values = [round(chance.gauss(0, 20_000)) for _ in range(5_000)]
    assert measures.sigma_ppm(values) == pytest.approx(statistics.stdev(values), rel=0.05)


def test_sigma_is_not_moved_by_an_outlier() -> None:
    values = quiet_returns()
    assert measures.sigma_ppm([*values, -900_000]) == pytest.approx(measures.sigma_ppm(values), rel=0.02)


def test_sigma_where_most_returns_are_equal_is_not_zero() -> None:
    assert measures.sigma_ppm([0] * 90 + [10_000] * 10) == 3_162
    assert measures.sigma_ppm([0] * 10) == measures.sigma_ppm([]) == 0


def test_recent_spread_rises_with_a_large_move() -> None:
    values = quiet_returns()
    assert measures.recent_sigma_ppm([*values, -300_000]) > 3 * measures.recent_sigma_ppm(values)


def test_moves_compound_every_window() -> None:
    assert measures.moves_ppm([100_000, 100_000, -100_000], bars=2) == [210_000, -10_000]
    assert measures.moves_ppm([1, 2], bars=5) == []


@pytest.mark.parametrize(
    ("z_milli", "wide", "found"),
    [(3_999, False, 0), (-4_000, False, 1), (-4_000, True, 2), (13_000, True, 4), (100, True, 0)],
)
def test_severity_has_steps(z_milli: int, wide: bool, found: int) -> None:
    assert measures.severity(z_milli, is_market_wide=wide) == found


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ([-9_000, -3_000, -2_500, -2_000], True),
        ([-9_000, -3_000], False),
        ([-9_000, -100, -200, -300], False),
        ([-9_000, -3_000, 100, 200], False),
    ],
)
def test_a_market_falls_together_or_not(sizes: list[int], found: bool) -> None:
    assert measures.is_market_wide(sizes) is found


def test_sigmas_scale_with_the_root_of_the_bars() -> None:
    assert measures.in_sigmas_milli(-40_000, 10_000) == -4_000
    assert measures.in_sigmas_milli(40_000, 10_000, bars=4) == 2_000
    assert measures.in_sigmas_milli(40_000, 0) == 0
    assert measures.large_move_ppm(10_000) == 33_541


def test_a_shrunk_frequency_is_never_certain() -> None:
    assert measures.shrunk_ppm(0, 0, 200_000, 10) == 200_000
    assert measures.shrunk_ppm(10, 10, 200_000, 10) == 600_000
    assert measures.shrunk_ppm(1_000, 1_000, 200_000, 1) == 990_000
