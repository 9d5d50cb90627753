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
    """In order of time; closed bars only; bars without a trade left out."""
    gap: Gap | None = None
    session: TradingSession | None = None
    """The one in progress; None where the market is closed, or the source does not say."""


class Source(Protocol):
    """Two parts: fetch a symbol's observations, describe the entity they are about."""

    @property
    def name(self) -> str:
        """The value of every event's ``source`` field."""

    def fetch(self, symbol: str, since: datetime | None) -> Fetched:
        """Everything that is final from ``since`` (aware) onwards; where it is None, the most recent hour that has any.

        Called from several threads at once, one symbol each. Raises :class:`~control_plane.model.errors.SourceError`.
        """

    def describe(self, fetched: Fetched) -> Entity:
        """The entity an answer is about, from the answer's own metadata; no further call is made."""
