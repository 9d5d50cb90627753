"""The commands of operations: plan one, look at the plan, start it, follow it, pause it, cancel it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import psycopg
import typer

from acp_cli.status import duration
from control_plane.operations import service
from control_plane.operations.engine import Engine
from control_plane.operations.history.rebuild import accept as accept_rebuild
from control_plane.operations.kind import OperationNotFound, State
from control_plane.operations.rows import read_operation
from control_plane.platform.telemetry import Telemetry
from domains import load_kinds
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.operations.kind import Operation
    from control_plane.operations.service import Change

PANEL = "Signals"
_WIDTH = 24
_operations = typer.Typer(
    no_args_is_help=True, help="Redrives, replays and others: plan one, look at it, start it, follow it."
)
_Id = Annotated[UUID, typer.Argument(metavar="ID", help="As `acp operations list` shows it.")]
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
_ByOption = Annotated[str, typer.Option("--by", envvar="USER", help="Who asks for it; kept with the operation.")]
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
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="How many to show.")] = 20,
    as_json: _JsonOption = False,
) -> None:
    """List the operations, newest first."""
    with _connection(ctx, may_change=False) as connection:
        found = service.list_operations(connection, kind=kind, limit=limit)
    if as_json:
        _print_json([operation.to_dict() for operation in found])
        return
    console = Terminal()
    for operation in found:
        console.print(_line(operation), soft_wrap=True)
    if not found:
        Progress().say("No operations.")


@_operations.command("show")
def show(ctx: typer.Context, operation_id: _Id, *, as_json: _JsonOption = False) -> None:
    """Show one operation: its filter, its plan, how far it is, and what went wrong."""
    with _connection(ctx, may_change=False) as connection:
        _report(_read(connection, operation_id), as_json=as_json)


@_operations.command("plan")
def plan(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="redrive, replay, retention, erasure or rebuild.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE", help="The filter, such as subscription=signal_lab.", show_default=False),
    ] = None,
    *,
    rate: _RateOption = None,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")] = "",
    by: _ByOption = "somebody",
    as_json: _JsonOption = False,
) -> None:
    """Plan an operation: count what it would do, and do nothing yet."""
    kinds = load_kinds()
    with _connection(ctx) as connection:
        requested = service.request_operation(
            connection, kinds, kind=kind, wanted=_filter(fields or ()), requested_by=by, reason=because, rate=rate
        )
        engine = Engine(connection, kinds, _quiet())
        while _read(connection, requested.after.operation_id).state is State.PLANNING:
            if not engine.work(only=requested.after.operation_id):
                break  # OperationsFunction plans it already, or planning has failed and waits.
        planned = _read(connection, requested.after.operation_id)
    _report(planned, as_json=as_json)
    if planned.state is State.PLANNED:
        Progress().say(
            f"Start it within an hour: scripts/acp operations start {planned.operation_id} {planned.plan_hash} "
            "--because TEXT"
        )


@_operations.command("start")
def start(
    ctx: typer.Context,
    operation_id: _Id,
    plan_hash: Annotated[str, typer.Argument(metavar="HASH", help="The hash of the plan that you have looked at.")],
    *,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")],
    rate: _RateOption = None,
    by: _ByOption = "somebody",
    as_json: _JsonOption = False,
) -> None:
    """Start what was planned. Its first steps are made at once, OperationsFunction makes the others."""
    with _connection(ctx) as connection:
        service.start_operation(connection, operation_id, plan_hash=plan_hash, started_by=by, reason=because, rate=rate)
        engine = Engine(connection, load_kinds(), _quiet())
        while engine.work(only=operation_id):
            pass
        _report(_read(connection, operation_id), as_json=as_json)


@_operations.command("pause")
def pause(ctx: typer.Context, operation_id: _Id, *, as_json: _JsonOption = False) -> None:
    """Pause an operation after the step that is under way; what it has promised already goes out."""
    with _connection(ctx) as connection:
        _changed(service.pause_operation(connection, operation_id, by="acp"), as_json=as_json)


@_operations.command("resume")
def resume(ctx: typer.Context, operation_id: _Id, *, as_json: _JsonOption = False) -> None:
    """Let a paused or failed operation go on where it was."""
    with _connection(ctx) as connection:
        _changed(service.resume_operation(connection, operation_id, by="acp"), as_json=as_json)


@_operations.command("rate")
def rate_(
    ctx: typer.Context,
    operation_id: _Id,
    rate: Annotated[float, typer.Argument(metavar="RATE", help="Items per second.")],
    *,
    as_json: _JsonOption = False,
) -> None:
    """Change how fast an operation goes; it acts within a minute."""
    with _connection(ctx) as connection:
        _changed(service.set_rate(connection, operation_id, rate, by="acp"), as_json=as_json)


@_operations.command("cancel")
def cancel(ctx: typer.Context, operation_id: _Id, *, as_json: _JsonOption = False) -> None:
    """End an operation. What is promised and not under way is taken back; what is done stays done."""
    with _connection(ctx) as connection:
        _changed(service.cancel_operation(connection, load_kinds(), operation_id, by="acp"), as_json=as_json)


@_operations.command("accept")
def accept(ctx: typer.Context, operation_id: _Id, *, by: _ByOption = "somebody", as_json: _JsonOption = False) -> None:
    """Accept that a rebuild's tables differ from those in use; they take their place then."""
    with _connection(ctx) as connection:
        accept_rebuild(connection, operation_id, accepted_by=by)
        _report(_read(connection, operation_id), as_json=as_json)


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


def _read(connection: psycopg.Connection[Any], operation_id: UUID) -> Operation:
    operation = read_operation(connection, operation_id)
    if operation is None:
        raise OperationNotFound(f"there is no operation {operation_id}: scripts/acp operations list")
    return operation


def _changed(change: Change, *, as_json: bool) -> None:
    _report(change.after, as_json=as_json)


def _report(operation: Operation, *, as_json: bool) -> None:
    if as_json:
        _print_json(operation.to_dict())
        return
    console = Terminal()
    console.print(_line(operation), soft_wrap=True)
    for name, value in {"filter": operation.filter, **operation.plan}.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        console.print(f"   [dim]{shown(name)}[/]  {shown(text)}", soft_wrap=True)
    if operation.plan_hash is not None:
        console.print(f"   [dim]plan hash[/]  {operation.plan_hash}", soft_wrap=True)
    for name, who, why in (
        ("requested by", operation.requested_by, "" if operation.started_by else operation.reason),
        ("started by", operation.started_by, operation.reason),
    ):
        if who:
            console.print(f"   [dim]{name}[/]  {shown(who)}{f': {shown(why)}' if why else ''}", soft_wrap=True)


def _line(operation: Operation) -> str:
    """Returns an operation as a line of rich markup, with its progress bar, its rate and the time that is left."""
    ended = operation.done + operation.skipped
    filled = 0 if not operation.total else min(_WIDTH, _WIDTH * ended // operation.total)
    about = f" of {shown(operation.subscription)}" if operation.subscription else ""
    parts = [
        f"[bold]{operation.kind}[/]{about}  {operation.operation_id}  [bold]{operation.state}[/]",
        f"{'█' * filled}{'░' * (_WIDTH - filled)} {operation.done:,} of {operation.total:,}"
        + (f", {operation.skipped:,} skipped" if operation.skipped else ""),
    ]
    if operation.state is State.RUNNING and operation.rate:
        left = duration(max(operation.total - ended, 0) / operation.rate)
        parts.append(f"{operation.rate:g} a second, {left} left")
    if operation.is_stalled:
        parts.append("[yellow]stalled[/]")
    if operation.error:
        parts.append(f"[red]{shown(operation.error)}[/]")
    return "  ".join(parts)


def _quiet() -> Telemetry:
    """Returns a telemetry that logs nothing: what a step comes to is read from the operation."""
    telemetry = Telemetry("acp")
    telemetry.logger.setLevel("CRITICAL")
    return telemetry


def _connection(ctx: typer.Context, *, may_change: bool = True) -> psycopg.Connection[Any]:
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    run = cloud.running()
    url = database.owner_url if may_change else database.reader_url
    return psycopg.connect(url(cloud.postgres(run), run), autocommit=True)


def _print_json(content: dict[str, Any] | Sequence[Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
