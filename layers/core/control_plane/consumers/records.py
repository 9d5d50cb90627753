"""Reads single values of an SQS record that may hold anything."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

LONGEST_COUNT: Final = 9
"""The most digits of a count that fits an integer of Postgres."""
LONGEST_UUID: Final = 45
"""The most characters that UUID takes: with urn:uuid: before it."""


def as_uuid(text: object) -> UUID | None:
    """Returns the UUID that a text is, or None."""
    try:
        return UUID(text) if isinstance(text, str) and len(text) <= LONGEST_UUID else None
    except ValueError:
        return None


def as_number(value: object, most_digits: int) -> int:
    """Returns the number that a text of decimal digits is; 0 for anything else, and for one with more digits."""
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= most_digits else 0


def attribute_of(record: Mapping[str, Any], name: str) -> str | None:
    """Returns a message attribute's text, or None."""
    value = object_of(object_of(record, "messageAttributes"), name).get("stringValue")
    return value if isinstance(value, str) else None


def object_of(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the object under a name within another object; an empty one where there is none."""
    value = given.get(name)
    return value if isinstance(value, dict) else {}
