"""GET /events/{event_id}: what became of an event."""

from http import HTTPStatus
from uuid import UUID

from control_plane.api.http import Refused, Response
from control_plane.ops.timeline import read_timeline
from control_plane.platform.database import Database


def show_timeline(database: Database, event_id: str) -> Response:
    """Returns the event's whole timeline. Raises Refused for a text that is no id, and for an id without an event."""
    parsed_id = _parse_id(event_id)
    with database.bounded() as connection:
        timeline = read_timeline(connection, parsed_id)
    if timeline is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"There is no event {event_id}.")
    return Response(HTTPStatus.OK, timeline.to_dict())


def _parse_id(text: str) -> UUID:
    try:
        event_id = UUID(text)
    except ValueError:
        event_id = None
    if event_id is None or str(event_id) != text.lower():  # UUID() also takes braces, urn:, no hyphens
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            f"event_id is {text[:100]!r}: it must be a UUID, such as d0459ed7-a792-5533-b958-aaf36e185583.",
        )
    return event_id
