"""Bars, splits and dividends from Yahoo Finance, asked for through yfinance: one-minute bars, longer in a backfill."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit

import yfinance
from curl_cffi.requests import Response
from curl_cffi.requests.exceptions import RequestException, Timeout
from yfinance.data import YfData

from control_plane.ingestion.source import Entity, Fetched, Gap, Json, Observation, TradingSession
from control_plane.model.errors import ConfigurationError, SourceError
from domains.finance.events import MarketTick
from domains.finance.yahoo_actions import corporate_actions
from domains.finance.yahoo_meta import clock_of, closing_times, meta_of, sessions_of, text_of
from domains.finance.yahoo_reach import HISTORY, REACHES, WINDOW
from domains.finance.yahoo_session import REDIRECTS, RefusedRequest, TooLargeAnswer, YahooSession

YAHOO_URL = "https://query2.finance.yahoo.com"
CHART_PATH = "/v8/finance/chart/"

SERIES: Final = "1m"
INTERVALS: Final = {SERIES: timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(days=1)}
"""How long a bar is, by the name that Yahoo and its series have."""

ALWAYS_CLOSED = timedelta(minutes=30)
"""A bar counts as closed this long after its end whatever the source's clock says, because that clock stands still
between trades."""

GREATEST_LEAD = timedelta(minutes=5)
"""A source's clock that is ahead of ours by more than this is wrong."""

HOUR = timedelta(hours=1)
FIRST_WINDOW = 2 * HOUR
"""The time span in which the most recent hour is searched first; while a market is open, it contains that whole
hour."""

MOST_VALUES: Final = 200_000
"""The most values in one answer, because each takes far more memory than its text. WINDOW has a third of that."""

KEPT_OF_REFUSED: Final = 64 << 10
"""How many bytes are kept of an answer that is no chart: enough to see what it was."""

COLUMNS = ("open", "high", "low", "close", "volume")

ENTITY_TYPES = {"currency": "fx", "cryptocurrency": "crypto"}
"""Names for those of Yahoo's instrument types, in lower case, that are called differently here."""


class YFinanceSource:
    """Closed one-minute bars of the regular session, unadjusted for dividends, as ``MARKET_TICK_INGESTED``.

    The splits and dividends that an answer tells of are events of their own. No bar is worth less because they are told
    in another shape.

    yfinance gets the answer out of Yahoo (a browser's TLS fingerprint, cookie, crumb, consent page), and the bars are
    read from that answer itself. The frame that ``Ticker.history()`` makes of it is not used: it merges Yahoo's live
    price into the last bar, writes 0 for a missing volume, ends crypto's day a minute early, hides the answer, keeps
    answers in the process so that a correction goes unseen, and asks once more per symbol for its time zone.

    ``market_data_url`` names another host that speaks Yahoo's chart API; then nothing is sent anywhere else.
    ``timeout`` (seconds) limits each request, LARGEST_ANSWER each answer. Redirects are followed only to Yahoo's own
    hosts, by https. Nothing is written to disk.
    """

    event_type = MarketTick.event_type
    series = SERIES

    def __init__(self, *, market_data_url: str | None, timeout: float = 10.0) -> None:
        if market_data_url:
            parts = urlsplit(market_data_url)
            if parts.scheme not in {"http", "https"} or not parts.netloc:
                raise ConfigurationError([f"MARKET_DATA_URL must be an http(s) URL (got {market_data_url!r})"])
        self.name = "yfinance-replay" if market_data_url else "yfinance"
        self._chart_url = (market_data_url or YAHOO_URL).rstrip("/") + CHART_PATH
        self._timeout = timeout
        self._session = YahooSession(self._chart_url, timeout=timeout, confined=bool(market_data_url))
        # yfinance logs at ERROR what it also raises, and at WARNING that it could not get a cookie.
        logging.getLogger("yfinance").setLevel(logging.CRITICAL)
        # Where no folder can be made, yfinance does without its cookie cache, which it would unpickle from there. A
        # process remembers its cookie anyway, and a function's disk lives no longer than its process.
        yfinance.set_tz_cache_location(os.devnull)

    def fetch(self, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        """See :class:`~control_plane.ingestion.source.Source`; ``raw`` is a list unless one window was enough."""
        now = asked_at.astimezone(UTC)  # In local time, differences are off by an hour where clocks change.
        answers: list[Json] = []
        if since is None:
            for start, end in _windows_backwards(now):
                answers.append(self._ask(symbol, start, end, SERIES))
                bars = _closed_bars([_read(symbol, answer) for answer in answers], since=now - HISTORY, now=now)
                if bars and bars[-1].start - HOUR >= start:
                    break
        else:
            answers = self._ask_windows(symbol, max(since.astimezone(UTC), now - HISTORY), now, SERIES)
        raw = answers[0] if len(answers) == 1 else answers
        return self.read(raw, symbol=symbol, since=since, asked_at=asked_at)

    def fetch_window(self, symbol: str, since: datetime, until: datetime, interval: str, asked_at: datetime) -> Fetched:
        """See :class:`~control_plane.ingestion.source.HistorySource`."""
        now, back = asked_at.astimezone(UTC), REACHES[interval].back
        start = since.astimezone(UTC) if back is None else max(since.astimezone(UTC), now - back)
        answers = self._ask_windows(symbol, start, min(until.astimezone(UTC), now), interval)
        raw = answers[0] if len(answers) == 1 else answers
        fetched = self.read(raw, symbol=symbol, since=since, asked_at=asked_at)
        return replace(fetched, observations=tuple(one for one in fetched.observations if one.occurred_at < until))

    def read(self, raw: Json, *, symbol: str, since: datetime | None, asked_at: datetime) -> Fetched:
        """See :class:`~control_plane.ingestion.source.Source`."""
        now = asked_at.astimezone(UTC)
        oldest = now - HISTORY
        charts = [_read(symbol, answer) for answer in (raw if isinstance(raw, list) else [raw])]
        if since is not None and any(chart.interval != SERIES for chart in charts):
            oldest = since.astimezone(UTC)
        gap = None
        if since is None:
            bars = _closed_bars(charts, since=oldest, now=now)
            if not bars:
                # A closed market still has bars from before it closed. A symbol without any would otherwise look
                # healthy for ever.
                reason = f"the chart is empty: not one bar in {HISTORY.days} days"
                raise SourceError(symbol, "malformed", reason, raw=raw)
            bars = [bar for bar in bars if bar.start > bars[-1].start - HOUR]
        else:
            since = since.astimezone(UTC)
            bars = _closed_bars(charts, since=since, now=now)
            gap = Gap(since, oldest) if since < oldest else None
        return Fetched(
            symbol=symbol,
            raw=raw,
            observations=_in_order(
                (Observation(self.event_type, bar.start, bar.payload, bar.payload["interval"]) for bar in bars),
                (action for chart in charts for action in chart.actions if oldest <= action.occurred_at <= now),
            ),
            gap=gap,
            session=next(
                (session for chart in charts for session in chart.sessions if session.start <= now < session.end), None
            ),
        )

    def describe(self, fetched: Fetched) -> Entity:
        """See :class:`~control_plane.ingestion.source.Source`."""
        answers = fetched.raw if isinstance(fetched.raw, list) else [fetched.raw]
        for answer in answers:
            _, document, _ = _unwrapped(answer)
            meta = meta_of(document)
            if meta:
                kind = text_of(meta.get("instrumentType"))
                return Entity(
                    entity_id=text_of(meta.get("symbol")) or fetched.symbol,
                    entity_type=ENTITY_TYPES.get(kind.lower(), kind.lower()) if kind else None,
                    time_zone=text_of(meta.get("exchangeTimezoneName")),
                )
        return Entity(entity_id=fetched.symbol, entity_type=None, time_zone=None)

    def _ask_windows(self, symbol: str, start: datetime, end: datetime, interval: str) -> list[Json]:
        answers: list[Json] = []
        while start < end:
            stop = min(start + REACHES[interval].window, end)
            answers.append(self._ask(symbol, start, stop, interval))
            _read(symbol, answers[-1])  # The first answer that is an error ends the loop.
            start = stop
        return answers

    def _ask(self, symbol: str, start: datetime, end: datetime, interval: str) -> Json:
        params = {
            "period1": int(start.timestamp()),
            "period2": ceil(end.timestamp()),
            "interval": interval,
            "includePrePost": "false",
            "events": "div,splits",
        }
        url = self._chart_url + quote(symbol, safe="")
        try:
            response = YfData(session=self._session).get(url, params=params, timeout=self._timeout)
        except RefusedRequest as refused:
            response = refused.response
        except TooLargeAnswer as error:
            raise SourceError(symbol, "malformed", str(error)) from error
        except Timeout as error:
            raise SourceError(symbol, "unreachable", f"no answer within {self._timeout:g} s") from error
        except RequestException as error:
            raise SourceError(symbol, "unreachable", f"the source could not be reached: {error}") from error
        except Exception as error:
            # An odd cookie or consent page makes yfinance's parsers raise errors of any type.
            reason = f"yfinance failed before it had an answer: {type(error).__name__}: {error}"
            raise SourceError(symbol, "unreachable", reason) from error
        return _kept(cast("Response", response))


@dataclass(frozen=True, slots=True)
class _Bar:
    start: datetime
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Chart:
    bars: tuple[_Bar, ...] = ()
    """The bars of an answer, including the bar in progress, but without Yahoo's live price."""
    clock: datetime | None = None
    """The time of the newest trade that the answer knows of; None if it does not say."""
    sessions: tuple[TradingSession, ...] = ()
    """The exchange's sessions, as far as the answer tells."""
    interval: str = SERIES
    actions: tuple[Observation, ...] = ()
    """Splits and dividends, as far as they can be told."""


def _windows_backwards(now: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yields the newest window, then ever older ones; every hour lies completely within one of them."""
    yield now - FIRST_WINDOW, now
    oldest = now - HISTORY
    end = now
    while end - HOUR > oldest:
        start = max(end - WINDOW, oldest)
        yield start, end
        end = start + HOUR


def _closed_bars(charts: Iterable[_Chart], *, since: datetime, now: datetime) -> list[_Bar]:
    """Returns the charts' closed bars from ``since`` on, in order.

    Each chart is judged by its own clock and bars, because a later answer says nothing about the bars of an earlier
    one.
    """
    bars: dict[datetime, _Bar] = {}
    for chart in charts:
        newest = max((bar.start for bar in chart.bars), default=now)
        for bar in chart.bars:
            if bar.start >= since and _is_closed(
                bar.start + INTERVALS[chart.interval], clock=chart.clock, newest=newest, now=now
            ):
                bars[bar.start] = bar
    return [bars[start] for start in sorted(bars)]


def _in_order(bars: Iterable[Observation], actions: Iterable[Observation]) -> tuple[Observation, ...]:
    """Returns all observations by time; an action comes before the bar that begins with it, and once."""
    told = {(action.event_type, action.occurred_at): action for action in actions}
    return tuple(sorted((*told.values(), *bars), key=lambda one: one.occurred_at))


def _is_closed(end: datetime, *, clock: datetime | None, newest: datetime, now: datetime) -> bool:
    """Returns whether a bar is final.

    The exchange's clock decides, not ours, because its prices may be delayed. ``clock`` is the time of the newest trade
    and ``newest`` the start of the newest bar, both of the bar's own answer.
    """
    if end > now:
        return False
    is_past_by_clock = clock is not None and end <= clock <= now + GREATEST_LEAD
    return is_past_by_clock or end <= newest or end <= now - ALWAYS_CLOSED


def _read(symbol: str, kept: Json) -> _Chart:
    """Returns what an answer says; for an answer that reports an error, raises the SourceError."""
    status, document, text = _unwrapped(kept)

    def failure(kind: str, reason: str) -> SourceError:
        return SourceError(symbol, kind, reason, raw=kept)

    chart = document.get("chart") if isinstance(document, dict) else None
    error = chart.get("error") if isinstance(chart, dict) else None
    code, description = (error.get("code"), error.get("description")) if isinstance(error, dict) else (None, None)
    said = f": {description or code}" if description or code else ""

    refusal = _refusal(status, code, said)
    if refusal is not None:
        raise failure(*refusal)
    if str(description).startswith("Data doesn't exist for startDate"):
        return _Chart()  # Yahoo says this for a window before a symbol's first bar.
    if error or status >= 400:
        raise failure("malformed", f"the source refused the request (HTTP {status}){said}")
    if not isinstance(document, dict):
        raise failure("malformed", f"the source answered {text} instead of JSON")
    try:
        return _chart(symbol, document)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, OSError) as cause:
        raise failure("malformed", f"the chart is not in Yahoo's shape: {type(cause).__name__}: {cause}") from cause


def _refusal(status: int, code: object, said: str) -> tuple[str, str] | None:
    """Returns the kind of error that an HTTP status or Yahoo's error code means, and its reason."""
    if status in REDIRECTS:
        return "malformed", f"the source redirects elsewhere (HTTP {status}), which is not followed"
    if status == 429:
        return "rate_limited", "the source asks for fewer requests (HTTP 429)"
    if status >= 500 or status in {401, 403}:
        return "unreachable", f"the source answered HTTP {status}{said}"
    if status == 404 or code == "Not Found":
        return "unknown_symbol", f"the source does not know this symbol{said}"
    return None


def _chart(symbol: str, document: Any) -> _Chart:
    result, meta = document["chart"]["result"][0], meta_of(document)
    about = text_of(meta.get("symbol")) or symbol
    if about.casefold() != symbol.casefold():
        raise ValueError(f"it is about {about[:32]!r}")
    told = meta.get("dataGranularity")
    interval = told if isinstance(told, str) and told in INTERVALS else SERIES
    bars = _bars(result, meta, interval)
    return _Chart(
        bars, clock_of(meta), tuple(sessions_of(meta)), interval, corporate_actions(result.get("events"), meta)
    )


def _bars(result: dict[str, Any], meta: Mapping[str, Any], interval: str) -> tuple[_Bar, ...]:
    """Returns every row in whose time something was traded, with its numbers unchanged."""
    currency = meta.get("currency")
    starts = result.get("timestamp") or []
    if not starts:
        return ()
    columns = result["indicators"]["quote"][0]
    rows = zip(*(columns[name] for name in COLUMNS), strict=True)
    ends = closing_times(meta)
    bars: dict[datetime, _Bar] = {}
    for timestamp, (open_, high, low, close, volume) in zip(starts, rows, strict=True):
        # Yahoo adds its live price as a row, under the second of the request; after trading ended, under the closing
        # time.
        if timestamp % 60 or timestamp in ends or (interval != SERIES and timestamp == meta.get("regularMarketTime")):
            continue
        if open_ is high is low is close is None and not volume:
            continue
        if all(_is_zero(price) for price in (open_, high, low, close)):
            continue  # Yahoo shows a halted symbol with prices of zero.
        start = datetime.fromtimestamp(timestamp, UTC)
        payload = {
            "price": close,
            "open": open_,
            "high": high,
            "low": low,
            "volume": int(volume) if isinstance(volume, float) and volume.is_integer() else volume,
            "currency": currency,
            "interval": interval,
        }
        bars.setdefault(start, _Bar(start, payload))
    return tuple(bars.values())


def _is_zero(price: object) -> bool:
    return isinstance(price, int | float) and not isinstance(price, bool) and price == 0


def _kept(response: Response) -> Json:
    r"""Returns the part of an answer that is kept, which is also the only part that is read.

    It is the JSON object itself if that came with HTTP 200 and Postgres' jsonb accepts it: jsonb refuses NaN, Infinity,
    U+0000 and lone surrogates. Anything else is kept as ``{status, content_type, body}``. In ``body``, U+0000 and bytes
    that are no UTF-8 are written as ``\xNN``, and only the first KEPT_OF_REFUSED bytes are kept.
    """
    content = response.content
    has_many_values = sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES
    wrapped: Json = {
        "status": response.status_code,
        "content_type": (response.headers.get("content-type") or "")[:_LONGEST_TYPE].replace("\0", "") or None,
        "body": content[:KEPT_OF_REFUSED].decode("utf-8", "backslashreplace").replace("\0", r"\x00"),
    }
    if response.status_code != 200 or has_many_values:
        return wrapped
    try:
        document = json.loads(content)
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError):
        return wrapped
    is_itself = isinstance(document, dict) and document.keys() != _WRAPPER and not _ESCAPED_NULL.search(text)
    return document if is_itself else wrapped


_LONGEST_TYPE: Final = 256
_WRAPPER: Final = {"status", "content_type", "body"}
_ESCAPED_NULL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _unwrapped(kept: Json) -> tuple[int, Any, str]:
    """Returns the answer's HTTP status, its document (None if it is no JSON), and its content type."""
    if not isinstance(kept, dict) or kept.keys() != _WRAPPER:
        return 200, kept, "JSON"
    body = str(kept["body"])
    called = str(kept["content_type"] or "an unnamed type") if body else "nothing"
    try:
        return cast("int", kept["status"]), json.loads(body), called
    except (ValueError, RecursionError):
        return cast("int", kept["status"]), None, called
