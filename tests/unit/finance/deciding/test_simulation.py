"""The simulation: the same integers on every machine, and losses that mean what they say."""

import time
from typing import Any

import numpy as np
import pytest
from tests.unit.finance.deciding.records import quiet_returns

from domains.finance.deciding.simulation import block_starts, draw_rows, draw_words, path_moves, simulate

GOLDEN_WORDS = [16512741498876596663, 12653581523987210669, 15621223294852792473, 265517562795029389]
GOLDEN_ROWS = [[233, 234, 179, 180, 221], [3, 4, 66, 67, 200], [161, 162, 244, 245, 16]]
GOLDEN_WORDS_SHA256 = "3eb5bd68ea079f0074b33beb4c6161a8173774d0e321bd3ab8c4b61e3be75911"
GOLDEN_RESULT = {
    "seed": 2008,
    "paths": 5000,
    "horizon_bars": 5,
    "block_bars": 2,
    "words_sha256": "ee1b73e1ade4d310bb3d7c9b1243f5fdbac081779bfd9720f785ee4f601841f3",
    "large_move": {"threshold_ppm": 30000, "probability_ppm": 443200},
    "options": [
        {
            "name": "do_nothing",
            "action": None,
            "cost_micros": 0,
            "mean_micros": -89062145,
            "loss_quantiles_micros": {"50": 108629000, "95": 888719000, "99": 1188799000},
            "expected_shortfall_micros": 1065060904,
        },
        {
            "name": "hedge_small",
            "action": {"side": "sell", "notional_micros": 1200000000},
            "cost_micros": 2400000,
            "mean_micros": -85317911,
            "loss_quantiles_micros": {"50": 103654200, "95": 822053200, "99": 1084078800},
            "expected_shortfall_micros": 980834335,
        },
        {
            "name": "reduce_half",
            "action": {"side": "sell", "notional_micros": 6000000000},
            "cost_micros": 6000000,
            "mean_micros": -64340975,
            "loss_quantiles_micros": {"50": 72502000, "95": 543835000, "99": 732242000},
            "expected_shortfall_micros": 657114380,
        },
    ],
}


def spec(**changes: Any) -> dict[str, Any]:
    returns = quiet_returns(261)
    found = {
        "seed": 2008,
        "paths": 5_000,
        "horizon_bars": 5,
        "large_move_ppm": 30_000,
        "own": 0,
        "assets": [
            {"value_micros": 12_000_000_000, "returns_ppm": returns, "scale_ppm": 1_500_000},
            {"value_micros": 7_000_000_000, "returns_ppm": returns[::-1], "scale_ppm": 1_000_000},
        ],
        "options": [
            {"name": "do_nothing", "action": None, "cost_micros": 0},
            {
                "name": "hedge_small",
                "action": {"side": "sell", "notional_micros": 1_200_000_000},
                "cost_micros": 2_400_000,
            },
            {
                "name": "reduce_half",
                "action": {"side": "sell", "notional_micros": 6_000_000_000},
                "cost_micros": 6_000_000,
            },
        ],
    }
    return found | changes


def test_words_of_a_seed_never_change() -> None:
    assert [int(word) for word in draw_words(2008, 4)] == GOLDEN_WORDS


def test_words_map_to_the_same_rows_everywhere() -> None:
    rows, words_sha256 = draw_rows(2008, paths=3, horizon=5, bars=261)
    assert rows.tolist() == GOLDEN_ROWS
    assert words_sha256 == GOLDEN_WORDS_SHA256


def test_results_are_the_golden_ones() -> None:
    assert simulate(spec()) == GOLDEN_RESULT


def test_every_bar_is_drawn_about_equally_often() -> None:
    counts = np.bincount(block_starts(draw_words(7, 200_000), 250), minlength=250)
    assert counts.min() > 650
    assert counts.max() < 950


@pytest.mark.parametrize(("word", "start"), [(0, 0), (2**64 - 1, 259), (2**63, 130), (2**32 - 1, 0)])
def test_a_word_maps_to_its_share_of_the_bars(word: int, start: int) -> None:
    assert block_starts(np.array([word], dtype=np.uint64), 260).tolist() == [start]


def test_a_path_compounds_its_returns() -> None:
    returns, rows = np.array([100_000, -500_000], dtype=np.int64), np.array([[0, 0], [0, 1]])
    assert path_moves(returns, rows, 1_000_000).tolist() == [210_000, -450_000]


def test_no_price_falls_below_nothing_nor_overflows() -> None:
    returns, rows = np.array([-900_000, 9_000_000], dtype=np.int64), np.array([[0] * 5, [1] * 5])
    assert path_moves(returns, rows, 2_000_000).tolist() == [-1_000_000, 9_000_000]


def test_selling_half_loses_less() -> None:
    by_name = {option["name"]: option for option in simulate(spec())["options"]}
    shortfalls = [by_name[name]["expected_shortfall_micros"] for name in ("do_nothing", "hedge_small", "reduce_half")]
    assert shortfalls == sorted(shortfalls, reverse=True)
    quantiles = by_name["do_nothing"]["loss_quantiles_micros"]
    assert quantiles["50"] < quantiles["95"] < quantiles["99"]
    assert quantiles["95"] < by_name["do_nothing"]["expected_shortfall_micros"]


def test_a_large_account_is_simulated_without_overflow() -> None:
    small, large = spec(), spec()
    for asset in large["assets"]:
        asset["value_micros"] *= 10**6
    large["options"] = small["options"] = small["options"][:1]
    by_small, by_large = simulate(small)["options"][0], simulate(large)["options"][0]
    ratio = by_large["expected_shortfall_micros"] / by_small["expected_shortfall_micros"]
    assert ratio == pytest.approx(10**6, rel=1e-3)


def test_an_empty_account_loses_nothing() -> None:
    empty = spec(options=spec()["options"][:1])
    for asset in empty["assets"]:
        asset["value_micros"] = 0
    (option,) = simulate(empty)["options"]
    assert option["expected_shortfall_micros"] == option["mean_micros"] == 0


def test_five_thousand_paths_take_less_than_100_ms() -> None:
    five = spec(assets=spec()["assets"] * 3)
    simulate(five)
    took = []
    for _ in range(5):
        started = time.perf_counter()
        simulate(five)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.1
