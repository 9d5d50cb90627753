"""The commands of operations: plan one, look at the plan, start it, follow it, pause it, cancel it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from acp_cli.asking import ByOption, asking, why
from acp_cli.following import follow_operation, plan_operation
from acp_cli.status import duration
from local_cloud.errors import UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PANEL = "Signals"
_WIDTH = 24
_operations = typer.Typer(
    no_args_is_help=True, help="Redrives, replays and others: plan one, look at it, start it, follow it."
)
_Id = Annotated[UUID, typer.Argument(metavar="ID", help="As `acp operations list` shows it.")]
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
_BecauseOption = Annotated[str, typer.Option("--because", metavar="TEXT", help="Why; kept on record.")]
_FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Wait until it has ended, and show how far it is.")]
_RateOption = Annotated[
    float | None, typer.Option("--rate", help="Items per second, where the kind is paced.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_operations, name="operations", rich_help_panel=PANEL)


@_operations.command("list")
def list_(
    ctx: typer.Context,
    *,
    kind: Annotated[str | None, typer.Option("--kind", help="Of this kind alone.", show_default=False)] = None,
    subscription: Annotated[
        str | None, typer.Option("--subscription", "-s", help="Of this subscription alone.", show_default=False)
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="In this state alone, such as running.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="How many to show.")] = 20,
    as_json: _JsonOption = False,
) -> None:
    """List the operations, newest first."""
    with asking(ctx) as client:
        found = list(client.pages("/operations", most=limit, kind=kind, subscription=subscription, state=state))
    if as_json:
        _print_json(found)
        return
    console = Terminal()
    for operation in found:
        console.print(_line(operation), soft_wrap=True)
    if not found:
        Progress().say("No operations.")


@_operations.command("show")
def show(ctx: typer.Context, operation_id: _Id, *, follow: _FollowOption = False, as_json: _JsonOption = False) -> None:
    """Show one operation: its filter, its plan, how far it is, and what went wrong."""
    with asking(ctx) as client:
        operation = client.get(f"/operations/{operation_id}")
        if follow and operation["state"] == "running":
            operation = follow_operation(client, operation)
    _report(operation, as_json=as_json)


@_operations.command("plan")
def plan(
    ctx: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="redrive, replay, backfill, retention, erasure or rebuild.")
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="The filter, such as subscription=signal_lab.", show_default=False),
    ] = None,
    *,
    rate: _RateOption = None,
    because: _BecauseOption = "",
    by: ByOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Plan an operation: count what it would do, and do nothing yet."""
    wanted, recorded = _filter(fields or ()), why(because, by)
    with asking(ctx) as client:
        planned = plan_operation(client, kind, wanted, reason=recorded, rate=rate)
    show_plan(planned, as_json=as_json)


@_operations.command("start")
def start(
    ctx: typer.Context,
    operation_id: _Id,
    plan_hash: Annotated[str, typer.Argument(metavar="HASH", help="The hash of the plan that you have looked at.")],
    *,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")],
    rate: _RateOption = None,
    by: ByOption = None,
    follow: _FollowOption = False,
    as_json: _JsonOption = False,
) -> None:
    """Start what was planned. OperationsFunction does it, whether this command waits for it or not."""
    body = {"plan_hash": plan_hash, "reason": why(because, by)} | ({} if rate is None else {"rate": rate})
    with asking(ctx) as client:
        client.send("POST", f"/operations/{operation_id}/start", body)
        operation = client.get(f"/operations/{operation_id}")
        if follow:
            operation = follow_operation(client, operation)
    _report(operation, as_json=as_json)


@_operations.command("pause")
def pause(ctx: typer.Context, operation_id: _Id, *, because: _BecauseOption = "", as_json: _JsonOption = False) -> None:
    """Pause an operation after the step that is under way; what it has promised already goes out."""
    _change(ctx, operation_id, "pause", because, as_json=as_json)


@_operations.command("resume")
def resume(
    ctx: typer.Context, operation_id: _Id, *, because: _BecauseOption = "", as_json: _JsonOption = False
) -> None:
    """Let a paused or failed operation go on where it was."""
    _change(ctx, operation_id, "resume", because, as_json=as_json)


@_operations.command("rate")
def rate_(
    ctx: typer.Context,
    operation_id: _Id,
    rate: Annotated[float, typer.Argument(metavar="RATE", help="Items per second.")],
    *,
    because: _BecauseOption = "",
    as_json: _JsonOption = False,
) -> None:
    """Change how fast an operation goes; it acts within a minute."""
    _change(ctx, operation_id, "rate", because, as_json=as_json, method="PUT", rate=rate)


@_operations.command("cancel")
def cancel(
    ctx: typer.Context, operation_id: _Id, *, because: _BecauseOption = "", as_json: _JsonOption = False
) -> None:
    """End an operation. What is promised and not under way is taken back; what is done stays done."""
    _change(ctx, operation_id, "cancel", because, as_json=as_json)


@_operations.command("accept")
def accept(
    ctx: typer.Context,
    operation_id: _Id,
    *,
    because: _BecauseOption = "",
    by: ByOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Accept that a rebuild's tables differ from those in use; they take their place then."""
    _change(ctx, operation_id, "accept", because, by, as_json=as_json)


def _filter(fields: Sequence[str]) -> dict[str, Any]:
    """Returns the filter; a value that is JSON other than text is read as such."""
    chosen: dict[str, Any] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or name in chosen:
            msg = f"{field!r} is {'given twice' if equals else 'no FIELD=VALUE'}."
            raise UsageError(msg, remedy='scripts/acp operations plan redrive subscription=signal_lab "ids=[1, 2]"')
        try:
            chosen[name] = json.loads(value)
        except ValueError:
            chosen[name] = value
    return chosen


def _change(
    ctx: typer.Context,
    operation_id: UUID,
    what: str,
    because: str,
    by: str | None = None,
    *,
    as_json: bool,
    method: str = "POST",
    **more: Any,
) -> None:
    """Changes an operation and shows it."""
    body = {"reason": why(because, by), **more}
    with asking(ctx) as client:
        changed = client.send(method, f"/operations/{operation_id}/{what}", body)
    _report(changed, as_json=as_json)


def show_plan(planned: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints a plan, and how it is started."""
    _report(planned, as_json=as_json)
    Progress().say(
        f"Start it within an hour: scripts/acp operations start {planned['operation_id']} {planned['plan_hash']} "
        "--because TEXT"
    )


def _report(operation: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        _print_json(operation)
        return
    console = Terminal()
    console.print(_line(operation), soft_wrap=True)
    for name, value in {"filter": operation["filter"], **operation["plan"]}.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        console.print(f"   [dim]{shown(name)}[/]  {shown(text)}", soft_wrap=True)
    if deliveries := operation.get("deliveries"):
        told = ", ".join(
            f"{name.replace('_', ' ')} {'more than 100,000' if count is None else f'{count:,}'}"
            for name, count in deliveries.items()
        )
        console.print(f"   [dim]its messages[/]  {told}", soft_wrap=True)
    if operation["plan_hash"] is not None:
        console.print(f"   [dim]plan hash[/]  {operation['plan_hash']}", soft_wrap=True)
    for name, who, reason in (
        ("requested by", operation["requested_by"], "" if operation["started_by"] else operation["reason"]),
        ("started by", operation["started_by"], operation["reason"]),
    ):
        if who:
            console.print(f"   [dim]{name}[/]  {shown(who)}{f': {shown(reason)}' if reason else ''}", soft_wrap=True)


def _line(operation: Mapping[str, Any]) -> str:
    """Returns an operation as a line of rich markup, with its progress bar, its rate and the time that is left."""
    done, skipped, total, rate = (operation[name] for name in ("done", "skipped", "total", "rate"))
    filled = 0 if not total else min(_WIDTH, _WIDTH * (done + skipped) // total)
    about = f" of {shown(operation['subscription'])}" if operation["subscription"] else ""
    parts = [
        f"[bold]{operation['kind']}[/]{about}  {operation['operation_id']}  [bold]{operation['state']}[/]",
        f"{'█' * filled}{'░' * (_WIDTH - filled)} {done:,} of {total:,}"
        + (f", {skipped:,} skipped" if skipped else ""),
    ]
    if operation["state"] == "running" and rate:
        parts.append(f"{rate:g} a second, {duration(max(total - done - skipped, 0) / rate)} left")
    if operation["is_stalled"]:
        parts.append("[yellow]stalled[/]")
    if operation["error"]:
        parts.append(f"[red]{shown(operation['error'])}[/]")
    return "  ".join(parts)


def _print_json(content: Mapping[str, Any] | Sequence[Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
