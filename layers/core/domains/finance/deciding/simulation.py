"""Simulates every option on the same paths: a block bootstrap of real returns, in integers alone.

Rounding differs between processors, so nothing here is a float: paths come from recorded PCG64 words by a mapping of
our own, returns compound in parts per million, and losses are summed and ranked as integers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from domains.finance.deciding import measures

PATHS: Final = 5_000
BLOCK_BARS: Final = 2
"""Consecutive bars are drawn together, so that what follows a large move follows it here too."""
_QUANTILES: Final = ("50", "95", "99")
_SMALLEST_RETURN, _LARGEST_RETURN = -999_999, 3_000_000
_LARGEST_LEVEL: Final = 10 * measures.MILLION
_DIGITS: Final = 11
"""Amounts are cut to so many digits before they are multiplied: the products must fit into 64 bits."""

type Integers = np.ndarray[Any, np.dtype[np.int64]]


def draw_words(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Returns raw PCG64 words, which numpy promises never to change for a seed."""
    words: np.ndarray[Any, np.dtype[np.uint64]] = np.random.PCG64(seed).random_raw(count)
    return words


def block_starts(words: np.ndarray[Any, np.dtype[np.uint64]], bars: int) -> Integers:
    """Maps each word's upper half to 0 … bars - 1 by multiply and shift; the bias is below bars ÷ 2**32."""
    return (((words >> np.uint64(32)) * np.uint64(bars)) >> np.uint64(32)).astype(np.int64)


def draw_rows(seed: int, *, paths: int, horizon: int, bars: int) -> tuple[Integers, str]:
    """Returns which bar each step of each path repeats, and the SHA-256 of the words it is made of."""
    blocks = -(-horizon // BLOCK_BARS)
    words = draw_words(seed, paths * blocks)
    starts = block_starts(words, bars).reshape(paths, blocks)
    rows = (starts[:, :, None] + np.arange(BLOCK_BARS, dtype=np.int64)) % bars
    return (
        rows.reshape(paths, blocks * BLOCK_BARS)[:, :horizon],
        hashlib.sha256(words.astype("<u8").tobytes()).hexdigest(),
    )


def path_moves(returns: Integers, rows: Integers, scale_ppm: int) -> Integers:
    """Returns each path's compounded move in ppm; returns are widened by the scale, no price falls below 0."""
    widened = np.clip(returns * np.int64(scale_ppm) // measures.MILLION, _SMALLEST_RETURN, _LARGEST_RETURN)
    level = np.full(rows.shape[0], measures.MILLION, dtype=np.int64)
    for step in range(rows.shape[1]):
        level = np.minimum(level * (measures.MILLION + widened[rows[:, step]]) // measures.MILLION, _LARGEST_LEVEL)
    result: Integers = level - measures.MILLION
    return result


def simulate(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the simulation of a spec: ``{"seed", "paths", "horizon_bars", "own", "assets", "options"}``.

    An asset is ``{"value_micros", "returns_ppm", "scale_ppm"}``; ``own`` is the index of the one that options trade.
    """
    assets: Sequence[Mapping[str, Any]] = spec["assets"]
    paths, horizon = spec["paths"], spec["horizon_bars"]
    bars = len(assets[0]["returns_ppm"])
    rows, words_sha256 = draw_rows(spec["seed"], paths=paths, horizon=horizon, bars=bars)
    moves = [path_moves(np.array(asset["returns_ppm"], dtype=np.int64), rows, asset["scale_ppm"]) for asset in assets]
    amounts = [abs(asset["value_micros"]) for asset in assets]
    unit = 10 ** max(0, len(str(sum(amounts))) - _DIGITS)
    held = np.zeros(paths, dtype=np.int64)
    for asset, move in zip(assets, moves, strict=True):
        held += asset["value_micros"] // unit * move // measures.MILLION
    own = moves[spec["own"]]
    large = int(np.count_nonzero(np.abs(own) > spec["large_move_ppm"]))
    return {
        "seed": spec["seed"],
        "paths": paths,
        "horizon_bars": horizon,
        "block_bars": BLOCK_BARS,
        "words_sha256": words_sha256,
        "large_move": {
            "threshold_ppm": spec["large_move_ppm"],
            "probability_ppm": measures.share_ppm(large, paths),
        },
        "options": [_option(option, held, own, unit) for option in spec["options"]],
    }


def _option(option: Mapping[str, Any], held: Integers, own: Integers, unit: int) -> dict[str, Any]:
    action, cost = option["action"], option["cost_micros"]
    sold = 0
    if action is not None:
        sold = action["notional_micros"] if action["side"] == "sell" else -action["notional_micros"]
    gains = held - sold // unit * own // measures.MILLION
    losses = np.sort(-gains)
    count = len(losses)
    tail = losses[count - max(1, count // 20) :]
    return {
        "name": option["name"],
        "action": action,
        "cost_micros": cost,
        "mean_micros": measures.nearest(int(gains.sum()) * unit, count) - cost,
        "loss_quantiles_micros": {
            name: int(losses[-(-int(name) * count // 100) - 1]) * unit + cost for name in _QUANTILES
        },
        "expected_shortfall_micros": measures.nearest(int(tail.sum()) * unit, len(tail)) + cost,
    }
