"""Bars and corporate actions as the detector keeps them, and the adjusted returns that they make."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise, starmap
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.platform.queries import load_queries
from domains.finance.deciding import measures

QUERIES = load_queries(__package__)


class Bar(NamedTuple):
    """One bar in its latest revision; prices are millionths of its currency, as traded.

    Evidence is hundreds of them, and a tuple is what the driver makes of a row anyway.
    """

    entity_id: str
    occurred_at: datetime
    open_micros: int
    high_micros: int
    low_micros: int
    close_micros: int
    currency: str
    revision: int
    event_id: UUID
    follows_gap: bool
    """Whether the market was closed before it: such returns are wider, and compared with such alone."""


@dataclass(frozen=True, slots=True)
class CorporateAction:
    """A split (``ratio_ppm``: what one unit became) or a dividend (``amount_micros`` a unit)."""

    entity_id: str
    occurred_at: datetime
    kind: str
    ratio_ppm: int | None
    amount_micros: int | None
    currency: str | None


@dataclass(frozen=True, slots=True)
class Series:
    """One entity's bars, oldest first, and its corporate actions."""

    bars: Sequence[Bar]
    actions: Sequence[CorporateAction]
    _returns: list[int] = field(default_factory=list, compare=False, repr=False)
    """Computed once, when they are first asked for."""

    def actions_of(self, index: int) -> Sequence[CorporateAction]:
        """Returns what took effect after the bar before and no later than this one, in the bar's own currency."""
        before, bar = self.bars[index - 1].occurred_at, self.bars[index]
        return [
            action
            for action in self.actions
            if before < action.occurred_at <= bar.occurred_at and action.currency in (None, bar.currency)
        ]

    def alike(self, most: int) -> list[int]:
        """Returns the places of the newest bars before the last that have a return of its kind: after a gap, or not."""
        kind = self.bars[-1].follows_gap
        return [place for place in range(1, len(self.bars) - 1) if self.bars[place].follows_gap == kind][-most:]

    def return_ppm(self, index: int) -> int:
        """Returns a bar's adjusted return, 0 where one of the two prices is not positive."""
        now, before = self.bars[index].close_micros, self.bars[index - 1].close_micros
        if now <= 0 or before <= 0 or not self.actions:
            return _return_ppm(before, now)
        actions = self.actions_of(index)
        paid = sum(action.amount_micros or 0 for action in actions)
        found = measures.return_ppm(now, before, paid=paid)
        ratio = measures.MILLION
        for action in actions:
            if action.ratio_ppm is not None:
                ratio = measures.nearest(ratio * action.ratio_ppm, measures.MILLION)
        split = measures.return_ppm(now, before, ratio_ppm=ratio, paid=paid)
        # Otherwise the source has put the split into the earlier prices itself; the detector has the same rule.
        return split if abs(split) < abs(found) else found

    def returns_ppm(self) -> Sequence[int]:
        """Returns the adjusted return of every bar but the first."""
        if not self._returns:
            if self.actions:
                self._returns.extend(self.return_ppm(index) for index in range(1, len(self.bars)))
            else:
                self._returns.extend(starmap(_return_ppm, pairwise(bar.close_micros for bar in self.bars)))
        return self._returns


def _return_ppm(before: int, now: int) -> int:
    return measures.return_ppm(now, before) if now > 0 and before > 0 else 0


@dataclass(frozen=True, slots=True)
class Window:
    """Which bars are asked for: those of a source and series around an instant."""

    source: str
    series: str
    at: datetime


def read_before(
    connection: Connection[Any], window: Window, *, account: str, entity_id: str, count: int
) -> Mapping[str, Series]:
    """Returns the newest bars up to the instant, of every entity that has a bar at it or is held."""
    values = {
        "source": window.source,
        "series": window.series,
        "at": window.at,
        "account": account,
        "entity_id": entity_id,
        "count": count,
    }
    bars = _bars(connection, QUERIES["bars_until"].sql, values)
    return _by_entity(connection, window.source, bars)


def read_entity(connection: Connection[Any], window: Window, *, entity_id: str, count: int) -> Series:
    """Returns the newest bars of one entity up to the instant."""
    values = {"source": window.source, "series": window.series, "at": window.at, "entity_id": entity_id, "count": count}
    bars = _bars(connection, QUERIES["bars_of_entity"].sql, values)
    return _by_entity(connection, window.source, bars).get(entity_id, Series((), ()))


def read_after(
    connection: Connection[Any], window: Window, *, entities: Sequence[str], until: datetime
) -> Mapping[str, Series]:
    """Returns each entity's bars from the one at the instant, or the last before it, to the given one."""
    values = {
        "source": window.source,
        "series": window.series,
        "at": window.at,
        "entities": list(entities),
        "until": until,
    }
    bars = _bars(connection, QUERIES["bars_between"].sql, values)
    return _by_entity(connection, window.source, bars)


def _bars(connection: Connection[Any], query: LiteralString, values: Mapping[str, Any]) -> Sequence[Bar]:
    # In binary an instant is a number: hundreds of them are read in half the time of their texts.
    return list(map(Bar._make, connection.execute(query, values, binary=True).fetchall()))


def _by_entity(connection: Connection[Any], source: str, bars: Sequence[Bar]) -> Mapping[str, Series]:
    of_entity: dict[str, list[Bar]] = defaultdict(list)
    for bar in bars:
        of_entity[bar.entity_id].append(bar)
    actions: dict[str, list[CorporateAction]] = defaultdict(list)
    if bars:
        values = {
            "source": source,
            "entities": list(of_entity),
            "since": min(bar.occurred_at for bar in bars),
            "until": max(bar.occurred_at for bar in bars),
        }
        with connection.cursor(row_factory=class_row(CorporateAction)) as cursor:
            for action in cursor.execute(QUERIES["corporate_actions"].sql, values):
                actions[action.entity_id].append(action)
    return {entity: Series(found, actions[entity]) for entity, found in of_entity.items()}
