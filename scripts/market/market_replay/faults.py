"""The faults that a symbol can have, for tests and drills."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Self

EVERY_SYMBOL = "*"
LONGEST_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Correction:
    """A different close for the bar of one minute (counted since 1970)."""

    minute: int
    close: float


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault; its fields can be combined. ``status`` and ``body`` replace the answer, the others change it."""

    status: int | None = None
    """Answer with this status, and with an error body like Yahoo's."""
    body: str | None = None
    """Answer with this text, as ``content_type``."""
    content_type: str = "text/html"
    empty: bool = False
    """Answer without bars, as for a closed market."""
    null_bar: bool = False
    """All values of the newest closed bar are null: nothing was traded."""
    nan: bool = False
    """The newest closed bar lacks its close."""
    delay_seconds: float = 0.0
    """How many seconds the answer takes."""
    behind_seconds: float = 0.0
    """The answer shows the market as it was this many seconds ago, like that of a delayed exchange."""
    correct: Correction | None = None

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Returns the fault that a JSON object describes, field by field.

        ``correct`` is ``{"minute": an RFC 3339 instant, "close": a number}``. Raises ValueError that says what is
        wrong.
        """
        if not isinstance(value, Mapping) or not value:
            raise ValueError("a fault is a JSON object with at least one field")
        unknown = value.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        for name, kinds in _KINDS.items():
            if name in value and (
                not isinstance(value[name], kinds) or isinstance(value[name], bool) is not (kinds is bool)
            ):
                raise ValueError(f"{name}: not usable: {value[name]!r}")
        if "status" in value and not 200 <= value["status"] <= 599:
            raise ValueError(f"status: not one of HTTP's: {value['status']}")
        for name in ("delay_seconds", "behind_seconds"):
            if not 0 <= value.get(name, 0) <= LONGEST_SECONDS:
                raise ValueError(f"{name}: not from 0 to {LONGEST_SECONDS}: {value[name]}")
        fault = cls(**{name: value[name] for name in value if name != "correct"})
        if "correct" in value:
            fault = replace(fault, correct=_correction(value["correct"]))
        return fault


_KINDS: Mapping[str, Any] = {
    "status": int,
    "body": str,
    "content_type": str,
    "empty": bool,
    "null_bar": bool,
    "nan": bool,
    "delay_seconds": (int, float),
    "behind_seconds": (int, float),
}


def _correction(value: Any) -> Correction:
    try:
        minute = datetime.fromisoformat(value["minute"])
        close = float(value["close"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError('correct: wants {"minute": an RFC 3339 instant, "close": a number}') from error
    if minute.tzinfo is None:
        raise ValueError(f"correct.minute: has no time zone: {value['minute']!r}")
    return Correction(int(minute.astimezone(UTC).timestamp()) // 60, close)


class Faults:
    """The current faults by symbol; ``*`` stands for every symbol that has none of its own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_symbol: dict[str, Fault] = {}

    def put(self, symbol: str, fault: Fault) -> None:
        """Replaces the symbol's fault."""
        with self._lock:
            self._by_symbol[symbol] = fault

    def clear(self, symbol: str | None = None) -> None:
        """Ends the fault of one symbol, or of all."""
        with self._lock:
            if symbol is None:
                self._by_symbol.clear()
            else:
                self._by_symbol.pop(symbol, None)

    def of(self, symbol: str) -> Fault:
        """Returns the symbol's current fault, or one without any effect."""
        with self._lock:
            return self._by_symbol.get(symbol) or self._by_symbol.get(EVERY_SYMBOL) or _NO_FAULT

    def __len__(self) -> int:
        with self._lock:
            return len(self._by_symbol)


_NO_FAULT = Fault()
