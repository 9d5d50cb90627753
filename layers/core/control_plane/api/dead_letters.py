"""Dead letters of every kind: listing them, reading what one held, letting them go.

Sending them again is an operation.
"""

import base64
from http import HTTPStatus
from typing import Annotated, Any, Literal

from psycopg import Connection
from pydantic import Field

from control_plane.api.access_commands import Reason
from control_plane.api.changes import Changed, Changes
from control_plane.api.http import Refused, Response
from control_plane.api.pages import Page, page, position
from control_plane.api.routes import Call, QueryFlag, QueryId, QueryInstant, Strict
from control_plane.model.contract import WholeNumber
from control_plane.ops.dead_letters import (
    DeadLetterFilter,
    DiscardError,
    LetterContent,
    discard,
    read_content,
    read_dead_letters,
)
from control_plane.platform.database import Database

_GREATEST_ID = (1 << 63) - 1
_MOST_IDS = 10_000


class DeadLettersQuery(Page):
    """Which dead letters; a filter that is left out fits all."""

    kind: Literal["relay", "consumer", "invocation"] | None = Field(None, description="Who gave up.")
    subscription: str | None = Field(None, max_length=200, description="Such as signal_lab.")
    reason: str | None = Field(None, max_length=200, description="A part of the reason; case makes no difference.")
    since: QueryInstant | None = Field(None, description="Dead-lettered at this instant or later.")
    until: QueryInstant | None = Field(None, description="Dead-lettered before this instant.")
    event_id: QueryId | None = None
    trace_id: QueryId | None = None
    ids: str | None = Field(
        None, pattern=r"^[0-9]{1,18}(,[0-9]{1,18}){0,99}$", description="These alone: up to 100 ids, with commas."
    )
    below: str | None = Field(None, pattern=r"^[0-9]{1,18}$", description="Those before this id.")
    resolved: QueryFlag = Field(default=False, description="Those that were redriven or discarded, too.")


class Discard(Strict):
    """The dead letters that nobody needs any more."""

    ids: tuple[Annotated[WholeNumber, Field(ge=0, le=_GREATEST_ID)], ...] = Field(
        min_length=1, max_length=_MOST_IDS, description="As GET /dead-letters lists them."
    )
    reason: Reason


def list_dead_letters(database: Database, call: Call) -> Response:
    """Returns a page of dead letters, newest first."""
    query: DeadLettersQuery = call.query
    [below] = position(query, int)
    if query.below is not None:
        below = min(int(query.below), _GREATEST_ID if below is None else below)
    chosen = DeadLetterFilter(
        ids=None if query.ids is None else [int(number) for number in query.ids.split(",")],
        kind=query.kind,
        subscription=query.subscription,
        reason=query.reason,
        since=query.since,
        until=query.until,
        event_id=query.event_id,
        trace_id=query.trace_id,
    )
    with database.bounded() as connection:
        found = read_dead_letters(connection, chosen, limit=query.limit + 1, with_resolved=query.resolved, below=below)
    return page([letter.to_dict() for letter in found], lambda letter: [letter["id"]], query=query)


def show_dead_letter(database: Database, call: Call) -> Response:
    """Returns one dead letter, with what its message held and each failure on record. Raises Refused."""
    text = call.parameters["letter_id"]
    letter_id = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
    if not 0 <= letter_id <= _GREATEST_ID:
        raise Refused(HTTPStatus.BAD_REQUEST, f"letter_id is {text[:100]!r}: it must be a number, such as 7.")
    with database.bounded() as connection:
        found = read_dead_letters(connection, DeadLetterFilter(ids=[letter_id]), limit=1, with_resolved=True)
        content = read_content(connection, letter_id)
    if not found or content is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"There is no dead letter {letter_id}.")
    return Response(HTTPStatus.OK, found[0].to_dict() | _content(content))


def discard_dead_letters(changes: Changes, call: Call) -> Response:
    """Lets open dead letters go; they stay on record, and are never sent again. Raises Refused if none is open."""
    wanted: Discard = call.body

    def act(connection: Connection[Any]) -> Changed:
        try:
            report = discard(
                connection,
                DeadLetterFilter(ids=wanted.ids),
                requested_by=call.caller.token,
                reason=wanted.reason,
            )
        except DiscardError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error}.") from error
        if report.operation_id is None:
            raise Refused(HTTPStatus.CONFLICT, "None of these dead letters is open: nothing was discarded.")
        return Changed(report.to_dict(), None, report.to_dict())

    return changes.make(call, act, reason=wanted.reason)


def _content(content: LetterContent) -> dict[str, Any]:
    """Returns the body as text where it is UTF-8, and otherwise in base64."""
    body = content.body
    try:
        text = None if body is None else body.decode()
        encoded = None
    except UnicodeDecodeError:
        assert body is not None, "it could not be decoded"
        text, encoded = None, base64.b64encode(body).decode()
    return {
        "body": text,
        "body_base64": encoded,
        "attributes": content.attributes,
        "failures": list(content.failures),
    }
