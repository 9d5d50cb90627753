"""Event ids: the same observation always gets the same id, however its JSON is written."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid5

import rfc8785

from control_plane.model.errors import ContractViolation

EVENT_NAMESPACE = UUID("31d75e86-4a2a-4b67-9c84-a98c9ae12e17")
"""The UUIDv5 namespace of every event_id; published in docs/event_contract.md, never changed."""

MAX_DEPTH = 64
"""How deep arrays and objects may be nested, counting the outermost one."""

_LARGEST_EXACT_INTEGER = 2**53 - 1
_LEAST_PLAIN_FLOAT = 1e-4
_PLAIN = frozenset({str, int, bool, type(None)})
_write_plain = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_instant(instant: datetime, *, field: str = "occurred_at") -> str:
    """Returns RFC 3339 text in UTC: ``2026-01-05T14:32:00Z``, with six more digits if there is a fraction of a second.

    Raises ContractViolation for an instant without a time zone, and for one beyond the years 1 to 9999 of UTC.
    """
    if instant.tzinfo is None or instant.utcoffset() is None:
        raise ContractViolation("is an instant without a time zone", field=field, value=instant)
    try:
        utc = instant.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ContractViolation("is out of range in UTC", field=field, value=instant) from None
    return f"{utc.isoformat(timespec='microseconds' if utc.microsecond else 'seconds')}Z"


def storable(value: Any, *, field: str = "payload") -> Any:
    """Returns a JSON value as jsonb would return it after storing, so that storing changes no id.

    -0.0 becomes 0.0, and an integer beyond 2**53 becomes the double of that value (jsonb writes 1e22 out in digits).
    Raises ContractViolation for NaN and Infinity, for text with NUL or a lone surrogate, for a value that is nested
    deeper than MAX_DEPTH, and for anything that is not JSON.
    """
    return _storable(value, field, MAX_DEPTH)


def is_storable_text(text: str) -> bool:
    """Whether JSON and Postgres can both store the text: it holds neither NUL nor a lone surrogate."""
    if text.isascii():
        return "\x00" not in text
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return "\x00" not in text


type _Path = str | tuple[_Path, str | int]
"""Where a value is: the outermost name, or what holds it with its key or index. An error alone spells it out."""


def _spelled(path: _Path) -> str:
    match path:
        case str():
            return path
        case holder, int() as index:
            return f"{_spelled(holder)}[{index}]"
        case holder, key:
            return f"{_spelled(holder)}.{key}"


def _storable(value: Any, path: _Path, levels_left: int) -> Any:
    kind = type(value)  # These are nearly all values, and told apart the fastest in this way.
    if kind is str and value.isascii() and "\x00" not in value:
        return value
    if kind is float and math.isfinite(value):
        return value or 0.0
    if (kind is int and -_LARGEST_EXACT_INTEGER <= value <= _LARGEST_EXACT_INTEGER) or value is None:
        return value
    return _storable_of_any_kind(value, path, levels_left)


def _storable_of_any_kind(value: Any, path: _Path, levels_left: int) -> Any:
    match value:
        case bool():
            return value
        case int():
            return _storable_integer(value, path)
        case float():
            if not math.isfinite(value):
                raise ContractViolation("is not a finite number", field=_spelled(path), value=value)
            return value or 0.0
        case str():
            if not is_storable_text(value):
                reason = "holds a character that JSON text cannot store"
                raise ContractViolation(reason, field=_spelled(path), value=value)
            return value
        case Mapping() | list() | tuple() if levels_left == 0:
            reason = f"is nested deeper than {MAX_DEPTH} levels"
            raise ContractViolation(reason, field=_spelled(path), value=value)
        case Mapping():
            return _storable_object(value, path, levels_left)
        case list() | tuple():
            return _storable_array(value, path, levels_left)
        case _:
            raise ContractViolation("is not a JSON value", field=_spelled(path), value=value)


def _storable_array(value: Sequence[Any], path: _Path, levels_left: int) -> list[Any]:
    if _are_exact_integers(value):
        return list(value)
    return [_storable(item, (path, index), levels_left - 1) for index, item in enumerate(value)]


def _are_exact_integers(values: Sequence[Any]) -> bool:
    """Whether an array holds nothing but integers that JSON holds exactly: long ones are told from a few looks."""
    return (
        set(map(type, values)) == {int}
        and min(values) >= -_LARGEST_EXACT_INTEGER
        and max(values) <= _LARGEST_EXACT_INTEGER
    )


def _storable_object(value: Mapping[Any, Any], path: _Path, levels_left: int) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise ContractViolation("has a key that is not text", field=_spelled(path), value=list(value))
    return {
        _storable(key, path, levels_left): _storable(item, (path, key), levels_left - 1) for key, item in value.items()
    }


def _storable_integer(value: int, path: _Path) -> int | float:
    if abs(value) <= _LARGEST_EXACT_INTEGER:
        return value
    try:
        nearest = float(value)
    except OverflowError:
        raise ContractViolation("is larger than any JSON number", field=_spelled(path), value=value) from None
    if value not in (int(nearest), Decimal(repr(nearest))):
        reason = "is an integer that a JSON number cannot hold exactly"
        raise ContractViolation(reason, field=_spelled(path), value=value)
    return nearest


def canonical_json(value: Any, *, field: str = "payload") -> bytes:
    """Returns the RFC 8785 (JCS) form; key order, white space and the spelling of numbers make no difference to it."""
    stored = storable(value, field=field)
    try:
        # The standard library writes these the same way, many times as fast.
        return _write_plain(_plain(stored)).encode()
    except _NotPlainError:
        return rfc8785.dumps(stored)


class _NotPlainError(Exception):
    """Raised for a value that RFC 8785 writes by a rule of its own."""


def _plain(value: Any) -> Any:
    """Returns a storable value as one that the standard library writes as RFC 8785 does.

    Raises _NotPlainError if it holds a key beyond ASCII, or a float that RFC 8785 or Python writes with an exponent. A
    whole float becomes an integer, because RFC 8785 writes no ``.0``.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        if _LEAST_PLAIN_FLOAT <= abs(value) <= _LARGEST_EXACT_INTEGER or not value:
            return int(value) if value.is_integer() else value
        raise _NotPlainError
    if kind is dict:
        if not all(map(str.isascii, value)):
            raise _NotPlainError
        return {key: _plain(item) for key, item in value.items()}
    return value if set(map(type, value)) <= _PLAIN else list(map(_plain, value))


def derive_event_id(
    *,
    source: str,
    event_type: str,
    entity_id: str | None,
    series: str,
    occurred_at: datetime,
    schema_version: int,
    revision: int,
    payload: Mapping[str, Any],
) -> UUID:
    """Returns the UUIDv5, in EVENT_NAMESPACE, of the canonical JSON of these eight fields and nothing else."""
    observation = {
        "source": source,
        "event_type": event_type,
        "entity_id": entity_id,
        "series": series,
        "occurred_at": canonical_instant(occurred_at),
        "schema_version": schema_version,
        "revision": revision,
        "payload": dict(payload),
    }
    return uuid5(EVENT_NAMESPACE, canonical_json(observation, field="event").decode())
