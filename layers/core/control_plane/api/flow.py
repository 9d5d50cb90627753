"""The flow: what is open at each stage, subscriptions, breakers, dead letters, operations."""

from dataclasses import asdict
from datetime import datetime
from http import HTTPStatus
from typing import Literal

from pydantic import Field

from control_plane.api.http import Response
from control_plane.api.pages import Page, page, position
from control_plane.api.routes import Call, QueryFlag
from control_plane.api.rows import parse_id, read_one, read_rows, rows
from control_plane.ops.health import MOST_COUNTED
from control_plane.ops.status import read_consumer_lag
from control_plane.platform.breakers import read_breakers
from control_plane.platform.database import Database


class DeadLettersQuery(Page):
    """Which dead letters; a filter that is left out fits all."""

    subscription: str | None = Field(None, max_length=200, description="Such as signal_lab.")
    reason: str | None = Field(None, max_length=200, description="A part of the reason; case makes no difference.")
    resolved: QueryFlag = Field(default=False, description="Those that were redriven or discarded, too.")


class OperationsQuery(Page):
    """Which operations; a filter that is left out fits all."""

    kind: Literal["redrive", "replay", "backfill", "rebuild", "retention", "erasure"] | None = None
    state: Literal["planning", "planned", "running", "paused", "done", "cancelled", "failed"] | None = None


def show_flow(database: Database, _call: Call) -> Response:
    """Returns what is open at each stage, with ages."""
    with database.bounded() as connection:
        [events] = rows(connection, "flow_of_events")
        subscriptions = rows(connection, "flow_of_subscriptions")
        lag = read_consumer_lag(connection, newest=MOST_COUNTED)
        breakers = read_breakers(connection)
    return Response(
        HTTPStatus.OK,
        {
            "events": events,
            "subscriptions": subscriptions,
            "consumers": [asdict(one) for one in lag],
            "open_breakers": [one.name for one in breakers if one.is_guarded and not one.is_closed],
        },
    )


def list_subscriptions(database: Database, call: Call) -> Response:
    """Returns a page of subscriptions by name, removed ones too."""
    query: Page = call.query
    [after] = position(query, str)
    found = read_rows(database, "subscriptions", after=after, limit=query.limit + 1)
    return page(found, lambda one: [one["name"]], query=query)


def list_breakers(database: Database, call: Call) -> Response:
    """Returns a page of the breakers that ever failed or were held, by name."""
    query: Page = call.query
    [after] = position(query, str)
    with database.bounded() as connection:
        stored = read_breakers(connection)
    found = sorted((asdict(one) for one in stored if one.name > (after or "")), key=lambda one: str(one["name"]))
    return page(found[: query.limit + 1], lambda one: [one["name"]], query=query)


def list_dead_letters(database: Database, call: Call) -> Response:
    """Returns a page of dead letters, newest first."""
    query: DeadLettersQuery = call.query
    [before_id] = position(query, int)
    found = read_rows(
        database,
        "dead_letters",
        subscription=query.subscription,
        reason=query.reason,
        with_resolved=query.resolved,
        before_id=before_id,
        limit=query.limit + 1,
    )
    return page(found, lambda letter: [letter["id"]], query=query)


def list_operations(database: Database, call: Call) -> Response:
    """Returns a page of operations, newest first."""
    query: OperationsQuery = call.query
    requested_at, operation_id = position(query, datetime, str)
    found = read_rows(
        database,
        "operations",
        kind=query.kind,
        state=query.state,
        requested_at=requested_at,
        operation_id=None if operation_id is None else parse_id(operation_id, "after"),
        limit=query.limit + 1,
    )
    return page(found, lambda one: [one["requested_at"], one["operation_id"]], query=query)


def show_operation(database: Database, call: Call) -> Response:
    """Returns one operation, with its plan and its progress. Raises Refused."""
    operation_id = parse_id(call.parameters["operation_id"], "operation_id")
    missing = f"There is no operation {operation_id}."
    return Response(HTTPStatus.OK, read_one(database, "operation", missing, operation_id=operation_id))
