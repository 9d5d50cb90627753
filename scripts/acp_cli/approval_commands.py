"""approvals, approve, deny, switch, switches: what people decide themselves, each as their own login."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import psycopg
import typer
from rich.table import Table

from acp_cli.status import duration
from control_plane.decisions import approvals as asked
from control_plane.decisions import switches as switched
from control_plane.platform.database import Database
from domains import load_deciding
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown, shown_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from control_plane.decisions.approvals import ApprovalRequest

PANEL = "Decisions"
QUIET_SECONDS = 1.0
"""How long a switch waits for releases and executions before the command says that it does."""
MOST_SECONDS = 30.0
"""How long it waits in all; those that are frozen are ended by Postgres well before."""
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
_ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept on record.")]
_ByOption = Annotated[str, typer.Option("--by", envvar="USER", help="Who you are: your login at the database.")]
_UrlOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="ACP_DATABASE_URL",
        metavar="URL",
        help="A deployed database, by your own login there; --by counts locally.",
        show_default=False,
    ),
]
_IdArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="As `acp approvals` lists it; its first 8 characters will do.", show_default=False
    ),
]


class State(StrEnum):
    """What a switch can be set to."""

    off = "off"
    on = "on"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("approvals", rich_help_panel=PANEL)(approvals)
    app.command("approve", rich_help_panel=PANEL)(approve)
    app.command("deny", rich_help_panel=PANEL)(deny)
    app.command("switch", rich_help_panel=PANEL)(switch)
    app.command("switches", rich_help_panel=PANEL)(switches)


def approvals(
    ctx: typer.Context, *, by: _ByOption = "somebody", url: _UrlOption = None, as_json: _JsonOption = False
) -> None:
    """List the actions that people are asked to approve, the most urgent first. Silence is a no."""
    with _connected(ctx, by, url) as connection:
        requests = asked.open_requests(connection)
    if as_json:
        sys.stdout.write(json.dumps([_as_json(request) for request in requests], indent=2) + "\n")
        return
    console = Terminal()
    for request in requests:
        left = (request.expires_at - datetime.now(UTC)).total_seconds()
        console.print(f"[bold]{request.approval_id}[/]", soft_wrap=True)
        console.print(f"  {shown(request.domain)} · {shown(request.playbook)} · {duration(max(left, 0))} left")
        console.print(_indented(request.shown), soft_wrap=True)
        console.print()
    if requests:
        Progress().say("scripts/acp approve ID, or scripts/acp deny ID. Silence is a no.")
    else:
        Progress().say("Nothing waits for an approval.")


def approve(
    ctx: typer.Context,
    request_id: _IdArgument,
    *,
    reason: _ReasonOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, for scripts; takes the whole ID.")] = False,
    by: _ByOption = "somebody",
    url: _UrlOption = None,
) -> None:
    """Show an action and, once you confirm it, approve exactly that.

    It is judged again, and released if nothing speaks against it now.
    """
    if yes and not _is_whole(request_id):
        msg = f"{request_id!r} is not a whole id, and with --yes nobody is asked whether it is the right one."
        raise UsageError(msg, remedy="scripts/acp approvals --json has whole ids.")
    _answer(ctx, request_id, gives=True, reason=reason, by=by, url=url, confirm=not yes)


def deny(
    ctx: typer.Context,
    request_id: _IdArgument,
    *,
    reason: _ReasonOption = "",
    by: _ByOption = "somebody",
    url: _UrlOption = None,
) -> None:
    """Deny an action, for good."""
    _answer(ctx, request_id, gives=False, reason=reason, by=by, url=url, confirm=False)


def switch(
    ctx: typer.Context,
    state: Annotated[State, typer.Argument(help="off, or on again.", show_default=False)],
    scope: Annotated[
        str,
        typer.Argument(
            help="all, domain:NAME, playbook:NAME, agent:NAME, action:TYPE or model:NAME.", show_default=False
        ),
    ],
    *,
    reason: _ReasonOption = "",
    by: _ByOption = "somebody",
    url: _UrlOption = None,
) -> None:
    """Switch a scope off, or on again. Once it returns, nothing that the scope covers is released or executed."""
    if not switched.is_scope(scope):
        msg = f"{scope!r} is no scope."
        raise UsageError(msg, remedy="all, domain:NAME, playbook:NAME, agent:NAME, action:TYPE or model:NAME")
    with _connected(ctx, by, url) as connection:
        _check_scope(connection, scope, state)
        who = _set_switch(connection, scope, state, reason)
    said = f"until scripts/acp switch on {scope}" if state is State.off else "again"
    Progress().say(f"{scope} is {state} {said} (by {who}).")


def switches(
    ctx: typer.Context, *, by: _ByOption = "somebody", url: _UrlOption = None, as_json: _JsonOption = False
) -> None:
    """List what was ever switched, what is off first."""
    with _connected(ctx, by, url) as connection:
        found = switched.list_switches(connection)
    if as_json:
        rows = [
            {
                "scope": each.scope,
                "is_off": each.is_off,
                "set_by": each.set_by,
                "set_at": _instant(each.set_at),
                "reason": each.reason,
            }
            for each in found
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    if not found:
        Progress().say("Nothing was ever switched off.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("scope", "state", "since", "by", "reason"):
        table.add_column(column, overflow="fold")
    for each in found:
        state = "[yellow]off[/]" if each.is_off else "[green]on[/]"
        since = f"{each.set_at.astimezone(UTC):%m-%d %H:%M}Z"
        table.add_row(shown(each.scope), state, since, shown(each.set_by), shown(each.reason))
    Terminal().print(table)


def _set_switch(connection: psycopg.Connection[Any], scope: str, state: State, reason: str) -> str:
    """Sets a switch, and says so where that has to wait; returns the login that set it."""
    is_off = state is State.off
    try:
        return switched.set_switch(connection, scope, off=is_off, reason=reason, most_seconds=QUIET_SECONDS)
    except psycopg.errors.LockNotAvailable:
        Progress().say("Waiting for releases and executions that are under way. No other begins meanwhile.")
    try:
        return switched.set_switch(connection, scope, off=is_off, reason=reason, most_seconds=MOST_SECONDS)
    except psycopg.errors.LockNotAvailable:
        msg = f"{scope} was not switched {state}: something has held the switches' lock for {MOST_SECONDS:.0f} s."
        raise AcpError(msg, remedy="Run it again. Who holds it: docs/operations.md, Approvals and switches") from None


def _check_scope(connection: psycopg.Connection[Any], scope: str, state: State) -> None:
    """Raises UsageError for what no plug-in is called; what was ever switched can be switched on again."""
    if scope.startswith("model:"):
        Progress().say("Models are known to their provider alone: check that its name is right.")
        return
    known = switched.scopes_of(load_deciding())
    if scope in known or (state is State.on and scope in {one.scope for one in switched.list_switches(connection)}):
        return
    msg = f"There is nothing called {scope} here."
    raise UsageError(msg, remedy=f"One of {', '.join(known)}, or model:NAME")


def _answer(
    ctx: typer.Context, request_id: str, *, gives: bool, reason: str, by: str, url: str | None, confirm: bool
) -> None:
    with _connected(ctx, by, url) as connection:
        request = _found(asked.find_requests(connection, request_id), request_id)
        Terminal().print(_indented(request.shown), soft_wrap=True)
        if confirm:
            _confirm()
        answered = asked.answer(connection, request, action_sha256=request.action_sha256, gives=gives, reason=reason)
    if not answered.counts:
        msg = f"This {'approval' if gives else 'denial'} does not count: {asked.WHY_NOT[answered.outcome]}."
        raise AcpError(msg, remedy="What waits for an answer: scripts/acp approvals")
    if gives:
        Progress().say(f"Approved by {answered.by}: it is judged once more, and released if nothing speaks against it.")
    else:
        Progress().say(f"Denied by {answered.by}.")


def _confirm() -> None:
    """Asks whoever sits at the terminal whether they approve what they were just shown."""
    if not _is_terminal():
        msg = "Nothing was approved: nobody is there to confirm it."
        raise UsageError(msg, remedy="Run it in a terminal, or with the whole id and --yes.")
    if not typer.confirm("Approve exactly this?", err=True):
        Progress().say("Nothing was answered: it waits on, until its time is over.")
        raise typer.Exit(1)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _is_whole(request_id: str) -> bool:
    try:
        return str(UUID(request_id)) == request_id.lower()
    except ValueError:
        return False


def _found(requests: Sequence[ApprovalRequest], request_id: str) -> ApprovalRequest:
    if len(requests) == 1:
        return requests[0]
    said = "could be several requests" if requests else "is no request's id, nor 8 or more characters of an open one's"
    msg = f"{request_id!r} {said}."
    raise UsageError(msg, remedy="scripts/acp approvals lists them.")


def _as_json(request: ApprovalRequest) -> dict[str, Any]:
    return {
        "approval_id": str(request.approval_id),
        "decision_id": str(request.decision_id),
        "action_sha256": request.action_sha256.hex(),
        "requested_at": _instant(request.requested_at),
        "expires_at": _instant(request.expires_at),
        "domain": request.domain,
        "playbook": request.playbook,
        "entity_id": request.entity_id,
        "proposed_by": request.proposed_by,
        "shown": request.shown,
    }


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in shown_lines(text).split("\n"))


def _connected(ctx: typer.Context, by: str, url: str | None) -> AbstractContextManager[psycopg.Connection[Any]]:
    """A session as a person: at the database that is named, or else at the local cloud's, by a login that it makes."""
    if url is not None:
        given = Database(lambda: url, application_name="acp", origin="--database-url", role="acp_command")
        return given.connection()
    if not by.strip():
        msg = "--by is empty: say who you are."
        raise UsageError(msg)
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    run = cloud.running()
    return psycopg.connect(database.person_url(cloud.postgres(run), run, by.strip()), autocommit=True)
