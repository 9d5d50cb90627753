"""Changes: what a route that changes something does around it, in the change's own transaction.

A request that is sent again under its Idempotency-Key gets the answer that was kept and changes nothing; and every
change is a row of the audit, with the state before it and after it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import psycopg
from psycopg import Connection

from control_plane.api.callers import QUERIES
from control_plane.api.http import RETRY_AFTER_SECONDS, Refused, Response, as_json
from control_plane.api.routes import Call
from control_plane.platform.database import Database


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change came to."""

    body: Mapping[str, Any]
    before: Mapping[str, Any] | None = None
    """The state before the change, for the audit; None where there was none."""
    after: Mapping[str, Any] | None = None
    status: HTTPStatus = HTTPStatus.OK
    kept: Mapping[str, Any] | None = None
    """What a repeated request is answered, where that is not ``body``, because that holds a secret."""


class Changes:
    """Makes changes through one database connection, of role acp_command."""

    def __init__(self, database: Callable[[], Database]) -> None:
        self._database = database

    def make(self, call: Call, act: Callable[[Connection[Any]], Changed], *, reason: str = "") -> Response:
        """Makes a change once, and returns its answer; ``act`` makes it, within the transaction that it is given.

        Raises Refused for another request under a key that was used, and where ``act`` does: nothing is kept then.
        """
        with self._database().bounded() as connection, connection.transaction():
            if (kept := _begin(connection, call)) is not None:
                return kept
            try:
                changed = act(connection)
            except psycopg.errors.InsufficientPrivilege as error:
                # The database asks once more whether the token may do this: it may have been revoked since.
                raise Refused(HTTPStatus.FORBIDDEN, "The token may not do this, or may not any more.") from error
            except psycopg.errors.LockNotAvailable as error:
                raise Refused(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "Something else holds what this changes: nothing was changed. Send the request again.",
                    headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
                ) from error
            connection.execute(
                QUERIES["end_change"].sql,
                {
                    "token": call.caller.token,
                    "key": call.key,
                    "address": call.caller.address,
                    "agent": call.caller.agent,
                    "route": call.route,
                    "reason": reason,
                    "before": _text(changed.before),
                    "after": _text(changed.after),
                    "status": int(changed.status),
                    "body": _text(changed.body if changed.kept is None else changed.kept),
                },
            )
        return Response(changed.status, changed.body)


def _begin(connection: Connection[Any], call: Call) -> Response | None:
    """Returns what was answered to the same request, or None for a new one."""
    row = connection.execute(
        QUERIES["begin_change"].sql, {"token": call.caller.token, "key": call.key, "request": call.fingerprint}
    ).fetchone()
    assert row is not None
    is_new, is_same, status, body = row
    if is_new:
        return None
    if not is_same:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Another request was sent under this Idempotency-Key within a day: take a new key for this one.",
        )
    return Response(HTTPStatus(status), body, {"Idempotent-Replay": "true"})


def _text(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, default=as_json)
