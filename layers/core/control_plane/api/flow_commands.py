"""Holding and resuming, by a subscription or a breaker, and starting a run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from psycopg import Connection
from pydantic import Field

from control_plane.api.access_commands import Reason
from control_plane.api.changes import Changed, Changes
from control_plane.api.http import Refused, Response
from control_plane.api.routes import Call, Strict
from control_plane.api.rows import rows
from control_plane.platform import breakers
from control_plane.platform.breakers import Breaker, read_breakers

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")


class Hold(Strict):
    """Why something is held."""

    reason: Reason
    force: bool = Field(default=False, description="Takes over what somebody else holds.")
    is_new: bool = Field(
        default=False, description="Holds a source, too, whose breaker is not on record because it never failed."
    )


class Because(Strict):
    """Why something is done."""

    reason: Reason


def hold(changes: Changes, call: Call) -> Response:
    """Holds a breaker open until it is resumed. Raises Refused for one that somebody else holds."""
    name, wanted = call.parameters["name"], call.body

    def act(connection: Connection[Any]) -> Changed:
        is_new = wanted.is_new and "/breakers/" in call.route
        if is_new and _NAME.fullmatch(name) is None:
            detail = "A new breaker's name has 1 to 63 letters, digits, _ and -, such as yfinance."
            raise Refused(HTTPStatus.NOT_FOUND, detail)
        before = _stored(connection, name) if is_new else _known(connection, call, name)
        by = f"token:{call.caller.token}"
        holder = breakers.hold(connection, name, by=by, reason=wanted.reason, force=wanted.force)
        if holder is not None:
            raise Refused(HTTPStatus.CONFLICT, f"{name} is held by {holder} already: send force to hold it instead.")
        return _changed(before, _stored(connection, name))

    return changes.make(call, act, reason=wanted.reason)


def resume(changes: Changes, call: Call) -> Response:
    """Ends a hold or a cool-down: the next run probes. Raises Refused for a breaker that is not open."""
    name = call.parameters["name"]

    def act(connection: Connection[Any]) -> Changed:
        before = _known(connection, call, name)
        if not breakers.resume(connection, name):
            raise Refused(HTTPStatus.CONFLICT, f"{name} is not open: there is nothing to resume.")
        return _changed(before, _stored(connection, name))

    return changes.make(call, act, reason=call.body.reason)


def forget(changes: Changes, call: Call) -> Response:
    """Forgets a breaker that nobody guards with any more. Raises Refused for one that is held and still in use."""
    name = call.parameters["name"]

    def act(connection: Connection[Any]) -> Changed:
        before = _stored(connection, name)
        if before is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no breaker {name[:100]}.")
        if before.is_guarded and before.held_by is not None:
            detail = f"{name} is held by {before.held_by} and still in use: resume it, if that is meant."
            raise Refused(HTTPStatus.CONFLICT, detail)
        breakers.forget(connection, name)
        return Changed(_as_row(before), _as_row(before), None)

    return changes.make(call, act, reason=call.query.reason)


def run(changes: Changes, call: Call, invoke: Callable[[], None], function: str) -> Response:
    """Starts a function's run, and does not wait for it."""

    def act(_connection: Connection[Any]) -> Changed:
        invoke()
        return Changed({"started": function}, None, {"started": function}, HTTPStatus.ACCEPTED)

    return changes.make(call, act, reason=call.body.reason)


def _known(connection: Connection[Any], call: Call, name: str) -> Breaker | None:
    """Returns the breaker as it is stored. Raises Refused for what is neither a subscription nor a stored breaker."""
    stored = _stored(connection, name)
    is_subscription = bool(rows(connection, "subscription", name=name))
    if not is_subscription and (stored is None or "/subscriptions/" in call.route):
        kind = "subscription" if "/subscriptions/" in call.route else "breaker"
        raise Refused(HTTPStatus.NOT_FOUND, f"There is no {kind} {name[:100]}.")
    return stored


def _stored(connection: Connection[Any], name: str) -> Breaker | None:
    return next(iter(read_breakers(connection, [name])), None)


def _changed(before: Breaker | None, after: Breaker | None) -> Changed:
    assert after is not None, "it was changed just now"
    return Changed(_as_row(after), None if before is None else _as_row(before), _as_row(after))


def _as_row(breaker: Breaker) -> Mapping[str, Any]:
    return asdict(breaker)
