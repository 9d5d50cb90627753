"""What an answer must be beside its type, so that the record can hold it and its forecasts can be scored."""

from collections.abc import Iterator
from typing import Any, Final

MOST_INTEGER: Final = 2**53
"""The largest integer that every reader of JSON holds exactly."""


def why_unrecordable(answer: Any) -> str | None:
    """Returns why an answer, as parsed, cannot be put on record; None where it can.

    Its own words are never part of the reason: a repair turn may quote it.
    """
    if any(abs(number) > MOST_INTEGER for number in _integers(answer)):
        return "the answer holds an integer beyond 2**53, which not every reader of JSON holds exactly"
    forecasts = answer.get("forecasts") if isinstance(answer, dict) else None
    if isinstance(forecasts, list):
        events = [str(forecast.get("event")) for forecast in forecasts if isinstance(forecast, dict)]
        if len(set(events)) < len(events):
            return "forecasts: two are of one event, and each event is scored once"
    return None


def _integers(value: Any) -> Iterator[int]:
    match value:
        case bool():
            return
        case int():
            yield value
        case dict():
            for item in value.values():
                yield from _integers(item)
        case list():
            for item in value:
                yield from _integers(item)
