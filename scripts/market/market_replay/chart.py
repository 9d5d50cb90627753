"""Yahoo's chart API, ``/v8/finance/chart/<symbol>``: its questions, answers and refusals.

The shapes and texts are those of Yahoo's own answers, as quoted in public bug reports and recorded test data.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from market_replay.faults import Fault
from market_replay.prices import SYMBOLS, Bar, bar_at, bar_so_far

EXCHANGE_ZONE = ZoneInfo("America/New_York")
VALID_RANGES = ("1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max")
MINUTE_RANGE = timedelta(days=8)
"""Yahoo: "Only 8 days worth of 1m granularity data are allowed to be fetched per request"."""
HISTORY = timedelta(days=30)
"""Yahoo: one-minute "requested range must be within the last 30 days". Here nothing is older, daily bars included."""

_RANGE = re.compile(r"(\d{1,3})(d|wk|mo|y)")
_RANGE_DAYS = {"d": 1, "wk": 7, "mo": 30, "y": 365}

type Answer = dict[str, Any]


class Refusal(Exception):
    """Raised instead of a chart; ``status`` is HTTP's, ``code`` and ``description`` are Yahoo's ``chart.error``."""

    def __init__(self, status: int, code: str, description: str) -> None:
        self.status = status
        self.body: Answer = {"chart": {"result": None, "error": {"code": code, "description": description}}}
        super().__init__(description)


@dataclass(frozen=True, slots=True)
class Question:
    """A chart request: it asks for bars that start from ``start`` on and before ``end``."""

    interval: str
    start: datetime
    end: datetime
    range: str
    """The range as it was requested; empty if a period was given."""
    include_pre_post: bool

    @classmethod
    def from_query(cls, query: Mapping[str, str], now: datetime) -> "Question":
        """Returns the request in a query string, read as Yahoo reads it. Raises Refusal."""
        interval = query.get("interval", "1d")
        if interval not in {"1m", "1d"}:
            raise Refusal(
                422,
                "Unprocessable Entity",
                f"Invalid input - interval={interval} is not supported. Valid intervals: [1m, 1d]",
            )
        if "period1" in query or "period2" in query:
            span = ""
            start = _instant(query, "period1", default=now - HISTORY)
            end = _instant(query, "period2", default=now)
        else:
            span = query.get("range", "1d")
            start, end = _start_of_range(span, now), now + timedelta(seconds=1)
        if start > end:
            raise Refusal(
                400,
                "Bad Request",
                "Invalid input - start date cannot be after end date. "
                f"startDate = {start.timestamp():.0f}, endDate = {end.timestamp():.0f}",
            )
        if interval == "1m":
            _refuse_what_is_too_long_or_too_old(start, end, now)
        return cls(interval, start, end, span, query.get("includePrePost", "").lower() == "true")


def chart(symbol: str, question: Question, now: datetime, fault: Fault) -> Answer:
    """Returns the answer's JSON, with the market as it is at ``now``. Raises Refusal."""
    if symbol not in SYMBOLS:
        raise Refusal(404, "Not Found", f"The replay has {', '.join(SYMBOLS)} and no other symbol")
    start = max(question.start, now - HISTORY)
    if question.end <= start:
        raise Refusal(
            400,
            "Bad Request",
            f"Data doesn't exist for startDate = {question.start.timestamp():.0f}, "
            f"endDate = {question.end.timestamp():.0f}",
        )
    if question.interval == "1d":
        rows = _days(symbol, start, min(question.end, now), now, fault)
    else:
        rows = _minutes(symbol, start, min(question.end, now), now, fault)
        if question.end >= now.replace(microsecond=0) and now.second:
            rows.append(_live_row(symbol, now, fault))
    if fault.empty:
        rows = []
    result: Answer = {"meta": _meta(symbol, question, now, fault)}
    if rows:
        result["timestamp"] = [row[0] for row in rows]
    names = ("open", "high", "low", "close", "volume")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names, start=1)} if rows else {}
    result["indicators"] = {"quote": [columns]}
    if question.interval == "1d":
        result["indicators"]["adjclose"] = [{"adjclose": columns["close"]} if rows else {}]
    return {"chart": {"result": [result], "error": None}}


type Row = tuple[int, float | None, float | None, float | None, float | None, int | None]
"""Second since 1970, open, high, low, close, volume."""


def _minutes(symbol: str, start: datetime, end: datetime, now: datetime, fault: Fault) -> list[Row]:
    first, stop = math.ceil(start.timestamp() / 60), math.ceil(end.timestamp() / 60)
    rows = [_row(minute, _bar(symbol, minute, now, fault)) for minute in range(first, stop)]
    newest_closed = _minute(now) - 1
    if (fault.null_bar or fault.nan) and first <= newest_closed < stop:
        second, open_, high, low, _, volume = rows[newest_closed - first]
        rows[newest_closed - first] = (
            (second, None, None, None, None, None) if fault.null_bar else (second, open_, high, low, None, volume)
        )
    return rows


def _days(symbol: str, start: datetime, end: datetime, now: datetime, fault: Fault) -> list[Row]:
    rows: list[Row] = []
    day = start.astimezone(EXCHANGE_ZONE).date()
    while (opening := _midnight(day)) < end:
        if opening >= start:
            minutes = range(_minute(opening), min(_minute(_midnight(day + timedelta(days=1))), _minute(now) + 1))
            bars = [_bar(symbol, minute, now, fault) for minute in minutes]
            high, low = max(bar.high for bar in bars), min(bar.low for bar in bars)
            volume = sum(bar.volume for bar in bars)
            rows.append((int(opening.timestamp()), bars[0].open, high, low, bars[-1].close, volume))
        day += timedelta(days=1)
    return rows


def _live_row(symbol: str, now: datetime, fault: Fault) -> Row:
    """Returns the latest price as Yahoo appends it: as a row of its own, under the second of the request."""
    price = _bar(symbol, _minute(now), now, fault).close
    return (int(now.timestamp()), price, price, price, price, 0)


def _bar(symbol: str, minute: int, now: datetime, fault: Fault) -> Bar:
    bar = bar_at(symbol, minute)
    if fault.correct and fault.correct.minute == minute:
        close = fault.correct.close
        bar = replace(bar, close=close, high=max(bar.high, close), low=min(bar.low, close))
    if minute == _minute(now):
        return bar_so_far(bar, elapsed=now.timestamp() / 60 - minute)
    return bar


def _row(minute: int, bar: Bar) -> Row:
    return (minute * 60, bar.open, bar.high, bar.low, bar.close, bar.volume)


def _meta(symbol: str, question: Question, now: datetime, fault: Fault) -> Answer:
    local = now.astimezone(EXCHANGE_ZONE)
    today = local.date()
    price = _bar(symbol, _minute(now), now, fault).close
    sessions = [_session(day) for day in _dates(max(question.start, now - HISTORY), min(question.end, now))]
    closed = [_session(today, empty=True)]
    meta: Answer = {
        "currency": "USD",
        "symbol": symbol,
        "exchangeName": "NMS",
        "fullExchangeName": "NasdaqGS",
        "instrumentType": "EQUITY",
        "firstTradeDate": int(_midnight((now - HISTORY).astimezone(EXCHANGE_ZONE).date()).timestamp()),
        # The time of the newest trade; here something is traded in every second.
        "regularMarketTime": int(now.timestamp()),
        "hasPrePostMarketData": False,
        "gmtoffset": _offset(local),
        "timezone": local.tzname(),
        "exchangeTimezoneName": EXCHANGE_ZONE.key,
        "regularMarketPrice": price,
        "longName": SYMBOLS[symbol],
        "shortName": SYMBOLS[symbol],
        "chartPreviousClose": bar_at(symbol, _minute(_midnight(today)) - 1).close,
        "priceHint": 2,
        "currentTradingPeriod": {
            "pre": _session(today, empty=True),
            "regular": _session(today),
            "post": _session(today + timedelta(days=1), empty=True),
        },
        "dataGranularity": question.interval,
        "range": question.range,
        "validRanges": list(VALID_RANGES),
    }
    if question.interval == "1m":
        regular = [[session] for session in sessions]
        meta["tradingPeriods"] = (
            {"pre": [closed for _ in sessions], "regular": regular, "post": [closed for _ in sessions]}
            if question.include_pre_post
            else regular
        )
    return meta


def _session(day: date, *, empty: bool = False) -> Answer:
    """Returns the exchange's day from midnight to midnight: 23 or 25 hours where clocks change."""
    start = _midnight(day)
    end = start if empty else _midnight(day + timedelta(days=1))
    return {
        "timezone": start.astimezone(EXCHANGE_ZONE).tzname(),
        "start": int(start.timestamp()),
        "end": int(end.timestamp()),
        "gmtoffset": _offset(start.astimezone(EXCHANGE_ZONE)),
    }


def _dates(start: datetime, end: datetime) -> list[date]:
    first, last = (instant.astimezone(EXCHANGE_ZONE).date() for instant in (start, end))
    return [first + timedelta(days=number) for number in range(max((last - first).days, 0) + 1)]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), EXCHANGE_ZONE).astimezone(UTC)


def _minute(instant: datetime) -> int:
    return int(instant.timestamp() // 60)


def _offset(local: datetime) -> int:
    offset = local.utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def _instant(query: Mapping[str, str], name: str, default: datetime) -> datetime:
    if name not in query:
        return default
    try:
        return datetime.fromtimestamp(int(query[name]), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise Refusal(400, "Bad Request", f"Invalid input - {name}={query[name]} is not a Unix time") from error


def _start_of_range(span: str, now: datetime) -> datetime:
    """Returns the start of a range: ``1d`` is today's session, ``5d`` the last five, and so on."""
    today = now.astimezone(EXCHANGE_ZONE).date()
    if span == "ytd":
        return _midnight(today.replace(month=1, day=1))
    if span == "max":
        return now - HISTORY
    match = _RANGE.fullmatch(span)
    if match is None:
        raise Refusal(
            422,
            "Unprocessable Entity",
            f"Invalid input - range={span} is not supported. Valid ranges: [{', '.join(VALID_RANGES)}]",
        )
    days = int(match[1]) * _RANGE_DAYS[match[2]]
    return _midnight(today - timedelta(days=max(days - 1, 0)))


def _refuse_what_is_too_long_or_too_old(start: datetime, end: datetime, now: datetime) -> None:
    asked = f"1m data not available for startTime={start.timestamp():.0f} and endTime={end.timestamp():.0f}."
    if end - start > MINUTE_RANGE:
        reason = "Only 8 days worth of 1m granularity data are allowed to be fetched per request."
        raise Refusal(422, "Unprocessable Entity", f"{asked} {reason}")
    if start <= now - HISTORY:
        raise Refusal(422, "Unprocessable Entity", f"{asked} The requested range must be within the last 30 days.")
