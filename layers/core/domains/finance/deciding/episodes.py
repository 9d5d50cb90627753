"""Episodes: past bars that moved unusually, what they looked like, and what followed; searched exactly, in SQL."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isqrt
from typing import Any, Final

from psycopg import Connection

from control_plane.model.ids import canonical_instant
from domains.finance.deciding import measures
from domains.finance.deciding.history import QUERIES, Series, Window

LOOK_BACK_BARS: Final = 60
"""How many returns before a bar its features are measured by."""
NEIGHBOURS: Final = 10
_UNUSUAL_MILLI: Final = 2_000
"""From two standard deviations on a bar is worth remembering."""


def features(series: Series, returns: Sequence[int], index: int) -> tuple[int, int, int] | None:
    """Returns a bar's features in thousandths of σ: its return, the move of the five bars before it, and its range.

    ``returns[i]`` is the return of ``bars[i + 1]``. None where too few bars are before it, or none of them moved.
    """
    before = returns[max(0, index - 1 - LOOK_BACK_BARS) : index - 1]
    bar, previous = series.bars[index], series.bars[index - 1]
    sigma = measures.sigma_ppm(before) if len(before) == LOOK_BACK_BARS else 0
    if not sigma or previous.close_micros <= 0:
        return None
    (prior,) = measures.moves_ppm(before[-measures.HORIZON_BARS :])
    spread = measures.nearest((bar.high_micros - bar.low_micros) * measures.MILLION, previous.close_micros)
    return (
        measures.in_sigmas_milli(returns[index - 1], sigma),
        measures.in_sigmas_milli(prior, sigma, measures.HORIZON_BARS),
        measures.in_sigmas_milli(spread, sigma),
    )


def find_episodes(series: Series, *, after: datetime | None) -> list[dict[str, Any]]:
    """Returns the episodes whose five bars that follow are known, those after an instant alone."""
    returns, found = series.returns_ppm(), []
    horizon = measures.HORIZON_BARS
    for index in range(LOOK_BACK_BARS + 1, len(series.bars) - horizon):
        bar = series.bars[index]
        if after is not None and bar.occurred_at <= after:
            continue
        sizes = features(series, returns, index)
        if sizes is None or abs(sizes[0]) < _UNUSUAL_MILLI:
            continue
        (followed,) = measures.moves_ppm(returns[index : index + horizon])
        sigma = measures.sigma_ppm(returns[index - 1 - LOOK_BACK_BARS : index - 1])
        found.append(
            {
                "entity_id": bar.entity_id,
                "occurred_at": bar.occurred_at,
                "event_id": bar.event_id,
                "return_milli": sizes[0],
                "prior_milli": sizes[1],
                "range_milli": sizes[2],
                "followed_ppm": followed,
                "followed_milli": measures.in_sigmas_milli(followed, sigma, horizon),
                "ended_at": series.bars[index + horizon].occurred_at,
            }
        )
    return found


def keep_episodes(connection: Connection[Any], window: Window, histories: Mapping[str, Series]) -> None:
    """Stores the episodes that the bars hold and that are not stored yet."""
    about = {"source": window.source, "series": window.series}
    newest = dict(connection.execute(QUERIES["newest_episodes"].sql, about | {"entities": list(histories)}).fetchall())
    found = [
        about | episode
        for entity, series in histories.items()
        for episode in find_episodes(series, after=newest.get(entity))
    ]
    if found:
        with connection.cursor() as cursor:
            cursor.executemany(QUERIES["keep_episode"].sql, found)


def nearest_episodes(connection: Connection[Any], window: Window, sizes: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Returns the nearest episodes that had ended by the instant, the nearest first."""
    values = {
        "source": window.source,
        "series": window.series,
        "at": window.at,
        "return_milli": sizes[0],
        "prior_milli": sizes[1],
        "range_milli": sizes[2],
        "count": NEIGHBOURS,
    }
    return [
        {
            "entity_id": entity,
            "occurred_at": canonical_instant(occurred_at),
            "distance_ppm": isqrt(squared * measures.MILLION),
            "followed_ppm": followed,
            "followed_milli": followed_milli,
        }
        for entity, occurred_at, squared, followed, followed_milli in connection.execute(
            QUERIES["nearest_episodes"].sql, values
        )
    ]
