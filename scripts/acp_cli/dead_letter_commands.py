"""The commands dead-letters and redrive: they list what was given up on and send it again."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer

from acp_cli.status import duration
from control_plane.ops.dead_letters import DeadLetterFilter, read_dead_letters, redrive
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.ops.dead_letters import DeadLetter, RedriveReport
    from local_cloud.run_state import RunState

PANEL = "Signals"
_GREATEST_ID = 2**63 - 1
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
_SubscriptionOption = Annotated[
    str | None, typer.Option("--subscription", "-s", help="Of this subscription alone.", show_default=False)
]
_ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Whose reason holds this text, in any case.", show_default=False)
]


class NotRedrivenError(AcpError):
    """Raised when some of the requested dead letters were not redriven; all others were."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("dead-letters", rich_help_panel=PANEL)(dead_letters)
    app.command("redrive", rich_help_panel=PANEL)(redrive_)


def dead_letters(
    ctx: typer.Context,
    *,
    subscription: _SubscriptionOption = None,
    reason: _ReasonOption = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Only this one; may be repeated.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many to show.")] = 20,
    as_json: _JsonOption = False,
) -> None:
    """List the messages that were given up on, newest first: why, for whom, and since when."""
    chosen = DeadLetterFilter(_numbers(ids), subscription, reason)
    cloud, run = _running(ctx)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run)) as connection:
        # One more is read than is shown, to see whether there are more.
        found = read_dead_letters(connection, chosen, limit=limit + 1)
    newest = found[:limit]
    if as_json:
        _print_json([dataclasses.asdict(letter) for letter in newest])
        return
    console = Terminal()
    for letter in newest:
        console.print(_described(letter))
    if len(found) > limit:
        Progress().say(f"These are the newest {limit}; --limit shows more.")
    if newest:
        Progress().say("Once the cause is mended: scripts/acp redrive ID…, with --dry-run to see what it would do.")
    else:
        Progress().say("No dead letters." if chosen.is_empty else "There is no dead letter that fits.")


def redrive_(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="As `acp dead-letters` lists them.", show_default=False)
    ] = None,
    *,
    subscription: _SubscriptionOption = None,
    reason: _ReasonOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters there are.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be redriven.")] = False,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")] = "",
    by: Annotated[str, typer.Option("--by", envvar="USER", help="Who asks for it; kept, too.")] = "somebody",
    as_json: _JsonOption = False,
) -> None:
    """Send dead letters again, each with a fresh budget of attempts; their failures stay on record.

    Name ids, a subscription or a part of the reason (all that are given must fit), or --all.
    """
    chosen = DeadLetterFilter(_numbers(ids), subscription, reason)
    if chosen.is_empty != everything:
        msg = (
            "It is not said which dead letters to redrive."
            if chosen.is_empty
            else "--all is for all of them: leave it out, or leave out the ids, --subscription and --reason."
        )
        raise UsageError(msg, remedy="scripts/acp redrive ID…, --subscription NAME, --reason TEXT, or --all")
    if not by.strip():
        msg = "--by is empty: say who asks for the redrive."
        raise UsageError(msg)
    cloud, run = _running(ctx)
    with psycopg.connect(database.owner_url(cloud.postgres(run), run), autocommit=True) as connection:
        report = redrive(
            connection, chosen, requested_by=by.strip(), reason=because, everything=everything, dry_run=dry_run
        )
    if as_json:
        _print_json(report.to_dict())
    else:
        Terminal().print(_said(report), soft_wrap=True)
        if report.redriven and not dry_run:
            Progress().say("The next relay delivers them: scripts/acp relay starts one now.")
    if report.complaints:
        raise NotRedrivenError("\n".join(map(_sentence, report.complaints)))


def _numbers(ids: Sequence[str] | None) -> list[int] | None:
    """Returns the ids as numbers, or None if none is given. Raises UsageError that names the first bad one."""
    for text in ids or ():
        if not text.isascii() or not text.isdecimal() or int(text) > _GREATEST_ID:
            msg = f"{text!r} is no dead letter's id."
            raise UsageError(msg, remedy="scripts/acp dead-letters lists them.")
    return [int(text) for text in ids] if ids else None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def _described(letter: DeadLetter) -> str:
    """Returns a dead letter as rich markup: a line of facts, its event, its reason."""
    attempts = f"{letter.delivery_attempts} {'attempt' if letter.delivery_attempts == 1 else 'attempts'}"
    again = "" if letter.operation_id is None else f", of operation {letter.operation_id}"
    return (
        f"[bold]{letter.id}  {shown(letter.subscription)}[/]  {attempts}, {duration(letter.age_seconds)} ago  "
        f"{shown(letter.event_type)}\n"
        f"   [dim]event {letter.event_id}{again}[/]\n"
        f"   [red]{shown(letter.reason)}[/]"
    )


def _said(report: RedriveReport) -> str:
    total = sum(report.redriven.values())
    if not total:
        return "Nothing is redriven: no open dead letter fits." if not report.complaints else "Nothing is redriven."
    letters = f"{total} dead {'letter' if total == 1 else 'letters'}"
    by_subscription = ", ".join(f"{shown(name)} {count}" for name, count in report.redriven.items())
    if report.dry_run:
        return f"{letters} would be redriven: {by_subscription}"
    return f"[green]{letters} redriven[/]: {by_subscription}  [dim]operation {report.operation_id}[/]"


def _running(ctx: typer.Context) -> tuple[Cloud, RunState]:
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    return cloud, cloud.running()


def _print_json(content: dict[str, Any] | Sequence[Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
