"""Strict JSON: one text means one value, and what two readers could take for two different things is refused.

Pydantic in strict mode accepts a key given twice, NaN, and 1e999 as infinity; a gate that reads one value while its
client reads another lets through what it never saw.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Never

from control_plane.model.errors import ContractViolation
from control_plane.model.text import has_invisible

MOST_BYTES: Final = 64 * 1024
MOST_DEPTH: Final = 32
"""How deep arrays and objects may be nested, the outermost counted."""

_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[\]{}]")
_LINES: Final = str.maketrans("", "", "\t\n\r")


class NotStrictJson(ContractViolation):
    """Raised for bytes that are not JSON, or that are JSON in more than one sense. Permanent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, field="JSON")


def parse(
    given: bytes,
    *,
    most_bytes: int = MOST_BYTES,
    most_depth: int = MOST_DEPTH,
    check_texts: bool = True,
    has_lines: bool = False,
) -> Any:
    """Returns the value that the bytes stand for; raises NotStrictJson.

    Refused: more than ``most_bytes``, nesting deeper than ``most_depth``, bytes that are not UTF-8, a key given twice,
    NaN, Infinity, a number beyond a double, and, where texts are checked, those with lone surrogates, control or
    invisible characters; ``has_lines`` lets line ends and tabs pass.
    """
    if len(given) > most_bytes:
        raise NotStrictJson(f"has {len(given)} bytes, and {most_bytes} is the most")
    _check_depth(given, most_depth)  # before it is parsed: the parser's own limit is the interpreter's stack
    try:
        text = given.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotStrictJson(f"is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise NotStrictJson(f"is not JSON: {error}") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits
        raise NotStrictJson(f"cannot be read: {error}") from None
    if check_texts:
        _check_texts(value, _LINES if has_lines else {})
    return value


def parse_object(given: bytes, *, most_bytes: int = MOST_BYTES, has_lines: bool = False) -> dict[str, Any]:
    """Returns the object that the bytes stand for; raises NotStrictJson, also for another kind of value."""
    value = parse(given, most_bytes=most_bytes, has_lines=has_lines)
    if not isinstance(value, dict):
        raise NotStrictJson("is not a JSON object")
    return value


def _check_depth(given: bytes, most_depth: int) -> None:
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", given)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > most_depth:
            raise NotStrictJson(f"is nested deeper than {most_depth} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise NotStrictJson(f"gives the key {name[:64]!a} twice")
        found[name] = value
    return found


def _constant(name: str) -> Never:
    raise NotStrictJson(f"holds {name}, which is no JSON number")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise NotStrictJson(f"holds {digits[:40]}, which is beyond any number")
    return number


def _check_texts(value: Any, passing: Mapping[int, int | None]) -> None:
    match value:
        case str():
            if has_invisible(value.translate(passing)):
                raise NotStrictJson("holds a text with a control character, a lone surrogate or one that is invisible")
        case dict():
            for name, item in value.items():
                _check_texts(name, passing)
                _check_texts(item, passing)
        case list():
            for item in value:
                _check_texts(item, passing)
