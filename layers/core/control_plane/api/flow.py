"""The flow: what is open at each stage, subscriptions, breakers."""

from dataclasses import asdict
from http import HTTPStatus

from control_plane.api.http import Response
from control_plane.api.pages import Page, page, position
from control_plane.api.routes import Call
from control_plane.api.rows import read_rows, rows
from control_plane.ops.health import MOST_COUNTED
from control_plane.ops.status import read_consumer_lag
from control_plane.platform.breakers import read_breakers
from control_plane.platform.database import Database


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
