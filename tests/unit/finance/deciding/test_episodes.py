"""Which bars are episodes: the search skips what is calm, and finds the same."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest

from domains.finance.deciding import episodes
from domains.finance.deciding.history import Bar, Series

FIRST = datetime(2026, 1, 5, tzinfo=UTC)


def series(closes: Sequence[int]) -> Series:
    return Series(
        [
            Bar(
                "A",
                FIRST + timedelta(minutes=at),
                close,
                close,
                close,
                close,
                "USD",
                0,
                UUID(int=at),
                follows_gap=False,
            )
            for at, close in enumerate(closes)
        ],
        (),
    )


@pytest.mark.parametrize("size", [3e-6, 1e-4, 0.01, 0.3])
def test_what_is_skipped_is_no_episode(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    luck, closes = Random(7), [100_000_000]
    for _ in range(1_500):
        closes.append(max(1_000_000, round(closes[-1] * (1 + size * max(-3, min(3, luck.gauss(0, 1) ** 3))))))
    quick = episodes.find_episodes(series(closes))
    monkeypatch.setattr(episodes, "_is_calm", lambda ordered, move: False)
    assert quick == episodes.find_episodes(series(closes))
    assert len(quick) > 50


def test_too_few_bars_hold_no_episode() -> None:
    for count in (0, 1, 60, 66):
        assert episodes.find_episodes(series([100_000_000] * count)) == []
