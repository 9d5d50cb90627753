"""What a domain lets be filled in: how far a source reaches back, and which files of observations can be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

MOST_OBSERVATIONS: Final = 5_000
"""The most observations of one piece of a file: they are stored in one transaction."""
MOST_ENTITIES: Final = 500
"""The most entities of one piece of a file."""
LARGEST_PIECE: Final = 1 << 20
"""The most bytes of one piece of a file."""
MOST_PIECES: Final = 2_000
"""The most pieces of one file, and of one backfill."""
RESERVED_SOURCES: Final = frozenset({"decisions"})
"""Sources that no file may speak for."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a source serves of one interval."""

    back: timedelta | None
    """How old the oldest observation may be; None for any age."""
    window: timedelta
    """The longest time of one request."""


@dataclass(frozen=True, slots=True)
class History:
    """A source that can be asked for the past."""

    name: str
    """What people call it, such as ``yfinance``."""
    reaches: Mapping[str, Reach]
    """By interval, such as ``1d``."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One observation of a file, before the contract has judged it."""

    entity_id: str
    entity_type: str | None
    event_type: str
    series: str
    occurred_at: datetime
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FileShape:
    """A kind of file: the columns that it has, and what a row of them says."""

    name: str
    """What people call it, such as ``bars``."""
    columns: Mapping[str, str]
    """What each column holds, in a sentence; a row must have all of them but those in ``optional``."""
    read: Callable[[Mapping[str, Any]], FileRow]
    """Given a row's values, texts or what Parquet holds, returns what it says.

    Raises ValueError or ContractViolation with the reason.
    """
    optional: frozenset[str] = frozenset()
