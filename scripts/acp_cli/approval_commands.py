"""approvals, approve, deny, switch, switches: what people decide themselves, by their token or their own login."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from acp_cli.asking import is_confirmed, is_local
from acp_cli.deciders import deciding_as, is_whole
from acp_cli.status import duration
from control_plane.decisions import switches as switched
from domains import load_deciding
from local_cloud.errors import UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown, shown_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acp_cli.deciders import Decider
    from control_plane.decisions.approvals import ApprovalRequest

PANEL = "Decisions"
_ELSEWHERE = "; or --force, where the deployment has what is not in this checkout"
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
_ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept on record.")]
_ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="NAME",
        help="On the local cloud: a login of this name at its database, in place of its token.",
        show_default=False,
    ),
]
_UrlOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="ACP_DATABASE_URL",
        metavar="URL",
        help="A deployed database, by your own login there, in place of a token.",
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
    ctx: typer.Context, *, by: _ByOption = None, url: _UrlOption = None, as_json: _JsonOption = False
) -> None:
    """List the actions that people are asked to approve, the most urgent first. Silence is a no."""
    with deciding_as(ctx, by, url) as decider:
        requests = decider.open_requests()
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
    by: _ByOption = None,
    url: _UrlOption = None,
) -> None:
    """Show an action and, once you confirm it, approve exactly that.

    It is judged again, and released if nothing speaks against it now.
    """
    if yes and not is_whole(request_id):
        msg = f"{request_id!r} is not a whole id, and with --yes nobody is asked whether it is the right one."
        raise UsageError(msg, remedy="scripts/acp approvals --json has whole ids.")
    _answer(ctx, request_id, gives=True, reason=reason, by=by, url=url, confirm=not yes)


def deny(
    ctx: typer.Context,
    request_id: _IdArgument,
    *,
    reason: _ReasonOption = "",
    by: _ByOption = None,
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
    force: Annotated[
        bool, typer.Option("--force", help="Even what is not known here: a deployment may have plug-ins of its own.")
    ] = False,
    by: _ByOption = None,
    url: _UrlOption = None,
) -> None:
    """Switch a scope off, or on again. Once it returns, nothing that the scope covers is released or executed."""
    if not switched.is_scope(scope):
        msg = f"{scope!r} is no scope."
        raise UsageError(msg, remedy="all, domain:NAME, playbook:NAME, agent:NAME, action:TYPE or model:NAME")
    with deciding_as(ctx, by, url) as decider:
        _check_scope(decider, scope, state, force=force, remedy="" if is_local(ctx) else _ELSEWHERE)
        who = decider.set_switch(scope, is_off=state is State.off, reason=reason)
    said = f"until scripts/acp switch on {scope}" if state is State.off else "again"
    Progress().say(f"{scope} is {state} {said} (by {who}).")


def switches(ctx: typer.Context, *, by: _ByOption = None, url: _UrlOption = None, as_json: _JsonOption = False) -> None:
    """List what was ever switched, what is off first."""
    with deciding_as(ctx, by, url) as decider:
        found = decider.list_switches()
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


def _check_scope(decider: Decider, scope: str, state: State, *, force: bool, remedy: str) -> None:
    """Raises UsageError for what no plug-in is called; what was ever switched can be switched on again."""
    if scope.startswith("model:"):
        Progress().say("Models are known to their provider alone: check that its name is right.")
        return
    known = switched.scopes_of(load_deciding())
    if force or scope in known:
        return
    if state is State.on and scope in {one.scope for one in decider.list_switches()}:
        return
    msg = f"There is nothing called {scope} here."
    raise UsageError(msg, remedy=f"One of {', '.join(known)}, or model:NAME{remedy}")


def _answer(
    ctx: typer.Context, request_id: str, *, gives: bool, reason: str, by: str | None, url: str | None, confirm: bool
) -> None:
    with deciding_as(ctx, by, url) as decider:
        request = _found(decider.find_requests(request_id), request_id)
        Terminal().print(_indented(request.shown), soft_wrap=True)
        if confirm:
            _confirm()
        who = decider.answer(request, gives=gives, reason=reason)
    if gives:
        Progress().say(f"Approved by {who}: it is judged once more, and released if nothing speaks against it.")
    else:
        Progress().say(f"Denied by {who}.")


def _confirm() -> None:
    """Asks whoever sits at the terminal whether they approve what they were just shown."""
    remedy = "Run it in a terminal, or with the whole id and --yes."
    if not is_confirmed("Approve exactly this?", undone="Nothing was approved", remedy=remedy):
        Progress().say("Nothing was answered: it waits on, until its time is over.")
        raise typer.Exit(1)


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
