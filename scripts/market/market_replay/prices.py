"""Decides which bar a minute has: one real daily bar of bokeh_sampledata (2000 to 2013) per minute, day and night."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Self

SYMBOLS = {
    "AAPL": "Apple Inc.",
    "FB": "Facebook, Inc.",
    "GOOG": "Google Inc.",
    "IBM": "International Business Machines Corporation",
    "MSFT": "Microsoft Corporation",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """Prices in US dollars, volume in shares."""

    open: float
    high: float
    low: float
    close: float
    volume: int


@cache
def daily_bars(symbol: str) -> tuple[Bar, ...]:
    """Every real day of a symbol in order. All series end on the same day, 2013-03-01."""
    from bokeh_sampledata import stocks  # noqa: PLC0415 - slow to import, and acp needs the symbols alone

    days = getattr(stocks, symbol)
    columns = (days[name] for name in ("open", "high", "low", "close", "volume"))
    return tuple(Bar(*row) for row in zip(*columns, strict=True))


@dataclass(frozen=True, slots=True)
class Action:
    """A split (``amount`` new shares per old one) or a dividend (``amount`` US dollars per share) of one real day."""

    kind: str
    amount: float


_HALVED = {("AAPL", "2000-06-21"), ("AAPL", "2005-02-28"), ("MSFT", "2003-02-18")}
"""Every split of these symbols in this time: two new shares for each old one. The adjusted closes say the same."""


@cache
def actions(symbol: str) -> Mapping[int, tuple[Action, ...]]:
    """The splits and dividends by the place of their day in the symbol's series.

    Dividends are derived from the adjusted closes, which have two decimals: those that are more than their rounding, to
    within a few cents.
    """
    from bokeh_sampledata import stocks  # noqa: PLC0415 - as above

    days = getattr(stocks, symbol)
    found: dict[int, tuple[Action, ...]] = {}
    closes, adjusted = days["close"], days["adj_close"]
    for place, day in enumerate(days["date"]):
        ratio = 2 if (symbol, day) in _HALVED else 1
        if place == 0:
            continue
        before, after = adjusted[place - 1], adjusted[place]
        factor = after / before * closes[place - 1] / closes[place] / ratio
        of_the_day = [Action("split", ratio)] if ratio != 1 else []
        if factor - 1 > 4 * (0.005 / before + 0.005 / after):
            of_the_day.append(Action("dividend", round(closes[place - 1] * (1 - 1 / factor), 2)))
        if of_the_day:
            found[place] = tuple(of_the_day)
    return found


SEAM_MINUTES = 60
"""How long nothing is traded between the last day and the first one again, where the replay starts at a day."""
WARM_UP_MINUTES = 60
"""How many days before its first one such a replay has: what a first ingestion asks for."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Which real day a minute has, minutes being counted since 1970.

    By default the minute itself says, modulo the number of days. With ``start``, a place among the longest series'
    days and the minute which has that day, each minute after that one has the next day.
    """

    start: tuple[int, int] | None = None

    @classmethod
    def from_day(cls, day: date, minute: int) -> Self:
        """A replay whose given minute has this day, or the first trading day after it. Raises ValueError."""
        dates = trading_days()
        place = bisect_left(dates, day.isoformat())
        if day.isoformat() < dates[0] or place == len(dates):
            raise ValueError(f"{day} is not from {dates[0]} to {dates[-1]}")
        return cls((place, minute))

    def bar(self, symbol: str, minute: int) -> Bar | None:
        """The bar of a minute; None where nothing was traded: in the seam, or before the symbol was listed."""
        place = self._place(symbol, minute)
        return None if place is None else daily_bars(symbol)[place]

    def actions(self, symbol: str, minute: int) -> tuple[Action, ...]:
        """The splits and dividends from which on that minute's bar is traded."""
        place = self._place(symbol, minute)
        return () if place is None else actions(symbol).get(place, ())

    def is_listed(self, symbol: str, minute: int) -> bool:
        """Whether there is the symbol yet."""
        return symbol in SYMBOLS and (self.start is None or self._day(minute) >= _days_before(symbol))

    def day(self, minute: int) -> str:
        """The date of the real day that a minute has; empty in the seam and before the warm-up."""
        place = self._day(minute)
        return trading_days()[place] if 0 <= place < len(trading_days()) else ""

    def _day(self, minute: int) -> int:
        """The place of a minute's day among the longest series'; beyond them in the seam, -1 before the warm-up."""
        assert self.start is not None
        first, at = self.start
        passed = minute - at
        return -1 if passed < -min(first, WARM_UP_MINUTES) else (first + passed) % (len(trading_days()) + SEAM_MINUTES)

    def _place(self, symbol: str, minute: int) -> int | None:
        days = len(daily_bars(symbol))
        if self.start is None:
            return (minute % len(trading_days()) - _days_before(symbol)) % days
        place = self._day(minute) - _days_before(symbol)
        return place if 0 <= place < days else None


ROUND = Replay()
"""Where the replay starts at no day: round and round, day and night."""


def bar_at(symbol: str, minute: int) -> Bar:
    """Returns the bar of a minute, counted since 1970; the next minute has the next trading day's bar.

    A minute stands for the same real day for every symbol that was listed on it; a symbol that was listed later repeats
    its own days before that.
    """
    bar = ROUND.bar(symbol, minute)
    assert bar is not None, "it has no seam, and every symbol repeats its days"
    return bar


@cache
def trading_days() -> tuple[str, ...]:
    """The dates of the longest series; every other one has the last of them."""
    from bokeh_sampledata import stocks  # noqa: PLC0415 - as above

    return max((tuple(getattr(stocks, symbol)["date"]) for symbol in SYMBOLS), key=len)


def _days_before(symbol: str) -> int:
    """How many of those days there were before the symbol was listed."""
    return len(trading_days()) - len(daily_bars(symbol))


def listed_on(day: date) -> tuple[str, ...]:
    """The symbols that were traded on a day, or on the first trading day after it. Raises ValueError."""
    replay = Replay.from_day(day, 0)
    return tuple(symbol for symbol in SYMBOLS if replay.is_listed(symbol, 0))


def bar_so_far(bar: Bar, elapsed: float) -> Bar:
    """Returns what is seen of a bar when ``elapsed`` (0 to 1) of it has passed: on its way from open to close."""
    price = round(bar.open + (bar.close - bar.open) * elapsed, 4)
    return Bar(bar.open, max(bar.open, price), min(bar.open, price), price, int(bar.volume * elapsed))
