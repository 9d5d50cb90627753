"""Who answers approvals and sets switches: a person by a token of the API, or by their own login at the database."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

import psycopg

from acp_cli.asking import asking, is_local, why
from acp_client.client import ApiError, in_path
from control_plane.decisions import approvals as asked
from control_plane.decisions import switches as switched
from control_plane.decisions.approvals import ApprovalRequest
from control_plane.decisions.switches import Switch
from control_plane.platform.database import Database
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import typer

    from acp_client.client import Client

QUIET_SECONDS: Final = 1.0
"""How long a switch waits for releases and executions before the command says that it does."""
MOST_SECONDS: Final = 30.0
"""How long it waits in all; those that are frozen are ended by Postgres well before."""
_MOST_LISTED: Final = 10_000
_SHORTEST_BEGINNING: Final = 8


class Decider(Protocol):
    """A person, as the control plane knows them."""

    def open_requests(self) -> Sequence[ApprovalRequest]:
        """Returns what people are asked now, the most urgent first."""

    def find_requests(self, beginning: str) -> Sequence[ApprovalRequest]:
        """Returns up to two open requests whose id begins so; a whole id finds its request, whatever became of it."""

    def answer(self, request: ApprovalRequest, *, gives: bool, reason: str) -> str:
        """Approves or denies exactly the action of the request; returns who is on record for it. Raises AcpError."""

    def list_switches(self) -> Sequence[Switch]:
        """Returns what was ever switched, what is off first."""

    def set_switch(self, scope: str, *, is_off: bool, reason: str) -> str:
        """Switches a scope off, or on again; returns who is on record for it. Raises AcpError."""


@contextmanager
def deciding_as(ctx: typer.Context, by: str | None, url: str | None) -> Iterator[Decider]:
    """Yields the person: the login of a database URL, a login of the local cloud's database, or else a token's name.

    A deployment that is named by an option is asked by its token, whatever database the environment names.
    """
    is_named = "acp.deployment" in ctx.find_root().meta
    if url is not None and is_named:
        source = ctx.get_parameter_source("url")
        if source is not None and source.name == "COMMANDLINE":
            msg = "--database-url is one way to a deployment, and --url, --token or --profile another."
            raise UsageError(msg, remedy="Leave one of them out.")
        url = None
    if url is not None:
        given = Database(lambda: url, application_name="acp", origin="--database-url", role="acp_command")
        with given.connection() as connection:
            yield _Login(connection)
        return
    if by is None:
        with asking(ctx) as client:
            yield _Token(client)
        return
    if not by.strip():
        msg = "--by is empty: say who you are."
        raise UsageError(msg)
    if not is_local(ctx):
        msg = f"--by {by} is a login at the local cloud's database, and a deployment knows you by your token."
        raise UsageError(msg, remedy="Leave --by out, or give --database-url with your own login.")
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    run = cloud.running()
    with psycopg.connect(database.person_url(cloud.postgres(run), run, by.strip()), autocommit=True) as connection:
        yield _Login(connection)


class _Login:
    """A person by their own login at the database."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def open_requests(self) -> Sequence[ApprovalRequest]:
        return asked.open_requests(self._connection)

    def find_requests(self, beginning: str) -> Sequence[ApprovalRequest]:
        return asked.find_requests(self._connection, beginning)

    def answer(self, request: ApprovalRequest, *, gives: bool, reason: str) -> str:
        answered = asked.answer(
            self._connection, request, action_sha256=request.action_sha256, gives=gives, reason=reason
        )
        if not answered.counts:
            msg = f"This answer does not count: {asked.WHY_NOT[answered.outcome]}."
            raise AcpError(msg, remedy="What waits for an answer: scripts/acp approvals")
        return answered.by

    def list_switches(self) -> Sequence[Switch]:
        return switched.list_switches(self._connection)

    def set_switch(self, scope: str, *, is_off: bool, reason: str) -> str:
        """Says so where it has to wait."""
        for most_seconds in (QUIET_SECONDS, MOST_SECONDS):
            try:
                return switched.set_switch(
                    self._connection, scope, off=is_off, reason=reason, most_seconds=most_seconds
                )
            except psycopg.errors.LockNotAvailable:
                if most_seconds == QUIET_SECONDS:
                    _say_that_it_waits()
        raise _not_switched(scope, is_off)


class _Token:
    """A person by the name of the token that they ask the API with."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def open_requests(self) -> Sequence[ApprovalRequest]:
        return [_request(found) for found in self._client.pages("/approvals", most=_MOST_LISTED)]

    def find_requests(self, beginning: str) -> Sequence[ApprovalRequest]:
        beginning = beginning.lower()
        if is_whole(beginning):
            try:
                return [_request(self._client.get(f"/approvals/{beginning}"))]
            except ApiError as error:
                if error.status != 404:
                    raise
                return []
        if len(beginning) < _SHORTEST_BEGINNING:
            return []
        return [one for one in self.open_requests() if str(one.approval_id).startswith(beginning)][:2]

    def answer(self, request: ApprovalRequest, *, gives: bool, reason: str) -> str:
        body = {"gives": gives, "action_sha256": request.action_sha256.hex(), "reason": why(reason)}
        try:
            answered = self._client.send("POST", f"/approvals/{request.approval_id}", body)
        except ApiError as error:
            if error.status != 409:
                raise
            raise AcpError(str(error), remedy="What waits for an answer: scripts/acp approvals") from None
        return str(answered["by"])

    def list_switches(self) -> Sequence[Switch]:
        return [
            Switch(one["scope"], one["is_off"], one["set_by"], instant_of(one["set_at"]), one["reason"])
            for one in self._client.pages("/switches", most=_MOST_LISTED)
        ]

    def set_switch(self, scope: str, *, is_off: bool, reason: str) -> str:
        body = {"is_off": is_off, "reason": why(reason)}
        try:
            return str(self._client.send("PUT", f"/switches/{in_path(scope)}", body)["set_by"])
        except ApiError as error:
            # The client has sent it several times by now.
            if error.status != 503 or "holds what this changes" not in str(error):
                raise
            raise _not_switched(scope, is_off) from None


def is_whole(request_id: str) -> bool:
    """Whether a text is a whole id."""
    try:
        return str(UUID(request_id)) == request_id.lower()
    except ValueError:
        return False


def instant_of(text: str) -> datetime:
    """Returns the instant that the API writes so."""
    return datetime.fromisoformat(text)


def _request(found: Mapping[str, Any]) -> ApprovalRequest:
    return ApprovalRequest(
        approval_id=UUID(found["approval_id"]),
        decision_id=UUID(found["decision_id"]),
        action_sha256=bytes.fromhex(found["action_sha256"]),
        requested_at=instant_of(found["requested_at"]),
        expires_at=instant_of(found["expires_at"]),
        proposed_by=found["proposed_by"],
        shown=found["shown"],
        domain=found["domain"],
        playbook=found["playbook"],
        entity_id=found["entity_id"],
        trace_id=UUID(found["trace_id"]),
    )


def _say_that_it_waits() -> None:
    Progress().say("Waiting for releases and executions that are under way. No other begins meanwhile.")


def _not_switched(scope: str, is_off: bool) -> AcpError:
    state = "off" if is_off else "on"
    msg = f"{scope} was not switched {state}: something has held the switches' lock all the while."
    return AcpError(msg, remedy="Run it again. Who holds it: docs/operations.md, Approvals and switches")
