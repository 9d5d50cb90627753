"""Events: the list, what became of one, and the anomalies among them."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, Literal

from psycopg import Connection
from pydantic import Field

from control_plane.api.http import Refused, Response
from control_plane.api.pages import Page, check_window, page, position
from control_plane.api.routes import Call, QueryId, QueryInstant, Strict
from control_plane.api.rows import ID_PREFIX, by_prefix, parse_id, read_rows, rows
from control_plane.ops.timeline import read_timeline
from control_plane.platform.database import Database
from control_plane.tracing.events import event_spans
from control_plane.tracing.record import read_events
from control_plane.tracing.spans import as_otlp_json

_ALONGSIDE = "event_type, entity_id or trace_id"


class EventsQuery(Page):
    """Which events; a filter that is left out fits all."""

    event_type: str | None = Field(None, max_length=200, description="Such as MARKET_TICK_INGESTED.")
    source: str | None = Field(None, max_length=200, description=f"Such as yfinance; beside {_ALONGSIDE}.")
    entity_id: str | None = Field(None, max_length=200, description="Such as AAPL.")
    trace_id: QueryId | None = Field(None, description="The run that stored it.")
    since: QueryInstant | None = Field(None, description="Stored at this instant or later.")
    until: QueryInstant | None = Field(None, description="Stored before this instant.")
    id_prefix: str | None = Field(None, pattern=ID_PREFIX, description="Its id begins so; beside no other filter.")


class AnomaliesQuery(Page):
    """Which anomalies."""

    entity_id: str | None = Field(None, max_length=200, description="Such as AAPL.")


class ShownAs(Strict):
    """In which shape something is shown."""

    format: Literal["otlp"] | None = Field(None, description="otlp: as the spans of a trace, in OTLP's JSON.")


def show_timeline(database: Database, call: Call) -> Response:
    """Returns an event's whole timeline, or its spans.

    Raises Refused for a text that is no id, and for an id without an event.
    """
    event_id = parse_id(call.parameters["event_id"], "event_id")
    with database.bounded() as connection:
        if call.query.format == "otlp":
            spans = [span for event in read_events(connection, [event_id]) for span in event_spans(event)]
            shown = as_otlp_json(spans) if spans else None
        else:
            timeline = read_timeline(connection, event_id)
            shown = None if timeline is None else timeline.to_dict()
    if shown is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"There is no event {event_id}.")
    return Response(HTTPStatus.OK, shown)


def list_events(database: Database, call: Call) -> Response:
    """Returns a page of events, newest stored first, or by id for a prefix, each with where it stands.

    Raises Refused for a filter that no index serves.
    """
    query: EventsQuery = call.query
    if query.id_prefix is not None:
        return _events_by_prefix(database, query, query.id_prefix)
    if query.source is not None and not (query.event_type or query.entity_id or query.trace_id):
        raise Refused(HTTPStatus.BAD_REQUEST, f"source is no filter of its own: add {_ALONGSIDE}.")
    check_window(query.since, query.until)
    [before_seq] = position(query, int)
    wanted = query.model_dump(exclude={"limit", "after", "id_prefix"})
    with database.bounded() as connection:
        found = rows(connection, "events", **wanted, before_seq=before_seq, limit=query.limit + 1)
        found = _with_states(connection, found)
    return page(found, lambda event: [event["seq"]], query=query)


def list_anomalies(database: Database, call: Call) -> Response:
    """Returns a page of what the detector has on record, newest first."""
    query: AnomaliesQuery = call.query
    occurred_at, source, entity_id, series, kind = position(query, datetime, str, str, str, str)
    found = read_rows(
        database,
        "anomalies",
        entity_id=query.entity_id,
        occurred_at=occurred_at,
        source=source,
        after_entity_id=entity_id,
        series=series,
        kind=kind,
        limit=query.limit + 1,
    )
    return page(
        found, lambda one: [one[name] for name in ("occurred_at", "source", "entity_id", "series", "kind")], query=query
    )


def _events_by_prefix(database: Database, query: EventsQuery, prefix: str) -> Response:
    others = query.model_dump(exclude={"limit", "after", "id_prefix"})
    if any(value is not None for value in others.values()):
        raise Refused(HTTPStatus.BAD_REQUEST, "id_prefix stands beside no other filter: leave one of them out.")
    [after] = position(query, str)
    found = by_prefix(database, "events_by_prefix", prefix, after=after, limit=query.limit + 1)
    with database.bounded() as connection:
        found = _with_states(connection, found)
    return page(found, lambda event: [event["event_id"]], query=query)


def _with_states(connection: Connection[Any], events: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Returns the events with where each stands. It is asked of this page's events alone, so the list stays quick."""
    found = rows(connection, "event_states", event_ids=[event["event_id"] for event in events])
    states = {one["event_id"]: one["state"] for one in found}
    return [event | {"state": states.get(event["event_id"])} for event in events]
