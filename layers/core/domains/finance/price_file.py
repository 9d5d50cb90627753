"""Files of bars: CSV or Parquet, one bar a row, in the same shape as a bar of a source."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from control_plane.model.backfill import FileRow, FileShape
from control_plane.model.contract import parse_payload
from control_plane.model.errors import ContractViolation
from domains.finance.events import MarketTick

COLUMNS: Final = {
    "symbol": "what the bar is of, as the source calls it: AAPL",
    "occurred_at": "when the bar begins, with its time zone: 2013-02-28T14:30:00Z",
    "interval": "how long the bar is, which is also the event's series: 1m, 1h, 1d",
    "open": "the first price",
    "high": "the highest price",
    "low": "the lowest price",
    "close": "the last price, as it was traded: unadjusted for splits and dividends",
    "volume": "how many were traded, a whole number",
    "currency": "of the prices, as the exchange writes it: USD, and GBp for pence",
    "entity_type": "equity, etf, index, fx, crypto or another kind in lower case; the column may be missing or empty",
}
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_SYMBOL: Final = re.compile(r"[^\s,]{1,32}")


def read_row(row: Mapping[str, Any]) -> FileRow:
    """Returns the bar that a row describes. Raises ValueError with the column and the reason."""
    symbol = row["symbol"]
    if not isinstance(symbol, str) or not _SYMBOL.fullmatch(symbol):
        raise ValueError(f"symbol: is no symbol (got {symbol!r})")
    kind = row.get("entity_type") or None
    if kind is not None and (not isinstance(kind, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", kind)):
        raise ValueError(f"entity_type: is no kind of instrument in lower case (got {kind!r})")
    stated = {
        "price": _number("close", row["close"]),
        **{name: _number(name, row[name]) for name in ("open", "high", "low")},
        "volume": _whole(_number("volume", row["volume"])),
        "currency": row["currency"],
        "interval": row["interval"],
    }
    try:
        tick = parse_payload(MarketTick, stated)
    except ContractViolation as violation:
        column = violation.field.removeprefix("payload.")
        column = "close" if column == "price" else column
        raise ValueError(f"{column}: {violation.reason} (got {str(row[column])[:64]!r})") from violation
    return FileRow(
        symbol, kind, MarketTick.event_type, tick.interval, _instant(row["occurred_at"]), tick.model_dump(mode="json")
    )


def _number(column: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 or isinstance(value, float) else _too_large(column, value)
    if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip()):
        raise ValueError(f"{column}: is no number (got {value!r})")
    return float(value)


def _too_large(column: str, value: int) -> float:
    raise ValueError(f"{column}: is larger than a number that is kept exactly (got {value})")


def _whole(number: float) -> float | int:
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _instant(value: Any) -> datetime:
    try:
        instant = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise ValueError(f"occurred_at: is no instant such as 2013-02-28T14:30:00Z (got {value!r})") from None
    if instant.utcoffset() is None:
        raise ValueError(f"occurred_at: has no time zone, so it may mean any of several instants (got {str(value)!r})")
    return instant


BARS: Final = FileShape("bars", COLUMNS, read_row, frozenset({"entity_type"}))
