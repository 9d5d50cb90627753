"""Making and revoking tokens."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from psycopg import Connection
from pydantic import AwareDatetime, Field

from control_plane.api.callers import QUERIES, ROOT, new_token
from control_plane.api.changes import Changed, Changes
from control_plane.api.http import Refused, Response
from control_plane.api.routes import Call, Strict
from control_plane.api.rows import rows
from control_plane.api.scopes import Scope, with_implied
from control_plane.api.tokens import digest
from control_plane.model.ids import canonical_instant

Reason = Annotated[str, Field(min_length=1, max_length=1000, description="Why; kept on record.")]


class NewToken(Strict):
    """A token that is to be made."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_.-]{0,62}$", description="Whose it is; kept for ever, and given once.")
    scopes: tuple[Literal["read", "operate", "approve", "metrics", "admin"], ...] = Field(
        min_length=1, max_length=10, description="What it may do."
    )
    expires_at: AwareDatetime | None = Field(
        None, description="When it ends, its maker's end at the latest; without it, when it is revoked."
    )
    reason: Reason


class RevokedToken(Strict):
    """Why a token is revoked."""

    reason: Reason


def make_token(changes: Changes, call: Call) -> Response:
    """Makes a token, and shows it this once.

    Raises Refused for a name that was given, and for scopes or an end beyond the maker's.
    """
    wanted: NewToken = call.body
    scopes = with_implied(map(Scope, wanted.scopes))
    if lacking := scopes - call.caller.scopes:
        told = ", ".join(sorted(lacking))
        raise Refused(
            HTTPStatus.FORBIDDEN, f"The token {call.caller.token} makes none with a scope that it lacks: {told}."
        )
    if wanted.name == ROOT:
        raise Refused(HTTPStatus.CONFLICT, f"{ROOT} is the secret's token: give this one another name.")
    if wanted.expires_at is not None and wanted.expires_at <= datetime.now(UTC):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "In the body: expires_at: it is over already.")

    def act(connection: Connection[Any]) -> Changed:
        token = new_token()
        row = connection.execute(
            QUERIES["make_token"].sql,
            {
                "made_by": call.caller.token,
                "name": wanted.name,
                "sha256": digest(token),
                "scopes": sorted(scopes),
                "expires_at": wanted.expires_at,
            },
        ).fetchone()
        assert row is not None
        if row[0] == "taken":
            raise Refused(HTTPStatus.CONFLICT, f"There was a token {wanted.name} already: give this one another name.")
        if row[0] == "lacking":
            raise Refused(HTTPStatus.FORBIDDEN, f"The token {call.caller.token} may make no such token any more.")
        if row[0] == "outlives":
            [maker] = rows(connection, "token", name=call.caller.token)
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"The token {call.caller.token} makes none that is valid for longer than itself: expires_at must be "
                f"{canonical_instant(maker['expires_at'])} or earlier.",
            )
        [made] = rows(connection, "token", name=wanted.name)
        # The answer is kept for a repeated request, and the token is stored nowhere.
        return Changed(made | {"token": token}, after=made, status=HTTPStatus.CREATED, kept=made | {"token": None})

    return changes.make(call, act, reason=wanted.reason)


def revoke_token(changes: Changes, call: Call) -> Response:
    """Revokes a token: it is refused from now on. Raises Refused where there is no such token."""
    name = call.parameters["name"]
    if name == ROOT:
        raise Refused(HTTPStatus.CONFLICT, f"{ROOT} is the secret's token: put another one into the secret.")

    def act(connection: Connection[Any]) -> Changed:
        before = rows(connection, "token", name=name)
        if not before:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no token {name[:100]}.")
        connection.execute(QUERIES["revoke_token"].sql, {"revoked_by": call.caller.token, "name": name})
        [after] = rows(connection, "token", name=name)
        return Changed(after, before[0], after)

    return changes.make(call, act, reason=call.query.reason)
