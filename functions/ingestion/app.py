"""IngestionFunction: fetches every symbol and stores what is new, together with the messages about it; pieces of a
backfill, too.
"""

from functools import cache
from typing import Any

from control_plane.ingestion.backfill import PieceStorer, Window, read_piece
from control_plane.ingestion.service import ingest
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import IngestionSettings, parse_symbols
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES
from domains.finance.yfinance_source import YFinanceSource

telemetry = Telemetry("ingestion")


@cache
def settings() -> IngestionSettings:
    """Returns the settings, validated once per environment."""
    return IngestionSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-ingestion",
        role="acp_ingest",
    )


@cache
def source() -> YFinanceSource:
    """Returns the source: Yahoo, or the server at MARKET_DATA_URL that speaks Yahoo's API."""
    return YFinanceSource(market_data_url=settings().market_data_url)


@function(telemetry, sample="events/ingestion.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Ingests SYMBOLS, or the symbols of the event: ``{"symbols": ["AAPL", …]}``. Returns an IngestionResult.

    An event with ``operation_id`` is a piece of a backfill; its result also says why a symbol failed.
    """
    policy = BreakerPolicy(settings().breaker_failure_threshold, settings().breaker_cool_down_seconds)
    if "operation_id" in event:
        piece = read_piece(event)
        storer = PieceStorer(database().connection(), telemetry, event_types=EVENT_TYPES)
        if isinstance(piece, Window):
            return storer.store_window(piece, source(), policy).to_dict()
        return storer.store_file_piece(piece, source()).to_dict()
    given = event.get("symbols")
    symbols = settings().symbols if given is None else parse_symbols(given, name="symbols of the event")
    return ingest(
        database().connection(),
        source(),
        symbols,
        telemetry,
        policy,
        event_types=EVENT_TYPES,
        remaining_seconds=lambda: context.get_remaining_time_in_millis() / 1000,
    ).to_dict()
