"""What the control plane asks of a source. A new source is one file that satisfies :class:`Source`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

type Json = bool | int | float | str | list[Json] | dict[str, Json] | None


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing a source said about an instant, before it is judged against the contract."""

    event_type: str
    occurred_at: datetime
    """Aware; converted, never relabelled, from the source's own time zone."""
    payload: Mapping[str, Any]
    """Domain data as the source gave it: may be incomplete or hold NaN, which the contract then refuses."""
    series: str = ""
    """What else tells two observations of one instant apart; of bars the interval."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of time that was asked for and that the source no longer has."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class TradingSession:
    """From a market's opening to its close. Symbols of one market share it."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Entity:
    """What the observations are about, in the source's own words."""

    entity_id: str
    entity_type: str | None
    """``equity``, ``etf``, ``index``, ``fx``, ``crypto``, or another in lower case; None where the source is silent."""
    time_zone: str | None
    """IANA name of the exchange's time zone."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One symbol's answer."""

    symbol: str
    raw: Json
    """What the source said, as it said it; wrapped as ``{status, content_type, body}`` where it is no JSON."""
    observations: tuple[Observation, ...]
    """In order of time; closed bars only; bars without a trade left out. Beside bars also what else was told."""
    gap: Gap | None = None
    session: TradingSession | None = None
    """The one in progress; None where the market is closed, or the source does not say."""


class Source(Protocol):
    """Asks about symbols, reads what was answered, and describes whom it is about.

    Asking and reading are apart: what was read once can be read again from the kept answer, with the same result.
    """

    @property
    def name(self) -> str:
        """The value of every event's ``source`` field."""

    @property
    def event_type(self) -> str:
        """The type of the observations that it follows; the newest stored one of it says from when on to ask next.

        It may make others beside them: of splits, say.
        """

    @property
    def series(self) -> str:
        """The series of its observations: of bars the interval, otherwise empty."""

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        """Asks for all that is final from ``since`` on; where it is None, for the most recent hour that has any.

        ``asked_at`` is the present by the run's clock, which is the source's only clock. All instants are aware.
        Called from several threads at once, one symbol each. Raises :class:`~control_plane.model.errors.SourceError`.
        """

    def read(self, raw: Json, *, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        """Returns what :meth:`fetch` returned, or raises what it raised, from the answer that was kept.

        It depends on nothing but its arguments, and no call is made.
        """

    def describe(self, fetched: Fetched) -> Entity:
        """Returns the entity an answer is about, from the answer's own metadata; no call is made."""
