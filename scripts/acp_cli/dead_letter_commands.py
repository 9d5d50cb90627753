"""The commands dead-letters and discard: they list what was given up on, or let it go."""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from itertools import batched
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from acp_cli.asking import ByOption, asking, deployment, is_confirmed, why
from acp_cli.letter_filters import (
    EventOption,
    EverythingOption,
    IdsArgument,
    KindOption,
    NewerOption,
    OlderOption,
    ReasonOption,
    SubscriptionOption,
    TraceOption,
    check_asked,
    chosen_letters,
    letter_ids,
)
from acp_cli.status import duration
from acp_client.client import ApiError
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acp_cli.letter_filters import Letters
    from acp_client.client import Client

PANEL = "Signals"
_DISCARDED_AT_A_TIME: Final = 10_000
"""As many ids as the API takes."""
_SAMPLE: Final = 5
"""How many of the newest are shown before it is asked whether to discard them all."""
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]


class NotDiscardedError(AcpError):
    """Raised when some of the requested dead letters were not discarded; all others were."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("dead-letters", rich_help_panel=PANEL)(dead_letters)
    app.command("discard", rich_help_panel=PANEL)(discard)


def dead_letters(
    ctx: typer.Context,
    *,
    subscription: SubscriptionOption = None,
    reason: ReasonOption = None,
    kind: KindOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    event: EventOption = None,
    trace: TraceOption = None,
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
    chosen = chosen_letters(ids, subscription, reason, kind, older_than, newer_than, event, trace)
    if body and len(chosen.ids or ()) != 1:
        msg = "--body is for one dead letter."
        raise UsageError(msg, remedy="Name it: scripts/acp dead-letters --id ID --body")
    page = letter_ids([below] if below else None)
    with asking(ctx) as client:
        if body:
            _print_content(client, (chosen.ids or [0])[0])
            return
        # One more is read than is shown, to see whether there are more.
        found = list(chosen.read(client, most=limit + 1, below=page[0] if page else None))
    newest = found[:limit]
    if as_json:
        _print_json(newest)
        return
    console = Terminal()
    for letter in newest:
        console.print(_described(letter))
    if len(found) > limit:
        Progress().say(f"These are the newest {limit}; --limit shows more, --below {newest[-1]['id']} the next ones.")
    if newest:
        Progress().say("Once the cause is mended: scripts/acp redrive ID…, with --dry-run to see what it would do.")
    else:
        Progress().say("No dead letters." if chosen.is_empty else "There is no dead letter that fits.")


def discard(
    ctx: typer.Context,
    ids: IdsArgument = None,
    *,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the letters.")],
    subscription: SubscriptionOption = None,
    reason: ReasonOption = None,
    kind: KindOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    event: EventOption = None,
    trace: TraceOption = None,
    everything: EverythingOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be discarded.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, for scripts.")] = False,
    by: ByOption = None,
    as_json: _JsonOption = False,
) -> None:
    """Let dead letters go that nobody needs any more; they stay on record, with the reason, and are never sent again.

    Name ids, a subscription, a part of the reason and the like (all that are given must fit), or --all. Where ids do
    not say it alone, how many there are and the newest of them are shown first, and you are asked; exactly the letters
    that were found then are discarded.
    """
    chosen = chosen_letters(ids, subscription, reason, kind, older_than, newer_than, event, trace)
    check_asked(chosen, "discard", everything=everything)
    if not because.strip():
        msg = "--because is empty: say why they are discarded."
        raise UsageError(msg)
    recorded = why(because, by)
    with asking(ctx) as client:
        there, sample = _planned(client, chosen)
        report: dict[str, Any] = {
            "dry_run": dry_run,
            "operation_id": None,
            "operation_ids": [],
            "discarded": dict(Counter(there.values())),
            "not_open": [number for number in chosen.ids or () if number not in there],
        }
        if chosen.ids is None and there and not yes:
            _show(there, sample)
            if not dry_run:
                _confirm(len(there), deployment(ctx))
        if not dry_run:
            report |= _discard(client, there, recorded)
    if as_json:
        _print_json(report)
    else:
        Terminal().print(_discarded(report), soft_wrap=True)
    if report["not_open"]:
        numbers = ", ".join(map(str, report["not_open"]))
        msg = f"No open dead letter has one of these ids and fits: {numbers}."
        raise NotDiscardedError(msg)


def _planned(client: Client, chosen: Letters) -> tuple[dict[int, str], Sequence[Mapping[str, Any]]]:
    """Returns whose letter each of the chosen ones is, by its id, and the newest of them as the API lists them."""
    there: dict[int, str] = {}
    sample: list[Mapping[str, Any]] = []
    for letter in chosen.read(client):
        there[letter["id"]] = letter["subscription"] or letter["queue"]
        if len(sample) < _SAMPLE:
            sample.append(letter)
    return there, sample


def _show(there: Mapping[int, str], sample: Sequence[Mapping[str, Any]]) -> None:
    """Shows what is about to be discarded, beside the command's own output."""
    console = Terminal(stderr=True)
    for letter in sample:
        console.print(_described(letter))
    if len(there) > len(sample):
        Progress().say(f"These are the newest {len(sample)} of {len(there):,}; acp dead-letters lists all.")


def _confirm(count: int, where: str) -> None:
    """Asks whoever sits at the terminal whether to discard what they were just shown."""
    question = f"Discard {'this dead letter' if count == 1 else f'these {count:,} dead letters'} of {where}?"
    remedy = "Run it in a terminal, name the ids, or say --yes; --dry-run shows how many there are."
    if not is_confirmed(question, undone="Nothing was discarded", remedy=remedy):
        Progress().say("Nothing was discarded.")
        raise typer.Exit(1)


def _discard(client: Client, there: Mapping[int, str], reason: str) -> dict[str, Any]:
    """Discards these letters, and returns by which operations, and how many of whom."""
    operation_ids: list[str] = []
    discarded: Counter[str] = Counter()
    for some in batched(there, _DISCARDED_AT_A_TIME, strict=False):
        try:
            report = client.send("POST", "/dead-letters/discard", {"ids": list(some), "reason": reason})
        except ApiError as error:
            if error.status != 409:
                raise
            continue  # Somebody else has discarded or redriven all of them since they were listed.
        operation_ids.append(report["operation_id"])
        discarded.update(report["discarded"])
    first = next(iter(operation_ids), None)
    return {"operation_id": first, "operation_ids": operation_ids, "discarded": dict(discarded)}


def _described(letter: Mapping[str, Any]) -> str:
    """Returns a dead letter as rich markup: a line of facts, its event, its reason."""
    attempts = f"{letter['delivery_attempts']} {'attempt' if letter['delivery_attempts'] == 1 else 'attempts'}"
    again = "" if letter["operation_id"] is None else f", of operation {letter['operation_id']}"
    by = "" if letter["kind"] == "relay" else f" ({letter['kind']})"
    source = f"event {letter['event_id']}" if letter["event_id"] else f"message {shown(letter['message_id'] or '')}"
    whom = shown(letter["subscription"] or letter["queue"] or "")
    age = f"{duration(letter['age_seconds'])} ago"
    lines = [
        f"[bold]{letter['id']}  {whom}[/]{by}  {attempts}, {age}  {shown(letter['event_type'] or '')}",
        f"   [dim]{source}{again}[/]",
        f"   [red]{shown(letter['reason'])}[/]",
    ]
    if not letter["is_redrivable"] and letter["body_start"] is not None:
        start = shown(letter["body_start"])
        lines.append(f"   not in the outbox, so it cannot be redriven: {letter['body_bytes']} bytes, {start}")
    return "\n".join(line.rstrip() for line in lines)


def _print_content(client: Client, letter_id: int) -> None:
    letter: dict[str, Any] = {}
    try:
        letter = client.get(f"/dead-letters/{letter_id}")
    except ApiError as error:
        if error.status != 404:
            raise
    if letter.get("body") is None and letter.get("body_base64") is None:
        msg = f"There is no body of a dead letter {letter_id}."
        raise UsageError(
            msg, remedy="The relay's messages are in the outbox: scripts/acp trace EVENT_ID shows the event."
        )
    body = letter["body"].encode() if letter["body"] is not None else base64.b64decode(letter["body_base64"])
    if sys.stdout.isatty():
        Terminal().print(shown(body.decode("utf-8", "replace")), soft_wrap=True)
    else:
        sys.stdout.buffer.write(body)


def _discarded(report: Mapping[str, Any]) -> str:
    total = sum(report["discarded"].values())
    if not total:
        return "Nothing is discarded: no open dead letter fits."
    letters = f"{total} dead {'letter' if total == 1 else 'letters'}"
    by_subscription = ", ".join(f"{shown(name)} {count}" for name, count in report["discarded"].items())
    if report["dry_run"]:
        return f"{letters} would be discarded: {by_subscription}"
    return f"[green]{letters} discarded[/]: {by_subscription}  [dim]operation {', '.join(report['operation_ids'])}[/]"


def _print_json(content: Mapping[str, Any] | Sequence[Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
