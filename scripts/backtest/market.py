"""The real days of bokeh_sampledata as looks: daily bars, and what its adjusted closes tell of splits and dividends."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Final
from uuid import UUID

from bokeh_sampledata import stocks

from control_plane.ingestion.store import Look
from domains.finance.events import CorporateDividend, CorporateSplit, MarketTick

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from control_plane.model.contract import Payload

SYMBOLS: Final = ("AAPL", "FB", "GOOG", "IBM", "MSFT")
SOURCE: Final = "bokeh-sampledata"
INTERVAL: Final = "1d"
CURRENCY: Final = "USD"
_OPENS: Final = time(14, 30, tzinfo=UTC)
_SMALLEST_DIVIDEND: Final = 0.0005
"""Of the price: below it the digits of the adjusted closes say nothing."""
_SMALLEST_SPLIT: Final = 1.4


def read_looks(symbol: str, *, days: int | None = None) -> Sequence[Look]:
    """Returns a symbol's bars and corporate actions in order; of its first days alone, where so many are asked for."""
    data = getattr(stocks, symbol)
    count = len(data["date"]) if days is None else min(days, len(data["date"]))
    looks = []
    for day in range(count):
        at = datetime.combine(datetime.fromisoformat(data["date"][day]), _OPENS)
        looks += [_look(payload, symbol, at, "") for payload in _actions(data, day)]
        tick = MarketTick(
            price=data["close"][day],
            open=data["open"][day],
            high=data["high"][day],
            low=data["low"][day],
            volume=int(data["volume"][day]),
            currency=CURRENCY,
            interval=INTERVAL,
        )
        looks.append(_look(tick, symbol, at, INTERVAL))
    return looks


def _actions(data: dict[str, list[float]], day: int) -> Iterator[Payload]:
    """Yields what changed the adjustment of the closes with this day."""
    if day == 0:
        return
    closes, adjusted = data["close"], data["adj_close"]
    change = (closes[day - 1] / adjusted[day - 1]) / (closes[day] / adjusted[day])
    if change >= _SMALLEST_SPLIT:
        yield CorporateSplit(numerator=round(change), denominator=1)
    elif change - 1 >= _SMALLEST_DIVIDEND:
        yield CorporateDividend(amount=round(closes[day - 1] * (1 - 1 / change), 4), currency=CURRENCY)


def _look(payload: Payload, symbol: str, at: datetime, series: str) -> Look:
    return Look(
        payload,
        source=SOURCE,
        entity_id=symbol,
        entity_type="equity",
        occurred_at=at,
        observed_at=at,
        trace_id=UUID(int=1),
        series=series,
    )
