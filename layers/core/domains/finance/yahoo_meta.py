"""Reads the metadata of Yahoo's charts: the market's clock and sessions, and what the chart is about."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final, TypeGuard

from control_plane.ingestion.source import TradingSession

SHORTEST_DAY: Final = timedelta(hours=20)
"""A session of at least this length never closes: crypto, currencies. (Yahoo ends those at 23:59, one bar early.)"""


def meta_of(document: Any) -> Mapping[str, Any]:
    """Returns the metadata of an answer; empty if it has none."""
    try:
        meta = document["chart"]["result"][0]["meta"]
    except (KeyError, IndexError, TypeError):
        return {}
    return meta if isinstance(meta, dict) else {}


def text_of(value: object) -> str | None:
    """Returns a text that is not empty, and None for anything else."""
    return value if isinstance(value, str) and value else None


def clock_of(meta: Mapping[str, Any]) -> datetime | None:
    """Returns the time of the newest trade; None if the field is no instant."""
    seconds = meta.get("regularMarketTime")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def sessions_of(meta: Mapping[str, Any]) -> Iterator[TradingSession]:
    """Yields the sessions with bars, and today's. On a Saturday both are Friday's, even those of currencies."""
    for start, end in _periods(meta):
        with contextlib.suppress(ValueError, OverflowError, OSError):
            yield TradingSession(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC))


def closing_times(meta: Mapping[str, Any]) -> frozenset[float]:
    """Returns when the sessions end that do end, in seconds since 1970."""
    return frozenset(end for start, end in _periods(meta) if end - start < SHORTEST_DAY.total_seconds())


def _periods(meta: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """Yields the regular sessions as pairs of seconds since 1970, whichever shape the answer has.

    Yahoo has sent them as lists of days, as one flat list, and as an object with the key "regular". An unknown shape
    must not cost the bars.
    """
    current = meta.get("currentTradingPeriod")
    told: list[object] = [meta.get("tradingPeriods"), current.get("regular") if isinstance(current, dict) else None]
    for _ in range(3):  # A flat list has sessions at level two, an object of days at four.
        told = [part for whole in told for part in _parts(whole)]
    for session in told:
        if isinstance(session, dict):
            start, end = session.get("start"), session.get("end")
            if _is_seconds(start) and _is_seconds(end) and start < end:
                yield start, end


def _parts(whole: object) -> list[object]:
    """Returns the items of a list or an object of periods; a session stays as it is."""
    if isinstance(whole, list):
        return whole
    if not isinstance(whole, dict):
        return []
    return [whole] if "start" in whole else [whole.get("regular")]


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
