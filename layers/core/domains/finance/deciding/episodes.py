"""Episodes: past bars that moved unusually, what they looked like, and what followed; searched exactly, in SQL."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isqrt
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import dict_row

from control_plane.model.ids import canonical_instant
from domains.finance.deciding import measures
from domains.finance.deciding.history import QUERIES, Series, Window, read_entity

LOOK_BACK_BARS: Final = 60
"""How many returns before a bar its features are measured by."""
NEIGHBOURS: Final = 10
_MOST_BARS: Final = 4_000
"""How far back one search goes: ten days of minutes, sixteen years of days."""
_UNUSUAL_MILLI: Final = 2_000
"""From two standard deviations on a bar is worth remembering."""


def features(series: Series, returns: Sequence[int], index: int) -> tuple[int, int, int] | None:
    """Returns a bar's features in thousandths of σ: its return, the move of the five bars before it, and its range.

    ``returns[i]`` is the return of ``bars[i + 1]``. None where too few bars are before it, or none of them moved.
    """
    found = _features(series, returns, index)
    return None if found is None else found[0]


def _features(series: Series, returns: Sequence[int], index: int) -> tuple[tuple[int, int, int], int] | None:
    """Returns a bar's features, and the σ that they are measured by."""
    before = returns[max(0, index - 1 - LOOK_BACK_BARS) : index - 1]
    bar, previous = series.bars[index], series.bars[index - 1]
    sigma = measures.sigma_ppm(before) if len(before) == LOOK_BACK_BARS else 0
    if not sigma or previous.close_micros <= 0:
        return None
    (prior,) = measures.moves_ppm(before[-measures.HORIZON_BARS :])
    spread = measures.nearest((bar.high_micros - bar.low_micros) * measures.MILLION, previous.close_micros)
    sizes = (
        measures.in_sigmas_milli(returns[index - 1], sigma),
        measures.in_sigmas_milli(prior, sigma, measures.HORIZON_BARS),
        measures.in_sigmas_milli(spread, sigma),
    )
    return sizes, sigma


def _searched(series: Series) -> range:
    """Returns the places of the bars that have enough bars before them, and whose five bars that follow are known."""
    return range(LOOK_BACK_BARS + 1, len(series.bars) - measures.HORIZON_BARS)


def find_episodes(series: Series) -> list[dict[str, Any]]:
    """Returns the episodes among a series' bars."""
    returns, found = series.returns_ppm(), []
    horizon = measures.HORIZON_BARS
    ordered = sorted(returns[:LOOK_BACK_BARS])
    for index in _searched(series):
        bar, is_calm = series.bars[index], _is_calm(ordered, returns[index - 1])
        del ordered[bisect_left(ordered, returns[index - 1 - LOOK_BACK_BARS])]
        insort(ordered, returns[index - 1])
        if is_calm:
            continue
        measured = _features(series, returns, index)
        if measured is None or abs(measured[0][0]) < _UNUSUAL_MILLI:
            continue
        sizes, sigma = measured
        (followed,) = measures.moves_ppm(returns[index : index + horizon])
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


def _is_calm(ordered: Sequence[int], move: int) -> bool:
    """Whether a return is surely less than two standard deviations of others, which are in order.

    Most are, and it takes two searches to see; a margin leaves whatever is near the limit to be computed.
    """
    half = len(ordered) // 2
    middle = (ordered[half - 1] + ordered[half]) // 2
    reach = abs(move) * 10_000 // 29_500 + 2  # two standard deviations are 2.9652 × MAD
    return bisect_right(ordered, middle + reach) - bisect_left(ordered, middle - reach) < half


def keep_episodes(connection: Connection[Any], window: Window, histories: Mapping[str, Series]) -> None:
    """Brings what is stored in line with the bars as they are now: late ones, and those that were corrected, too.

    All bars of the histories are searched, and those before them since the newest stored episode, up to _MOST_BARS:
    what is remembered does not depend on when there were decisions.
    """
    about = {"source": window.source, "series": window.series}
    newest = dict(connection.execute(QUERIES["newest_episodes"].sql, about | {"entities": list(histories)}).fetchall())
    searched = {
        entity: read_entity(connection, window, entity_id=entity, count=_MOST_BARS)
        if _begins_after(history, newest.get(entity))
        else history
        for entity, history in histories.items()
    }
    stored = _stored_episodes(connection, about, searched)
    changed, gone = [], []
    for entity, series in searched.items():
        found = {episode["occurred_at"]: episode for episode in find_episodes(series)}
        changed += [about | episode for at, episode in found.items() if stored[entity].get(at) != episode]
        gone += [about | {"entity_id": entity, "occurred_at": at} for at in stored[entity] if at not in found]
    if changed or gone:
        connection.execute(QUERIES["lock_episodes"].sql, about)
        with connection.cursor() as cursor:
            cursor.executemany(QUERIES["keep_episode"].sql, changed)
            cursor.executemany(QUERIES["forget_episode"].sql, gone)


def _begins_after(history: Series, newest: datetime | None) -> bool:
    """Whether there are bars before the first that is searched in a history, and none of them was searched before."""
    places = _searched(history)
    if not places:
        return False
    return newest is None or newest < history.bars[places[0]].occurred_at


def _stored_episodes(
    connection: Connection[Any], about: Mapping[str, Any], searched: Mapping[str, Series]
) -> Mapping[str, Mapping[datetime, dict[str, Any]]]:
    """Returns the stored episodes of the bars that are searched, by entity and instant."""
    places = {entity: _searched(series) for entity, series in searched.items()}
    some = {entity: searched[entity].bars for entity, found in places.items() if found}
    between = {
        "entities": list(some),
        "since": [bars[places[entity][0]].occurred_at for entity, bars in some.items()],
        "until": [bars[places[entity][-1]].occurred_at for entity, bars in some.items()],
    }
    stored: dict[str, dict[datetime, dict[str, Any]]] = {entity: {} for entity in searched}
    with connection.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(QUERIES["stored_episodes"].sql, {**about, **between}):
            stored[row["entity_id"]][row["occurred_at"]] = row
    return stored


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
