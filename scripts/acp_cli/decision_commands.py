"""decisions, decision: what was decided, step by step."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID  # noqa: TC003 - typer reads the annotation

import typer

from acp_cli.asking import asking
from acp_cli.deciders import instant_of
from acp_cli.decision_tree import COLOURS, rendered
from acp_cli.instants import instant_text
from control_plane.decisions.reading import DecisionTree, TreeStep
from local_cloud.errors import UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from acp_client.client import Client

PANEL = "Decisions"
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{3,35}")
_SHORT = 60
"""Most characters of a value that is shown."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(decisions)
    app.command(rich_help_panel=PANEL)(decision)


def decisions(
    ctx: typer.Context,
    *,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="Only those in it, such as awaiting_approval.")
    ] = None,
    entity: Annotated[str | None, typer.Option("--entity", metavar="SYMBOL", help="Only those about it.")] = None,
    playbook: Annotated[
        str | None, typer.Option("--playbook", metavar="NAME", help="Only those by it, such as unusual_bar.")
    ] = None,
    event: Annotated[
        UUID | None, typer.Option("--event", metavar="ID", help="Only those that it is about, or that it caused.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Opened then or later: 2026-01-05T14:30Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="Opened before then.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """List decisions, newest first: what about, and what came of each."""
    with asking(ctx) as client:
        found = list(
            client.pages(
                "/decisions",
                most=limit,
                state=state,
                entity_id=entity,
                playbook=playbook,
                event_id=event,
                since=instant_text(since, "--since"),
                until=instant_text(until, "--until"),
            )
        )
    if as_json:
        _print_json(found)
        return
    console = Terminal()
    for one in found:
        console.print(_line(one), soft_wrap=True)
    Progress().say(
        "scripts/acp decision ID shows one, step by step; the first characters of its id are enough."
        if found
        else "No decisions yet. An anomaly opens one: scripts/acp anomalies"
    )


def decision(
    ctx: typer.Context,
    decision_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, or the first characters of it.")],
    *,
    again: Annotated[
        bool, typer.Option("--replay", help="Have it decided again from its record, and the bytes compared.")
    ] = False,
    as_otlp: Annotated[bool, typer.Option("--otlp", help="Its spans, as OTLP's JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for scripts.")] = False,
) -> None:
    """Show one decision as a tree: evidence, answers, costs, verdict and reasons, action, outcome.

    With --replay the deployment decides it again with the network off; it ends with 1 where something would be decided
    differently, or cannot be by this release.
    """
    with asking(ctx) as client:
        path = f"/decisions/{_found(client, decision_id)}"
        said = client.ask(f"{path}/replay") if again else client.get(path, format="otlp" if as_otlp else None)
    if as_json or (as_otlp and not again):
        _print_json(said)
    else:
        console = Terminal()
        for line in _compared(said) if again else rendered(_tree(said)):
            console.print(line, soft_wrap=True)
    if again and not said["same"]:
        raise typer.Exit(1)


def _compared(said: Mapping[str, Any]) -> Iterator[str]:
    """What a replay found, as lines of markup."""
    if (needs := said["needs"]) is not None:
        here = ", ".join(needs["here"]) or "none"
        yield f"[yellow]It cannot be replayed here[/]: {shown(needs['detail'])}"
        yield f"  versions of {shown(needs['playbook'])} here: {shown(here)}"
        return
    counts = f"{said['steps']} steps, {said['compared_bytes']:,} bytes"
    if said["network"]:
        yield f"[red]It asked for the network[/], which was off: {shown(', '.join(said['network']))}"
    if (found := said["difference"]) is None:
        if said["same"]:
            yield f"[green]replayed byte-identical[/], {counts}, network off"
            yield f"  SHA-256 of both: {said['recorded_sha256']}"
        return
    where = f"{found['what']}, {found['field']}" if found["field"] else found["what"]
    yield f"[red]Step {found['seq']} would be decided differently[/] ({shown(where)}), after {counts} alike"
    yield f"  recorded: {shown(_short(found['recorded']))}"
    yield f"  decided:  {shown(_short(found['decided']))}"
    yield f"  SHA-256:  {said['recorded_sha256'][:16]}… recorded, {said['decided_sha256'][:16]}… decided"


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _found(client: Client, text: str) -> str:
    prefix = _checked(text)
    return _only([str(one["decision_id"]) for one in client.pages("/decisions", most=2, id_prefix=prefix)], text)


def _checked(text: str) -> str:
    prefix = text.lower()
    if _PREFIX.fullmatch(prefix) is None:
        msg = f"{text!r} is no decision's id, nor the first four or more characters of one."
        raise UsageError(msg, remedy="scripts/acp decisions lists them.")
    return prefix


def _only(found: Sequence[str], text: str) -> str:
    if not found:
        msg = f"There is no decision {text}."
        raise UsageError(msg, remedy="scripts/acp decisions lists them.")
    if len(found) > 1:
        msg = f"More than one decision begins with {text}."
        raise UsageError(msg, remedy="Give more of its id.")
    return found[0]


def _tree(said: Mapping[str, Any]) -> DecisionTree:
    """Returns a decision as the API tells it."""
    facts = said["decision"] | {name: instant_of(said["decision"][name]) for name in ("occurred_at", "opened_at")}
    steps = [
        TreeStep(
            seq=step["seq"],
            parent=step["parent"],
            kind=step["kind"],
            author=step["author"],
            at=instant_of(step["at"]),
            cost_micros=step["cost_micros"],
            body=step["body"],
            output_sha256=step["output_sha256"],
            output=step["output"],
        )
        for step in said["steps"]
    ]
    return DecisionTree(facts, steps)


def _line(one: Mapping[str, Any]) -> str:
    colour = COLOURS.get(one["state"], "default")
    about = f"{shown(one['entity_id'])} {shown(one['anomaly_kind'])}"
    shadow = " (shadow)" if one["is_shadow"] else ""
    # An older API tells of what is done alone.
    action_type = one["action_type"] or one.get("proposed_type")
    action = f" · {shown(action_type)}" if action_type else ""
    if answer := one.get("answer"):
        action += f", {'approved' if answer['is_given'] else 'denied'} by {shown(answer['decided_by'])}"
    return (
        f"[bold]{one['decision_id'][:8]}[/]  {instant_of(one['occurred_at']):%Y-%m-%d %H:%M}  {about:<24} "
        f"[{colour}]{one['state']}[/]{shadow}{action}"
    )


def _print_json(value: object) -> None:
    # In ASCII: what a model answered may hold what controls a terminal.
    sys.stdout.write(json.dumps(value, indent=2, default=_as_text) + "\n")


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
