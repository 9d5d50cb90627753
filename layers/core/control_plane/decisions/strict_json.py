"""Reads JSON that others wrote, and refuses what readers of JSON understand differently.

A key given twice, NaN, Infinity and 1e999 pass Python's reader and pydantic's; another reader sees another value.
"""

import json
import math
import re
from typing import Any, Final, NoReturn

from control_plane.model.errors import ContractViolation

_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def parse(raw: bytes, *, most_bytes: int, most_depth: int) -> Any:
    """Returns the value of a JSON text in UTF-8. Raises ContractViolation for any other, with the reason."""
    if len(raw) > most_bytes:
        raise _violation(f"has {len(raw)} bytes, where {most_bytes} are the most")
    _check_depth(raw, most_depth)
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise _violation("is not UTF-8") from None
    except RecursionError:
        raise _violation(f"is nested deeper than {most_depth} levels") from None
    except ValueError as error:  # JSONDecodeError too, and an integer of thousands of digits
        raise _violation(f"is not JSON: {error}") from None


def _check_depth(raw: bytes, most_depth: int) -> None:
    depth = 0
    for byte in _STRINGS.sub(b"", raw):
        if byte in b"[{":
            depth += 1
            if depth > most_depth:
                raise _violation(f"is nested deeper than {most_depth} levels")
        elif byte in b"]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _violation(f"has the key {key[:64]!r} twice in one object")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _violation(f"holds the number {text[:32]}, which no double can")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _violation(f"holds {name}, which is no JSON")


def _violation(reason: str) -> ContractViolation:
    return ContractViolation(reason, field="JSON")
