"""Answering what a decision asks a person, and switching off and on."""

from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import unquote

from psycopg import Connection
from pydantic import Field

from control_plane.api.access_commands import Reason
from control_plane.api.changes import Changed, Changes
from control_plane.api.http import Refused, Response
from control_plane.api.routes import Call, Strict
from control_plane.api.rows import parse_id, rows
from control_plane.decisions.approvals import WHY_NOT, answer, find_requests
from control_plane.decisions.switches import is_scope, set_switch

MOST_SWITCH_SECONDS: Final = 2.0
"""How long a switch waits for releases and executions that are under way; the database's patience is longer."""


class Answer(Strict):
    """A person's answer to what they were shown."""

    gives: bool = Field(description="true approves, false denies; both for good.")
    action_sha256: Annotated[
        str, Field(pattern=r"^[0-9a-f]{64}$", description="The hash of the action that was shown.")
    ]
    reason: Reason


class SwitchState(Strict):
    """What a scope is switched to."""

    is_off: bool = Field(description="true switches it off, false on again.")
    reason: Reason


def answer_approval(changes: Changes, call: Call) -> Response:
    """Records an answer about exactly one action. Raises Refused for one that does not count."""
    approval_id = parse_id(call.parameters["approval_id"], "approval_id")
    given: Answer = call.body

    def act(connection: Connection[Any]) -> Changed:
        found = find_requests(connection, str(approval_id))
        if not found:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no request {approval_id}.")
        answered = answer(
            connection,
            found[0],
            action_sha256=bytes.fromhex(given.action_sha256),
            gives=given.gives,
            reason=given.reason,
            token=call.caller.token,
        )
        if not answered.counts:
            raise Refused(HTTPStatus.CONFLICT, f"This answer does not count: {WHY_NOT[answered.outcome]}.")
        body = {"approval_id": approval_id, "outcome": answered.outcome, "by": answered.by}
        return Changed(body, {"approval_id": approval_id, "decision_id": found[0].decision_id}, body)

    return changes.make(call, act, reason=given.reason)


def put_switch(changes: Changes, call: Call) -> Response:
    """Switches a scope off, or on again; once it returns, nothing that it covers is released. Raises Refused."""
    scope = unquote(call.parameters["scope"])  # A model's name may hold a slash, and not every gateway decodes it.
    wanted: SwitchState = call.body
    if not is_scope(scope):
        detail = f"{scope[:100]!r} is no scope: all, domain:NAME, playbook:NAME, agent:NAME, action:TYPE or model:NAME."
        raise Refused(HTTPStatus.BAD_REQUEST, detail)

    def act(connection: Connection[Any]) -> Changed:
        before = rows(connection, "switch", scope=scope)
        set_switch(
            connection,
            scope,
            off=wanted.is_off,
            reason=wanted.reason,
            most_seconds=MOST_SWITCH_SECONDS,
            token=call.caller.token,
        )
        [after] = rows(connection, "switch", scope=scope)
        return Changed(after, before[0] if before else None, after)

    return changes.make(call, act, reason=wanted.reason)
