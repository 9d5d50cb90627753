"""How far back Yahoo's charts reach, by interval; apart from the source, so that nothing here imports yfinance."""

from datetime import timedelta
from typing import Final

from control_plane.model.backfill import History, Reach

HISTORY: Final = timedelta(days=29)
"""How far back to ask for one-minute bars. Yahoo: "The requested range must be within the last 30 days", and it refuses
exactly 30 days."""

WINDOW: Final = timedelta(days=7)
"""The time span of one request. Yahoo: "Only 8 days worth of 1m granularity data are allowed to be fetched per
request"."""

REACHES: Final = {
    "1m": Reach(HISTORY, WINDOW),
    # Yahoo: "The requested range must be within the last 730 days".
    "1h": Reach(timedelta(days=729), timedelta(days=180)),
    # Five years hold no more splits and dividends than are read of one answer, even of a fund that pays monthly.
    "1d": Reach(None, timedelta(days=5 * 365)),
}

YAHOO: Final = History("yfinance", REACHES)
