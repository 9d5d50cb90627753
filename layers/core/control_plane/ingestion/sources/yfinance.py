"""One-minute bars from Yahoo Finance, asked for through yfinance."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

import yfinance
from curl_cffi.requests import Response, Session
from curl_cffi.requests.exceptions import ConnectionError as CurlConnectionError
from curl_cffi.requests.exceptions import RequestException, Timeout
from yfinance.data import YfData

from control_plane.ingestion.source import Entity, Fetched, Gap, Json, Observation, TradingSession
from control_plane.model.errors import ConfigurationError, SourceError

YAHOO_URL = "https://query2.finance.yahoo.com"
CHART_PATH = "/v8/finance/chart/"

INTERVAL = timedelta(minutes=1)

WINDOW = timedelta(days=7)
"""Asked for at a time. Yahoo: "Only 8 days worth of 1m granularity data are allowed to be fetched per request"."""

HISTORY = timedelta(days=29)
"""How far back to ask. Yahoo: "The requested range must be within the last 30 days", and it refuses 30 days sharp."""

HOUR = timedelta(hours=1)
FIRST_LOOK = 2 * HOUR
"""The window in which the most recent hour is looked for first; where a market is open it holds that hour whole."""

SHORTEST_DAY = timedelta(hours=20)
"""A session at least this long never closes: crypto, currencies. (Yahoo ends those at 23:59, one bar early.)"""

COOKIE_TIMEOUT = 3.0
"""Seconds. yfinance asks for cookie and crumb under one lock, and the chart is had without them too."""

COLUMNS = ("open", "high", "low", "close", "volume")

ENTITY_TYPES = {"currency": "fx", "cryptocurrency": "crypto"}
"""Yahoo's instrument types, in lower case, that have another name here."""


class YFinanceSource:
    """Closed one-minute bars of the regular session, unadjusted for dividends, as ``MARKET_TICK_INGESTED``.

    yfinance gets the answer out of Yahoo (a browser's TLS fingerprint, cookie, crumb, consent page), and the bars are
    read from that answer itself. The frame that ``Ticker.history()`` makes of it is not used: it merges Yahoo's live
    price into the last bar, writes 0 for a missing volume, ends crypto's day a minute early, hides the answer, keeps
    answers in the process so that a correction goes unseen, and asks once more per symbol for its time zone.

    yfinance holds one HTTP session for the whole process, so a process uses one source at a time, from any number of
    threads. ``market_data_url`` names another host that speaks Yahoo's chart API; nothing is sent anywhere else then.
    ``timeout`` (seconds) bounds each request. Nothing is written to disk.
    """

    def __init__(
        self,
        *,
        market_data_url: str | None,
        clock: Callable[[], datetime],
        timeout: float = 10.0,
    ) -> None:
        if market_data_url:
            parts = urlsplit(market_data_url)
            if parts.scheme not in {"http", "https"} or not parts.netloc:
                raise ConfigurationError([f"MARKET_DATA_URL must be an http(s) URL (got {market_data_url!r})"])
        self.name = "yfinance-replay" if market_data_url else "yfinance"
        self._chart_url = (market_data_url or YAHOO_URL).rstrip("/") + CHART_PATH
        self._clock = clock
        self._timeout = timeout
        self._session = _Session(self._chart_url, timeout=timeout, confined=bool(market_data_url))
        # It logs at ERROR what it also raises, and at WARNING that a cookie could not be had.
        logging.getLogger("yfinance").setLevel(logging.CRITICAL)
        # Where no folder can be, it goes without the cookie cache that it would unpickle from there. A process
        # remembers its cookie anyway, and a function's disk lives no longer than its process.
        yfinance.set_tz_cache_location(os.devnull)

    def fetch(self, symbol: str, since: datetime | None) -> Fetched:
        """See :class:`~control_plane.ingestion.source.Source`; ``raw`` is a list unless one window was enough."""
        now = self._clock().astimezone(UTC)  # a local time's arithmetic is off by an hour where clocks change
        if since is None:
            return self._fetch_latest_hour(symbol, now)
        since = since.astimezone(UTC)
        oldest = now - HISTORY
        charts = [self._chart(symbol, *window) for window in _windows(max(since, oldest), now)]
        bars = _closed_bars(charts, since=since, now=now)
        return _fetched(symbol, charts, bars, now=now, gap=Gap(since, oldest) if since < oldest else None)

    def describe(self, fetched: Fetched) -> Entity:
        """See :class:`~control_plane.ingestion.source.Source`."""
        answers = fetched.raw if isinstance(fetched.raw, list) else [fetched.raw]
        for answer in answers:
            meta = _meta(_unwrapped(answer))
            if meta:
                kind = _text(meta.get("instrumentType"))
                return Entity(
                    entity_id=_text(meta.get("symbol")) or fetched.symbol,
                    entity_type=ENTITY_TYPES.get(kind.lower(), kind.lower()) if kind else None,
                    time_zone=_text(meta.get("exchangeTimezoneName")),
                )
        return Entity(entity_id=fetched.symbol, entity_type=None, time_zone=None)

    def _fetch_latest_hour(self, symbol: str, now: datetime) -> Fetched:
        charts: list[_Chart] = []
        bars: list[_Bar] = []
        for start, end in _windows_backwards(now):
            charts.append(self._chart(symbol, start, end))
            bars = _closed_bars(charts, since=now - HISTORY, now=now)
            if bars and bars[-1].start - HOUR >= start:
                break
        if not bars:
            # A market that is closed has bars from before it closed. A symbol without any would seem well for ever.
            raise SourceError(
                symbol,
                "malformed",
                f"the chart is empty: not one bar in {HISTORY.days} days",
                raw=[chart.raw for chart in charts],
            )
        return _fetched(symbol, charts, [bar for bar in bars if bar.start > bars[-1].start - HOUR], now=now)

    def _chart(self, symbol: str, start: datetime, end: datetime) -> "_Chart":
        params = {
            "period1": int(start.timestamp()),
            "period2": ceil(end.timestamp()),
            "interval": "1m",
            "includePrePost": "false",
        }
        url = self._chart_url + quote(symbol, safe="")
        try:
            response = YfData(session=self._session).get(url, params=params, timeout=self._timeout)
        except _Refused as refused:
            response = refused.response
        except Timeout as error:
            raise SourceError(symbol, "unreachable", f"no answer within {self._timeout:g} s") from error
        except RequestException as error:
            raise SourceError(symbol, "unreachable", f"the source could not be reached: {error}") from error
        except Exception as error:
            # An odd cookie or consent page makes yfinance raise whatever its parsing of it happens to raise.
            reason = f"yfinance failed before it had an answer: {type(error).__name__}: {error}"
            raise SourceError(symbol, "unreachable", reason) from error
        return _read(symbol, cast(Response, response))


@dataclass(frozen=True, slots=True)
class _Bar:
    start: datetime
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Chart:
    raw: Json
    bars: tuple[_Bar, ...] = ()
    """As answered: the bar in progress and Yahoo's live price included."""
    sessions: tuple[TradingSession, ...] = ()
    """Of the exchange, as far as the answer tells."""


class _Refused(Exception):
    """Carries an answer out of yfinance; whether it is an error is judged later."""

    def __init__(self, response: Response) -> None:
        self.response = response
        super().__init__(response.status_code)


class _Session(Session[Response]):
    """What yfinance sends its requests with: bounded in time and, if ``confined``, to the chart API alone."""

    def __init__(self, chart_url: str, *, timeout: float, confined: bool) -> None:
        super().__init__(impersonate="chrome")
        self._chart_url = chart_url
        self._longest = timeout
        self._confined = confined

    def request(  # type: ignore[override]  # the base class spells thirty parameters out
        self,
        method: Literal["GET", "POST"],
        url: str,
        **kwargs: Any,
    ) -> Response:
        is_chart = url.startswith(self._chart_url)
        if self._confined and not is_chart:
            raise CurlConnectionError(f"{urlsplit(url).netloc} is not asked: MARKET_DATA_URL is set")
        kwargs["timeout"] = self._longest if is_chart else min(self._longest, COOKIE_TIMEOUT)
        response = super().request(method, url, **kwargs)
        # yfinance sends every refused request again with another cookie. That can help where access was denied only.
        if is_chart and response.status_code >= 400 and response.status_code not in {401, 403}:
            raise _Refused(response)
        return response


def _windows(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    while start < end:
        stop = min(start + WINDOW, end)
        yield start, stop
        start = stop


def _windows_backwards(now: datetime) -> Iterator[tuple[datetime, datetime]]:
    """A first look, then ever older windows; any hour lies wholly within one of them."""
    yield now - FIRST_LOOK, now
    oldest = now - HISTORY
    end = now
    while end - HOUR > oldest:
        start = max(end - WINDOW, oldest)
        yield start, end
        end = start + HOUR


def _closed_bars(charts: list[_Chart], *, since: datetime, now: datetime) -> list[_Bar]:
    bars = {bar.start: bar for chart in charts for bar in chart.bars if since <= bar.start <= now - INTERVAL}
    return [bars[start] for start in sorted(bars)]


def _fetched(symbol: str, charts: list[_Chart], bars: list[_Bar], *, now: datetime, gap: Gap | None = None) -> Fetched:
    raws = [chart.raw for chart in charts]
    return Fetched(
        symbol=symbol,
        raw=raws[0] if len(raws) == 1 else raws,
        observations=tuple(Observation("MARKET_TICK_INGESTED", bar.start, bar.payload) for bar in bars),
        gap=gap,
        session=next(
            (session for chart in charts for session in chart.sessions if session.start <= now < session.end), None
        ),
    )


def _read(symbol: str, response: Response) -> _Chart:
    """An answer's bars, or the error that it is."""
    status = response.status_code
    document, raw = _decoded(response)

    def failure(kind: str, reason: str) -> SourceError:
        return SourceError(symbol, kind, reason, raw=raw)

    chart = document.get("chart") if isinstance(document, dict) else None
    error = chart.get("error") if isinstance(chart, dict) else None
    code, description = (error.get("code"), error.get("description")) if isinstance(error, dict) else (None, None)
    said = f": {description or code}" if description or code else ""

    if status == 429:
        raise failure("rate_limited", "the source asks for fewer requests (HTTP 429)")
    if status >= 500 or status in {401, 403}:
        raise failure("unreachable", f"the source answered HTTP {status}{said}")
    if status == 404 or code == "Not Found":
        raise failure("unknown_symbol", f"the source does not know this symbol{said}")
    if str(description).startswith("Data doesn't exist for startDate"):
        return _Chart(raw)  # how Yahoo says that a window lies before a symbol's first bar
    if error or status >= 400:
        raise failure("malformed", f"the source refused the request (HTTP {status}){said}")
    if not isinstance(document, dict):
        what = "nothing" if not response.content else response.headers.get("content-type") or "an unnamed type"
        raise failure("malformed", f"the source answered {what} instead of JSON")
    try:
        result = document["chart"]["result"][0]
        return _Chart(raw, _bars(result), tuple(_sessions(result["meta"])))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, OSError) as cause:
        raise failure("malformed", f"the chart is not in Yahoo's shape: {type(cause).__name__}: {cause}") from cause


def _bars(result: dict[str, Any]) -> tuple[_Bar, ...]:
    """Every row that stands for a minute in which something was traded, numbers as they came."""
    meta = result["meta"]
    currency = meta.get("currency")
    starts = result.get("timestamp") or []
    if not starts:
        return ()
    columns = result["indicators"]["quote"][0]
    rows = zip(*(columns[name] for name in COLUMNS), strict=True)
    closing_times = _closing_times(meta)
    bars: dict[datetime, _Bar] = {}
    for timestamp, (open_, high, low, close, volume) in zip(starts, rows, strict=True):
        # Yahoo appends its live price under the second it was seen in, and at the closing time once trading ended.
        if timestamp % INTERVAL.total_seconds() or timestamp in closing_times:
            continue
        if open_ is high is low is close is None and not volume:
            continue
        start = datetime.fromtimestamp(timestamp, UTC)
        payload = {
            "price": close,
            "open": open_,
            "high": high,
            "low": low,
            "volume": int(volume) if isinstance(volume, float) and volume.is_integer() else volume,
            "currency": currency,
            "interval": "1m",
        }
        bars.setdefault(start, _Bar(start, payload))
    return tuple(bars.values())


def _sessions(meta: Mapping[str, Any]) -> Iterator[TradingSession]:
    """Those with bars, and the day's own. On a Saturday both are Friday's, even those of currencies."""
    days = meta.get("tradingPeriods")
    told = [session for day in days if isinstance(day, list) for session in day] if isinstance(days, list) else []
    current = meta.get("currentTradingPeriod")
    if isinstance(current, dict):
        told.append(current.get("regular"))
    for session in told:
        # No bar is worth less because this is told in another shape.
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError, OSError):
            yield TradingSession(*(datetime.fromtimestamp(session[edge], UTC) for edge in ("start", "end")))


def _closing_times(meta: Mapping[str, Any]) -> frozenset[int]:
    sessions = [session for day in meta.get("tradingPeriods") or () for session in day]
    return frozenset(
        session["end"] for session in sessions if session["end"] - session["start"] < SHORTEST_DAY.total_seconds()
    )


def _decoded(response: Response) -> tuple[Any, Json]:
    r"""The parsed body (None where it is no JSON) and what to keep of it.

    Kept is the JSON value itself, or ``{status, content_type, body}`` where there is none that Postgres' jsonb takes:
    it refuses NaN, Infinity, U+0000 and lone surrogates. In ``body``, bytes that are no UTF-8 and U+0000 are written
    as ``\xNN``.
    """
    wrapped: Json = {
        "status": response.status_code,
        "content_type": response.headers.get("content-type"),
        "body": response.content.decode("utf-8", "backslashreplace").replace("\0", r"\x00"),
    }
    try:
        document = json.loads(response.content)
    except (ValueError, RecursionError):
        return None, wrapped
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        text.encode()
    except ValueError:
        return document, wrapped
    return document, wrapped if _ESCAPED_NULL.search(text) else document


_ESCAPED_NULL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _unwrapped(raw: Json) -> Any:
    if isinstance(raw, dict) and raw.keys() == {"status", "content_type", "body"}:
        try:
            return json.loads(str(raw["body"]))
        except ValueError:
            return None
    return raw


def _meta(document: Any) -> Mapping[str, Any]:
    try:
        meta = document["chart"]["result"][0]["meta"]
    except (KeyError, IndexError, TypeError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
