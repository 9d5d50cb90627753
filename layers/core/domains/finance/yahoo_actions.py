"""Splits and dividends, read from what Yahoo's chart answers beside the bars."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from control_plane.ingestion.source import Observation
from domains.finance.events import CorporateDividend, CorporateSplit

MOST_ACTIONS: Final = 64
"""Of one answer are read. Thirty days have one or two."""


def corporate_actions(told: object, meta: Mapping[str, Any]) -> tuple[Observation, ...]:
    """Returns what the ``events`` member of a chart tells, numbers as they came; the contract judges those.

    It never raises: what has no shape or no instant is left out, for no bar is worth less because of it.
    """
    if not isinstance(told, dict):
        return ()
    splits = (
        Observation(
            CorporateSplit.event_type, at, {"numerator": one.get("numerator"), "denominator": one.get("denominator")}
        )
        for at, one in _entries(told.get("splits"))
    )
    dividends = (
        Observation(CorporateDividend.event_type, at, {"amount": one.get("amount"), "currency": meta.get("currency")})
        for at, one in _entries(told.get("dividends"))
    )
    return (*splits, *dividends)


def _entries(told: object) -> Iterator[tuple[datetime, Mapping[str, Any]]]:
    """Yields the entries that have an instant: of an object by its time, as Yahoo tells them, or of a list."""
    entries = told.values() if isinstance(told, dict) else told if isinstance(told, list) else ()
    for entry in islice(entries, MOST_ACTIONS):
        at = _instant(entry.get("date")) if isinstance(entry, dict) else None
        if at is not None:
            yield at, entry


def _instant(seconds: object) -> datetime | None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
