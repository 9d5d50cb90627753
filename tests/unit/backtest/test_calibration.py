"""The statistics of the backtest, against values that can be computed by hand."""

import random

import pytest

from backtest.calibration import (
    Bin,
    Scored,
    brier,
    brier_of_base_rate,
    calibrate,
    kupiec,
    reliability,
    skill,
    skill_interval,
)


def scored(*pairs: tuple[float, bool], month: str = "2008-09") -> list[Scored]:
    return [Scored(probability, happened, month) for probability, happened in pairs]


def test_a_perfect_forecast_has_brier_0_and_skill_1() -> None:
    perfect = scored((1.0, True), (0.0, False))
    assert brier(perfect) == 0
    assert skill(perfect) == 1


def test_the_base_rate_has_no_skill() -> None:
    same = scored((0.25, True), (0.25, False), (0.25, False), (0.25, False))
    assert brier(same) == brier_of_base_rate(same) == 0.1875
    assert skill(same) == 0


def test_worse_than_the_base_rate_is_negative_skill() -> None:
    assert skill(scored((0.0, True), (1.0, False))) == -3


def test_what_always_happens_has_no_skill_to_measure() -> None:
    assert skill(scored((0.9, True), (0.8, True))) is None


def test_the_reliability_table_compares_saying_with_happening() -> None:
    low, high = reliability(scored((0.125, False), (0.1875, True), (0.9375, True), (1.0, True)))
    assert low == Bin(0.1, 0.2, 2, 0.15625, 0.5)
    assert high == Bin(0.9, 1.0, 2, 0.96875, 1.0)


def test_the_calibration_error_is_weighted_by_forecasts() -> None:
    found = calibrate(scored((0.5, True), (0.5, False), (0.9, False)), resamples=10)
    assert found.expected_calibration_error == pytest.approx(0.9 / 3)
    assert (found.forecasts, found.happened) == (3, 1)


def test_no_forecast_is_refused() -> None:
    with pytest.raises(ValueError, match="no forecast"):
        calibrate([])


def many(*, is_informed: bool) -> list[Scored]:
    chance = random.Random(1)
    found = []
    for number in range(600):
        happens = chance.random() < 0.3
        probability = (0.6 if happens else 0.2) if is_informed else 0.3
        found.append(Scored(probability, happens, f"month-{number // 6}"))
    return found


def test_real_skill_has_an_interval_above_zero() -> None:
    low, high = skill_interval(many(is_informed=True), resamples=300)
    assert low is not None
    assert high is not None
    assert 0 < low < (skill(many(is_informed=True)) or 0) < high


def test_no_skill_has_an_interval_around_zero() -> None:
    low, high = skill_interval(many(is_informed=False), resamples=300)
    assert low is not None
    assert high is not None
    assert low <= 0 <= high + 0.001


def test_the_interval_is_the_same_each_time() -> None:
    assert skill_interval(many(is_informed=True), resamples=50) == skill_interval(many(is_informed=True), resamples=50)


def test_a_single_month_has_no_interval() -> None:
    assert skill_interval(scored((0.5, True), (0.5, False))) == (None, None)


def test_kupiec_accepts_what_was_expected() -> None:
    assert kupiec(5, 100, 0.05) == pytest.approx(1.0)
    assert kupiec(9, 100, 0.05) == pytest.approx(0.0972, abs=1e-3)


def test_kupiec_rejects_far_too_many() -> None:
    assert kupiec(20, 100, 0.05) < 0.001
    assert kupiec(0, 100, 0.05) < 0.01
