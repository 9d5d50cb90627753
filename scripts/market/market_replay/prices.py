"""Decides which bar a minute has: one real daily bar of bokeh_sampledata (2000 to 2013) per minute, day and night."""

from dataclasses import dataclass
from functools import cache

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


def bar_at(symbol: str, minute: int) -> Bar:
    """Returns the bar of a minute, counted since 1970; the next minute has the next trading day's bar.

    A minute stands for the same real day for every symbol that was listed on it; a symbol that was listed later repeats
    its own days before that.
    """
    days = daily_bars(symbol)
    longest = _longest_series()
    return days[(minute % longest - (longest - len(days))) % len(days)]


@cache
def _longest_series() -> int:
    return max(len(daily_bars(symbol)) for symbol in SYMBOLS)


def bar_so_far(bar: Bar, elapsed: float) -> Bar:
    """Returns what is seen of a bar when ``elapsed`` (0 to 1) of it has passed: on its way from open to close."""
    price = round(bar.open + (bar.close - bar.open) * elapsed, 4)
    return Bar(bar.open, max(bar.open, price), min(bar.open, price), price, int(bar.volume * elapsed))
