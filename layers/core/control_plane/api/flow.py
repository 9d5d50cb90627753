"""The flow: its picture, its metrics, its subscriptions and breakers."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from control_plane.api.http import Response
from control_plane.api.pages import Page, page, position
from control_plane.api.routes import Call
from control_plane.api.rows import read_rows
from control_plane.flow.picture import read_picture
from control_plane.platform.breakers import read_breakers
from control_plane.platform.database import Database

KEEP_SECONDS: Final = 1.0
"""For how many seconds a picture is shown again: many pages may look at it at once."""


class FlowPictures:
    """Shows the flow from a look at the database that is at most ``keep_seconds`` old."""

    def __init__(self, *, keep_seconds: float = KEEP_SECONDS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keep_seconds = keep_seconds
        self._monotonic = monotonic
        self._kept: Mapping[str, Any] | None = None
        self._kept_at = float("-inf")

    def show(self, database: Database, _call: Call) -> Response:
        """Returns each stage's rate, backlog, oldest age and failures, and what waits for a person."""
        if self._kept is None or self._monotonic() - self._kept_at >= self._keep_seconds:
            with database.bounded() as connection:
                self._kept = read_picture(connection)
            self._kept_at = self._monotonic()
        return Response(HTTPStatus.OK, self._kept)


def show_metrics(database: Database, call: Call) -> Response:
    """Returns the metrics as Prometheus reads them, in OpenMetrics where the client asks for that."""
    # Few environments are scraped.
    from control_plane.flow.exposition import read_metrics, render, wants_openmetrics  # noqa: PLC0415

    openmetrics = wants_openmetrics(call.accept)
    with database.bounded() as connection:
        reading = read_metrics(connection, with_examples=openmetrics)
    text, content_type = render(reading, openmetrics=openmetrics)
    return Response(HTTPStatus.OK, None, content_type=content_type, text=text)


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
