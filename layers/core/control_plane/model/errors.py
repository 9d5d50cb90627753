"""The errors of the control plane; retryable and permanent ones are different types."""

from collections.abc import Sequence
from typing import Any


class ControlPlaneError(Exception):
    """Base of all errors raised on purpose. The text names the cause and the remedy, and holds no secret."""


class ConfigurationError(ControlPlaneError):
    """Raised at start when settings are missing or contradict each other; it lists every problem at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class MalformedInvocation(ControlPlaneError):
    """Raised when a function is invoked with an event that is not of its own shape; says which shape it expects."""


class ContractViolation(ControlPlaneError):
    """Raised when an event or a payload breaks the contract. Permanent: the same input fails again."""

    def __init__(self, reason: str, *, field: str, value: object = None) -> None:
        self.reason = reason
        self.field = field
        self.value = value
        super().__init__(f"{field}: {reason} (got {_shortened(value)})")


class PlaybookFault(ControlPlaneError):
    """Raised when a playbook asks for what cannot be done, or is gone. Its decision is abandoned at its deadline."""


class SourceError(ControlPlaneError):
    """Raised by a source when a symbol could not be fetched; ``raw`` is the source's answer, if there was one.

    ``kind`` is one of ``unknown_symbol``, ``rate_limited``, ``unreachable``, ``malformed``; all but the first may heal
    by themselves.
    """

    def __init__(self, symbol: str, kind: str, reason: str, *, raw: Any = None) -> None:
        self.symbol = symbol
        self.kind = kind
        self.reason = reason
        self.raw = raw
        super().__init__(f"{symbol}: {reason}")


class DatabaseUnavailable(ControlPlaneError):
    """Raised when Postgres cannot be reached or refuses the connection. Retryable."""

    def __init__(self, text: str, *, password_refused: bool = False) -> None:
        self.password_refused = password_refused
        super().__init__(text)


class UnsuitableDatabase(ControlPlaneError):
    """Raised when a setting of the server or the session would change what our SQL does. Permanent."""

    def __init__(self, target: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"Postgres at {target} is not as the control plane needs it: {'; '.join(problems)}")


class SchemaVersionMismatch(ControlPlaneError):
    """Raised at start when the database's schema is not of the version that this code needs."""


def _shortened(value: object, limit: int = 200) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Raised for an integer of thousands of digits, or for deep nesting.
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
