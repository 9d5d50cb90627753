"""Decides where prices come from: Yahoo if it can be reached, otherwise a local replay of real historical prices."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from local_cloud.environ import isolated
from local_cloud.errors import AcpError, UsageError
from local_cloud.net import free_port, port_is_free
from market_replay.prices import SYMBOLS, Replay, listed_on

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local_cloud.processes import Service
    from local_cloud.workspace import Workspace

_YAHOO = "https://query2.finance.yahoo.com/v8/finance/chart/AAPL?range=1d&interval=1d"
_YAHOO_SECONDS = 2.0
_READY_SECONDS = 30


class MarketChoice(StrEnum):
    """The values of --market."""

    AUTO = "auto"
    YAHOO = "yahoo"
    REPLAY = "replay"


REPLAYED = f"{', '.join(list(SYMBOLS)[:-1])} and {list(SYMBOLS)[-1]}"
"""The symbols that the replay has, as part of a sentence."""
SOURCES = {MarketChoice.YAHOO: "yfinance", MarketChoice.REPLAY: "yfinance-replay"}
"""The source name that the events of each market carry."""


@dataclass(frozen=True, slots=True)
class Market:
    """The chosen market: `source` is yahoo or replay; `reason` completes "market data from …, because …"."""

    source: MarketChoice
    reason: str


def choose(choice: MarketChoice) -> Market:
    """Chooses the market. Raises AcpError if Yahoo was asked for and cannot be reached."""
    if choice is MarketChoice.REPLAY:
        return Market(MarketChoice.REPLAY, "it was asked for")
    problem = _yahoo_problem()
    if problem is None:
        return Market(MarketChoice.YAHOO, "it answers" if choice is MarketChoice.AUTO else "it was asked for")
    if choice is MarketChoice.YAHOO:
        msg = f"Yahoo cannot be used: {problem}."
        raise AcpError(msg, remedy="Try --market replay, which needs no internet.")
    return Market(MarketChoice.REPLAY, f"Yahoo is of no use from here ({problem})")


def refuse_unknown(symbols: str) -> None:
    """Raises UsageError, with a line for each, if the replay lacks one of these comma-separated symbols."""
    unknown = [symbol for symbol in symbols.split(",") if symbol and symbol not in SYMBOLS]
    if unknown:
        msg = "The replay does not have every symbol of --symbols:"
        raise UsageError(
            msg,
            details="\n".join(f"  {symbol}: unknown to the replay" for symbol in unknown),
            remedy=f"It has {REPLAYED}; others come from Yahoo, by --market yahoo.",
        )


@dataclass(frozen=True, slots=True)
class StartDay:
    """The real day that the replay starts at, and the instant whose minute has it: a restarted replay goes on."""

    day: str
    at: str


def start_day(day: str) -> StartDay:
    """Let the replay start at a day in a minute, when there is somebody to see it. Raises UsageError."""
    try:
        listed_on(date.fromisoformat(day))
    except ValueError as error:
        msg = f"The replay cannot start at {day!r}: {error}."
        raise UsageError(msg, remedy="--from takes a date, such as 2008-09-26.") from error
    return StartDay(day, (datetime.now(UTC) + timedelta(minutes=1)).isoformat(timespec="seconds"))


def real_day(start: StartDay, at: datetime) -> str:
    """Return the real day whose bar a minute has in a replay that started so."""
    first = int(datetime.fromisoformat(start.at).timestamp() // 60)
    return Replay.from_day(date.fromisoformat(start.day), first).day(int(at.timestamp() // 60))


def symbols_from(day: str) -> str:
    """Return the symbols that were listed on a day, with commas between them."""
    return ",".join(listed_on(date.fromisoformat(day)))


def start_replay(
    workspace: Workspace,
    service: Service,
    *,
    wished_port: int | None,
    environ: Mapping[str, str],
    start: StartDay | None = None,
) -> int:
    """Start the replay server, wait until it listens, and return its port."""
    port = wished_port if wished_port is not None and port_is_free(wished_port) else free_port()
    begins = [] if start is None else ["--from", start.day, "--at", start.at]
    service.start(
        [sys.executable, "-m", "market_replay", "--port", str(port), *begins],
        env=isolated(environ),
        cwd=workspace.checkout,
    )
    service.wait_until(lambda: service.listens_on(port), seconds=_READY_SECONDS)
    return port


def _yahoo_problem() -> str | None:
    """Returns why Yahoo's chart API cannot be used from here, or None.

    It asks as yfinance does, because Yahoo refuses other clients.
    """
    from curl_cffi import requests  # noqa: PLC0415  slow to import, and not needed by other commands

    try:
        response = requests.get(_YAHOO, impersonate="chrome", timeout=_YAHOO_SECONDS)
    except requests.exceptions.Timeout:
        return f"no answer within {_YAHOO_SECONDS:.0f} s"
    except requests.exceptions.RequestException:
        return "it cannot be reached"
    if response.status_code != 200:
        return f"it answers {response.status_code}"
    return None
