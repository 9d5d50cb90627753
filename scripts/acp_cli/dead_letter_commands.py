"""The commands dead-letters, redrive and discard: they list what was given up on, send it again, or let it go."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import psycopg
import typer

from acp_cli.status import duration
from control_plane.ops.dead_letters import DeadLetterFilter, discard, read_content, read_dead_letters, redrive
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.ops.dead_letters import DeadLetter, DiscardReport, RedriveReport
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


_AGE = re.compile(r"([0-9]{1,6})(s|min|h|d)")
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


class Kind(StrEnum):
    """Who gave up."""

    RELAY = "relay"
    CONSUMER = "consumer"
    INVOCATION = "invocation"


_KindOption = Annotated[Kind | None, typer.Option("--kind", help="Given up on by whom.", show_default=False)]
_OlderOption = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Such as 30min, 2h, 5d.", show_default=False)
]
_NewerOption = Annotated[
    str | None, typer.Option("--newer-than", metavar="AGE", help="Such as 30min, 2h, 5d.", show_default=False)
]
_EventOption = Annotated[str | None, typer.Option("--event", metavar="ID", help="Of this event.", show_default=False)]
_TraceOption = Annotated[str | None, typer.Option("--trace", metavar="ID", help="Of this trace.", show_default=False)]


class NotDiscardedError(AcpError):
    """Raised when some of the requested dead letters were not discarded; all others were."""


class NotRedrivenError(AcpError):
    """Raised when some of the requested dead letters were not redriven; all others were."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("dead-letters", rich_help_panel=PANEL)(dead_letters)
    app.command("redrive", rich_help_panel=PANEL)(redrive_)
    app.command("discard", rich_help_panel=PANEL)(discard_)


def dead_letters(
    ctx: typer.Context,
    *,
    subscription: _SubscriptionOption = None,
    reason: _ReasonOption = None,
    kind: _KindOption = None,
    older_than: _OlderOption = None,
    newer_than: _NewerOption = None,
    event: _EventOption = None,
    trace: _TraceOption = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Only this one; may be repeated.", show_default=False)
    ] = None,
    below: Annotated[
        str | None, typer.Option("--below", metavar="ID", help="From below this one on.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many to show.")] = 20,
    body: Annotated[bool, typer.Option("--body", help="Show what the message of the one --id held.")] = False,
    as_json: _JsonOption = False,
) -> None:
    """List the messages that were given up on, newest first: why, by and for whom, and since when."""
    chosen = _filter(ids, subscription, reason, kind, older_than, newer_than, event, trace)
    if body and len(chosen.ids or ()) != 1:
        msg = "--body is for one dead letter."
        raise UsageError(msg, remedy="Name it: scripts/acp dead-letters --id ID --body")
    page = _numbers([below] if below else None)
    cloud, run = _running(ctx)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run)) as connection:
        if body:
            _print_content(connection, (chosen.ids or [0])[0])
            return
        # One more is read than is shown, to see whether there are more.
        found = read_dead_letters(connection, chosen, limit=limit + 1, below=page[0] if page else None)
    newest = found[:limit]
    if as_json:
        _print_json([letter.to_dict() for letter in newest])
        return
    console = Terminal()
    for letter in newest:
        console.print(_described(letter))
    if len(found) > limit:
        Progress().say(f"These are the newest {limit}; --limit shows more, --below {newest[-1].id} the next ones.")
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
    kind: _KindOption = None,
    older_than: _OlderOption = None,
    newer_than: _NewerOption = None,
    event: _EventOption = None,
    trace: _TraceOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters there are.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be redriven.")] = False,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")] = "",
    by: Annotated[str, typer.Option("--by", envvar="USER", help="Who asks for it; kept, too.")] = "somebody",
    as_json: _JsonOption = False,
) -> None:
    """Send dead letters again, each with a fresh budget of attempts; their failures stay on record.

    Name ids, a subscription, a part of the reason and the like (all that are given must fit), or --all. What the outbox
    does not hold stays; it can only be discarded.
    """
    chosen = _filter(ids, subscription, reason, kind, older_than, newer_than, event, trace)
    _check_asked(chosen, "redrive", everything=everything, by=by)
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


def discard_(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="As `acp dead-letters` lists them.", show_default=False)
    ] = None,
    *,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the letters.")],
    subscription: _SubscriptionOption = None,
    reason: _ReasonOption = None,
    kind: _KindOption = None,
    older_than: _OlderOption = None,
    newer_than: _NewerOption = None,
    event: _EventOption = None,
    trace: _TraceOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters there are.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be discarded.")] = False,
    by: Annotated[str, typer.Option("--by", envvar="USER", help="Who asks for it; kept, too.")] = "somebody",
    as_json: _JsonOption = False,
) -> None:
    """Let dead letters go that nobody needs any more; they stay on record, with the reason, and are never sent again.

    Name ids, a subscription, a part of the reason and the like (all that are given must fit), or --all.
    """
    chosen = _filter(ids, subscription, reason, kind, older_than, newer_than, event, trace)
    _check_asked(chosen, "discard", everything=everything, by=by)
    if not because.strip():
        msg = "--because is empty: say why they are discarded."
        raise UsageError(msg)
    cloud, run = _running(ctx)
    with psycopg.connect(database.owner_url(cloud.postgres(run), run), autocommit=True) as connection:
        report = discard(
            connection, chosen, requested_by=by.strip(), reason=because, everything=everything, dry_run=dry_run
        )
    if as_json:
        _print_json(report.to_dict())
    else:
        Terminal().print(_discarded(report), soft_wrap=True)
    if report.not_open:
        numbers = ", ".join(map(str, report.not_open))
        msg = f"No open dead letter has one of these ids and fits: {numbers}."
        raise NotDiscardedError(msg)


def _filter(  # noqa: PLR0917 - in the order of the options
    ids: Sequence[str] | None,
    subscription: str | None,
    reason: str | None,
    kind: Kind | None,
    older_than: str | None,
    newer_than: str | None,
    event: str | None,
    trace: str | None,
) -> DeadLetterFilter:
    return DeadLetterFilter(
        _numbers(ids),
        subscription,
        reason,
        None if kind is None else kind.value,
        since=_ago(newer_than, "--newer-than"),
        until=_ago(older_than, "--older-than"),
        event_id=_id(event, "--event"),
        trace_id=_id(trace, "--trace"),
    )


def _check_asked(chosen: DeadLetterFilter, verb: str, *, everything: bool, by: str) -> None:
    if chosen.is_empty != everything:
        msg = (
            f"It is not said which dead letters to {verb}."
            if chosen.is_empty
            else "--all is for all of them: leave it out, or leave out the ids, --subscription, --reason and the like."
        )
        raise UsageError(msg, remedy=f"scripts/acp {verb} ID…, --subscription NAME, --reason TEXT, or --all")
    if not by.strip():
        msg = f"--by is empty: say who asks for the {verb}."
        raise UsageError(msg)


def _ago(age: str | None, option: str) -> datetime | None:
    """Returns the instant that long ago. Raises UsageError for what is no age."""
    if age is None:
        return None
    found = _AGE.fullmatch(age.strip())
    if found is None:
        msg = f"{option} is {age!r}, which is no age."
        raise UsageError(msg, remedy="Give a number and s, min, h or d: 30min, 2h, 5d.")
    try:
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _id(text: str | None, option: str) -> UUID | None:
    try:
        return None if text is None else UUID(text)
    except ValueError:
        msg = f"{option} is {text!r}, which is no id."
        raise UsageError(msg, remedy="scripts/acp dead-letters --json shows the ids of events and traces.") from None


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
    by = "" if letter.kind == "relay" else f" ({letter.kind})"
    source = f"event {letter.event_id}" if letter.event_id else f"message {shown(letter.message_id or '')}"
    whom = shown(letter.subscription or letter.queue or "")
    age = f"{duration(letter.age_seconds)} ago"
    lines = [
        f"[bold]{letter.id}  {whom}[/]{by}  {attempts}, {age}  {shown(letter.event_type or '')}",
        f"   [dim]{source}{again}[/]",
        f"   [red]{shown(letter.reason)}[/]",
    ]
    if not letter.is_redrivable and letter.body_start is not None:
        start = shown(letter.body_start.decode("utf-8", "replace"))
        lines.append(f"   not in the outbox, so it cannot be redriven: {letter.body_bytes} bytes, {start}")
    return "\n".join(line.rstrip() for line in lines)


def _print_content(connection: psycopg.Connection[Any], letter_id: int) -> None:
    content = read_content(connection, letter_id)
    if content is None or content.body is None:
        msg = f"There is no body of a dead letter {letter_id}."
        raise UsageError(
            msg, remedy="The relay's messages are in the outbox: scripts/acp trace EVENT_ID shows the event."
        )
    if sys.stdout.isatty():
        Terminal().print(shown(content.body.decode("utf-8", "replace")), soft_wrap=True)
    else:
        sys.stdout.buffer.write(content.body)


def _discarded(report: DiscardReport) -> str:
    total = sum(report.discarded.values())
    if not total:
        return "Nothing is discarded: no open dead letter fits."
    letters = f"{total} dead {'letter' if total == 1 else 'letters'}"
    by_subscription = ", ".join(f"{shown(name)} {count}" for name, count in report.discarded.items())
    if report.dry_run:
        return f"{letters} would be discarded: {by_subscription}"
    return f"[green]{letters} discarded[/]: {by_subscription}  [dim]operation {report.operation_id}[/]"


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
