"""From the replay through ingestion to the detector: the days that a demo starts at, with the window that they have."""

from datetime import date
from typing import Any

import pytest
from psycopg import Connection
from tests.integration.fakes import RecordingTelemetry

from control_plane.ingestion.rebuild import rebuild_observations
from control_plane.ingestion.service import IngestionResult, ingest
from control_plane.platform.breakers import BreakerPolicy
from domains import EVENT_TYPES
from domains.finance import detector
from domains.finance.yfinance_source import YFinanceSource
from market_replay import Replay, serve
from market_replay.prices import listed_on


def detected(app: Connection[Any], day: str) -> tuple[dict[tuple[str, str], str], IngestionResult]:
    """What a first ingestion three minutes after a day brings: entity and kind of what is found on it, to its state."""
    now = app.execute("SELECT clock_timestamp()").fetchall()[0][0]
    minute = int(now.timestamp()) // 60 - 3
    with serve(replay=Replay.from_day(date.fromisoformat(day), minute)) as market:
        source = YFinanceSource(market_data_url=market.url)
        symbols = listed_on(date.fromisoformat(day))
        policy = BreakerPolicy(3, 1000)
        result = ingest(app, source, symbols, RecordingTelemetry(), policy, event_types=EVENT_TYPES)
        for symbol in symbols:
            rebuilt = {one.event_id for one in rebuild_observations(app, source, EVENT_TYPES, entity_id=symbol)}
            stored = app.execute("SELECT event_id FROM events WHERE entity_id = %s", [symbol]).fetchall()
            assert rebuilt == {event_id for (event_id,) in stored}
    bodies = app.execute("SELECT payload_json FROM outbox WHERE topic = 'market.ticks' ORDER BY random()").fetchall()
    for (body,) in bodies:
        detector.consume(app, EVENT_TYPES.parse_event(body))
    rows = app.execute(
        "SELECT entity_id, kind, state FROM detector_anomalies"
        " WHERE state <> 'withdrawn' AND occurred_at = to_timestamp(%s)",
        [minute * 60],
    )
    return {(entity, kind): state for entity, kind, state in rows}, result


def test_2008_09_29_is_a_fall_of_the_whole_market(app: Connection[Any]) -> None:
    found, _ = detected(app, "2008-09-29")
    assert {entity for (entity, kind), state in found.items() if (kind, state) == ("return", "detected")} >= {
        "AAPL",
        "GOOG",
        "MSFT",
    }


def test_2000_09_29_is_one_stocks_fall(app: Connection[Any]) -> None:
    found, _ = detected(app, "2000-09-29")
    assert found == {("AAPL", "return"): "detected"}


def test_2010_05_06_is_an_anomaly_of_the_range(app: Connection[Any]) -> None:
    found, _ = detected(app, "2010-05-06")
    assert found["AAPL", "range"] == "detected"
    assert ("AAPL", "return") not in found


@pytest.mark.parametrize("day", ["2005-02-28"])
def test_2005_02_28_is_a_split_and_no_anomaly(app: Connection[Any], day: str) -> None:
    found, result = detected(app, day)
    assert found["AAPL", "return"] == "explained"
    assert result.fetched == result.ingested
    assert result.fetched > 60 * len(result.symbols)  # the bars, and what was told beside them
