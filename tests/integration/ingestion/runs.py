"""Starts ingestion runs with a fake source, and reads what they left in the database."""

from typing import Any
from uuid import uuid4

from psycopg import Connection
from tests.integration import seeds
from tests.integration.fakes import RecordingTelemetry

from control_plane.ingestion.service import IngestionResult, ingest
from control_plane.ingestion.source import Source
from control_plane.ingestion.store import RawPayload
from control_plane.platform.breakers import BreakerPolicy
from domains import EVENT_TYPES

POLICY = BreakerPolicy(failure_threshold=3, cool_down_seconds=1000)


class SourceBug(Exception):
    """Raised by a source's client because of a bug in it."""


def raw_payload() -> RawPayload:
    return RawPayload(
        uuid4(),
        source="fake",
        entity_id="AAPL",
        observed_at=seeds.FIRST_BAR,
        window_since=None,
        fetched_at=seeds.FIRST_BAR,
        trace_id=uuid4(),
        payload={},
    )


def run(connection: Connection[Any], source: Source, *symbols: str) -> IngestionResult:
    result = ingest(connection, source, symbols or ("AAPL",), RecordingTelemetry(), POLICY, event_types=EVENT_TYPES)
    assert result.fetched == result.ingested + result.duplicates + result.stale + result.rejected
    return result


def events(connection: Connection[Any], event_type: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns entity_id and payload of each event of a type, in order of time."""
    return connection.execute(
        "SELECT entity_id, payload_json FROM events WHERE event_type = %s ORDER BY occurred_at, entity_id", [event_type]
    ).fetchall()
