"""One ingestion run as a process; its arguments are database, source, seconds and symbols.

The last line that it prints is a report.
"""

import json
import sys
import time

from bench.child import peak_memory_bytes
from control_plane.ingestion.service import ingest
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES
from domains.finance.yfinance_source import YFinanceSource

if __name__ == "__main__":
    database_url, source_url, seconds, *symbols = sys.argv[1:]
    ends_at = time.monotonic() + float(seconds)
    result = ingest(
        connect(database_url, application_name="hostile"),
        YFinanceSource(market_data_url=source_url),
        symbols,
        Telemetry("hostile"),
        BreakerPolicy(3, 60),
        event_types=EVENT_TYPES,
        remaining_seconds=lambda: ends_at - time.monotonic(),
    )
    peak = peak_memory_bytes()
    left = ends_at - time.monotonic()
    sys.stderr.write(
        json.dumps({"peak_bytes": peak, "seconds_left": left, "failed_symbols": result.failed_symbols}) + "\n"
    )
