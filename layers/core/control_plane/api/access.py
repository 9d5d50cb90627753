"""Tokens, and what was done with them, as they are read."""

from http import HTTPStatus

from pydantic import Field

from control_plane.api.http import Response
from control_plane.api.pages import Page, page, position
from control_plane.api.routes import Call
from control_plane.api.rows import read_rows
from control_plane.platform.database import Database


class AuditQuery(Page):
    """Whose changes; without a token everybody's."""

    token: str | None = Field(None, max_length=63, description="A token's name.")


def show_whoami(database: Database, call: Call) -> Response:
    """Returns the name, the scopes and the end of the token that asks."""
    found = read_rows(database, "token", name=call.caller.token)
    return Response(
        HTTPStatus.OK,
        {
            "name": call.caller.token,
            "scopes": sorted(call.caller.scopes),
            "expires_at": found[0]["expires_at"] if found else None,
        },
    )


def list_tokens(database: Database, call: Call) -> Response:
    """Returns a page of tokens by name: what each may do, and when it was last used; never the token itself."""
    query: Page = call.query
    [after] = position(query, str)
    found = read_rows(database, "tokens", after=after, limit=query.limit + 1)
    return page(found, lambda one: [one["name"]], query=query)


def list_audit(database: Database, call: Call) -> Response:
    """Returns a page of what was changed by the API, newest first."""
    query: AuditQuery = call.query
    [before_id] = position(query, int)
    found = read_rows(database, "audit", token=query.token, before_id=before_id, limit=query.limit + 1)
    return page(found, lambda one: [one["id"]], query=query)
