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
from market_replay.prices import ROUND, SYMBOLS, Bar, Replay, bar_so_far

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
    events: frozenset[str] = frozenset()
    """Of div and splits, what is to be told beside the bars."""

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
        events = frozenset(query.get("events", "").split(","))
        return cls(interval, start, end, span, query.get("includePrePost", "").lower() == "true", events)


@dataclass(frozen=True, slots=True)
class _Market:
    """One symbol's market at one moment."""

    replay: Replay
    symbol: str
    now: datetime
    fault: Fault

    def bar(self, minute: int) -> Bar | None:
        """The bar of a minute as it is seen now; None where nothing is traded in it."""
        bar = self.replay.bar(self.symbol, minute)
        if bar is None:
            return None
        if self.fault.correct and self.fault.correct.minute == minute:
            close = self.fault.correct.close
            bar = replace(bar, close=close, high=max(bar.high, close), low=min(bar.low, close))
        if minute == _minute(self.now):
            return bar_so_far(bar, elapsed=self.now.timestamp() / 60 - minute)
        return bar

    def newest(self, minute: int) -> tuple[int, Bar]:
        """The newest minute with a bar, not after the given one. The seam is the longest time without any."""
        while (bar := self.bar(minute)) is None:
            minute -= 1
        return minute, bar


def chart(symbol: str, question: Question, now: datetime, fault: Fault, replay: Replay = ROUND) -> Answer:
    """Returns the answer's JSON, with the market as it is at ``now``. Raises Refusal."""
    if symbol not in SYMBOLS:
        raise Refusal(404, "Not Found", f"The replay has {', '.join(SYMBOLS)} and no other symbol")
    if not replay.is_listed(symbol, _minute(now)):
        raise Refusal(404, "Not Found", f"{symbol} was not listed yet on the day that is replayed")
    market = _Market(replay, symbol, now, fault)
    start = max(question.start, now - HISTORY)
    if question.end <= start:
        raise Refusal(
            400,
            "Bad Request",
            f"Data doesn't exist for startDate = {question.start.timestamp():.0f}, "
            f"endDate = {question.end.timestamp():.0f}",
        )
    if question.interval == "1d":
        rows = _days(market, start, min(question.end, now))
    else:
        rows = _minutes(market, start, min(question.end, now))
        if question.end >= now.replace(microsecond=0) and now.second:
            rows += _live_row(market)
    if fault.empty:
        rows = []
    result: Answer = {"meta": _meta(market, question)}
    if rows:
        result["timestamp"] = [row[0] for row in rows]
    if events := _events(market, question, start):
        result["events"] = events
    names = ("open", "high", "low", "close", "volume")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names, start=1)} if rows else {}
    result["indicators"] = {"quote": [columns]}
    if question.interval == "1d":
        result["indicators"]["adjclose"] = [{"adjclose": columns["close"]} if rows else {}]
    return {"chart": {"result": [result], "error": None}}


type Row = tuple[int, float | None, float | None, float | None, float | None, int | None]
"""Second since 1970, open, high, low, close, volume."""


def _minutes(market: _Market, start: datetime, end: datetime) -> list[Row]:
    first, stop = math.ceil(start.timestamp() / 60), math.ceil(end.timestamp() / 60)
    rows: list[Row] = []
    for minute in range(first, stop):
        bar = market.bar(minute)
        if bar is None:
            continue
        second, open_, high, low, close, volume = _row(minute, bar)
        if minute == _minute(market.now) - 1 and market.fault.null_bar:
            rows.append((second, None, None, None, None, None))
        elif minute == _minute(market.now) - 1 and market.fault.nan:
            rows.append((second, open_, high, low, None, volume))
        else:
            rows.append((second, open_, high, low, close, volume))
    return rows


def _days(market: _Market, start: datetime, end: datetime) -> list[Row]:
    rows: list[Row] = []
    day = start.astimezone(EXCHANGE_ZONE).date()
    while (opening := _midnight(day)) < end:
        if opening >= start:
            minutes = range(_minute(opening), min(_minute(_midnight(day + timedelta(days=1))), _minute(market.now) + 1))
            bars = [bar for minute in minutes if (bar := market.bar(minute)) is not None]
            if bars:
                high, low = max(bar.high for bar in bars), min(bar.low for bar in bars)
                volume = sum(bar.volume for bar in bars)
                rows.append((int(opening.timestamp()), bars[0].open, high, low, bars[-1].close, volume))
        day += timedelta(days=1)
    return rows


def _live_row(market: _Market) -> list[Row]:
    """Yahoo appends the latest price as a row of its own, under the second it was seen in, while there is trade."""
    bar = market.bar(_minute(market.now))
    return [] if bar is None else [(int(market.now.timestamp()), bar.close, bar.close, bar.close, bar.close, 0)]


def _events(market: _Market, question: Question, start: datetime) -> Answer:
    """The splits and dividends of the time asked for, as far as they were asked for, each by its time."""
    events: Answer = {}
    minutes = range(math.ceil(start.timestamp() / 60), math.ceil(min(question.end, market.now).timestamp() / 60))
    for minute in minutes if question.events & {"div", "splits"} else ():
        second = minute * 60
        for action in market.replay.actions(market.symbol, minute):
            if action.kind == "split" and "splits" in question.events:
                ratio = {"numerator": action.amount, "denominator": 1, "splitRatio": f"{action.amount:g}:1"}
                events.setdefault("splits", {})[str(second)] = {"date": second} | ratio
            elif action.kind == "dividend" and "div" in question.events:
                events.setdefault("dividends", {})[str(second)] = {"amount": action.amount, "date": second}
    return events


def _row(minute: int, bar: Bar) -> Row:
    return (minute * 60, bar.open, bar.high, bar.low, bar.close, bar.volume)


def _meta(market: _Market, question: Question) -> Answer:
    symbol, now = market.symbol, market.now
    local = now.astimezone(EXCHANGE_ZONE)
    today = local.date()
    newest, bar = market.newest(_minute(now))
    before = market.replay.bar(symbol, _minute(_midnight(today)) - 1)
    sessions = [_session(day) for day in _dates(max(question.start, now - HISTORY), min(question.end, now))]
    closed = [_session(today, empty=True)]
    meta: Answer = {
        "currency": "USD",
        "symbol": symbol,
        "exchangeName": "NMS",
        "fullExchangeName": "NasdaqGS",
        "instrumentType": "EQUITY",
        "firstTradeDate": int(_midnight((now - HISTORY).astimezone(EXCHANGE_ZONE).date()).timestamp()),
        # When the newest trade was made: here something is traded in every second, but in the seam.
        "regularMarketTime": int(min(now.timestamp(), newest * 60 + 60)),
        "hasPrePostMarketData": False,
        "gmtoffset": _offset(local),
        "timezone": local.tzname(),
        "exchangeTimezoneName": EXCHANGE_ZONE.key,
        "regularMarketPrice": bar.close,
        "longName": SYMBOLS[symbol],
        "shortName": SYMBOLS[symbol],
        "chartPreviousClose": before.close if before else bar.open,
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
