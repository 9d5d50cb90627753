"""Reads the fields of a filter as somebody wrote it: each is checked, and instants become absolute."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from control_plane.model.errors import ContractViolation
from control_plane.model.ids import canonical_instant, is_storable_text
from control_plane.model.subscription import is_subscription_name, is_topic
from control_plane.operations.kind import OperationRefused

MOST_IDS: Final = 100_000
LONGEST_TEXT: Final = 256
_LARGEST_ID: Final = 2**63 - 1

type Field = Callable[[str, Any], Any]
"""Checks the value of a field of this name, and returns it in canonical form. Raises OperationRefused."""


def read_fields(kind: str, wanted: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Returns the fields that are given, in canonical form; one that is null is not given. Raises OperationRefused."""
    unknown = sorted(str(name) for name in wanted.keys() - fields.keys())
    if unknown:
        raise OperationRefused(
            f"the filter of a {kind} has no field {unknown[0]!r}: it may have {', '.join(sorted(fields))}"
        )
    return {name: read(name, wanted[name]) for name, read in fields.items() if wanted.get(name) is not None}


def text(name: str, value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_TEXT or not is_storable_text(value):
        raise OperationRefused(f"{name} must be text of 1 to {LONGEST_TEXT} characters")
    return value


def subscription(name: str, value: Any) -> str:
    """A subscription's name."""
    if not is_subscription_name(text(name, value)):
        raise OperationRefused(f"{name} is {value!r}: it must be a subscription's name, such as signal_lab")
    return str(value)


def topic(name: str, value: Any) -> str:
    """A topic."""
    if not is_topic(text(name, value)):
        raise OperationRefused(f"{name} is {value!r}: it must be a topic, such as market.ticks")
    return str(value)


def instant(name: str, value: Any) -> str:
    """An RFC 3339 instant, which becomes one of UTC."""
    try:
        return canonical_instant(datetime.fromisoformat(text(name, value)), field=name)
    except (ValueError, ContractViolation):
        raise OperationRefused(
            f"{name} is {value!r}: it must be an instant with its time zone, such as 2026-01-05T14:32:00Z"
        ) from None


def ids(name: str, value: Any) -> list[int]:
    """A list of ids, which comes back sorted, each once."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, int) and not isinstance(one, bool) and 0 < one <= _LARGEST_ID for one in value
    ):
        raise OperationRefused(f"{name} must be a list of positive whole numbers")
    if len(value) > MOST_IDS:
        raise OperationRefused(f"{name} holds {len(value)} numbers: {MOST_IDS} are the most")
    return sorted(set(value))


def event_or_trace(name: str, value: Any) -> str:
    """An event's or a trace's id."""
    try:
        return str(UUID(text(name, value)))
    except ValueError:
        raise OperationRefused(
            f"{name} is {value!r}: it must be a UUID, such as d0459ed7-a792-5533-b958-aaf36e185583"
        ) from None


def one_of(*words: str) -> Field:
    """Returns the field of one of these words."""

    def read(name: str, value: Any) -> str:
        if value not in words:
            raise OperationRefused(f"{name} is {value!r}: it must be one of {', '.join(words)}")
        return str(value)

    return read


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise OperationRefused(f"{name} must be true or false")
    return value


def ago(now: Callable[[], datetime]) -> Field:
    """Returns the field of a number of seconds before now, which becomes an instant."""

    def read(name: str, value: Any) -> str:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not 0 <= value <= timedelta(days=36_500).total_seconds():
            raise OperationRefused(f"{name} must be a number of seconds, and at most 100 years")
        return canonical_instant(now().astimezone(UTC) - timedelta(seconds=value), field=name)

    return read
