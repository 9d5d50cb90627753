"""What the control plane needs from a source. A new source is one file that satisfies :class:`Source`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

type Json = bool | int | float | str | list[Json] | dict[str, Json] | None


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that a source said about an instant, before it is judged by the contract."""

    event_type: str
    occurred_at: datetime
    """Always with a time zone; converted from the source's own zone, never just relabelled."""
    payload: Mapping[str, Any]
    """Domain data as the source gave it: it may be incomplete or hold NaN, which the contract then refuses."""
    series: str = ""
    """What else tells two observations of one instant apart; for bars, their interval."""


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
    """``equity``, ``etf``, ``index``, ``fx``, ``crypto``, or another type in lower case; None if the source does not
    say."""
    time_zone: str | None
    """IANA name of the exchange's time zone."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One symbol's answer."""

    symbol: str
    raw: Json
    """The source's answer, unchanged; an answer that is no JSON is wrapped as ``{status, content_type, body}``."""
    observations: tuple[Observation, ...]
    """In order of time; closed bars only; bars without a trade left out. Beside bars also what else was told."""
    gap: Gap | None = None
    session: TradingSession | None = None
    """The session in progress; None while the market is closed, or if the source does not say."""


class Source(Protocol):
    """Fetches a symbol's observations, reads them from an answer, and describes the symbol's entity.

    Fetching and reading are separate, so that a kept answer can be read again with the same result.
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
        """The ``series`` of all its observations: the interval for bars, otherwise empty."""

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        """Fetches all final observations from ``since`` on; None asks for the most recent hour that has any.

        ``asked_at`` is the present by the run's clock; the source must use no other clock. All instants have a time
        zone. Called from several threads at once, one symbol each. Raises
        :class:`~control_plane.model.errors.SourceError`.
        """

    def read(self, raw: Json, *, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        """Returns what :meth:`fetch` returned, or raises what it raised, given the answer that was kept.

        The result depends on the arguments alone, and no request is made.
        """

    def describe(self, fetched: Fetched) -> Entity:
        """Returns the entity that an answer is about, from the answer's own metadata; no request is made."""


class HistorySource(Source, Protocol):
    """A source that a backfill can ask for the past."""

    def fetch_window(self, symbol: str, since: datetime, until: datetime, interval: str, asked_at: datetime) -> Fetched:
        """Fetches all final observations of an interval from ``since`` on and before ``until``.

        What was fetched is read again as ``read`` does. Raises :class:`~control_plane.model.errors.SourceError`.
        """
