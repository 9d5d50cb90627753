"""decisions, decision: what was decided, step by step."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer

from acp_cli.asking import asking, is_local
from acp_cli.deciders import instant_of
from acp_cli.decision_tree import COLOURS, rendered
from control_plane.decisions.offline import network_off
from control_plane.decisions.reading import DecisionTree, TreeStep, find_decisions
from control_plane.decisions.record import load
from control_plane.decisions.replay import replay
from domains import load_deciding
from local_cloud import database
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from acp_client.client import Client
    from control_plane.decisions.replay import Replayed
    from local_cloud.cloud import Cloud

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
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """List decisions, newest first: what about, and what came of each."""
    with asking(ctx) as client:
        found = list(client.pages("/decisions", most=limit, state=state, entity_id=entity))
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
        bool, typer.Option("--replay", help="Decide again from its record, network off, and compare the bytes.")
    ] = False,
    as_otlp: Annotated[bool, typer.Option("--otlp", help="Its spans, as OTLP's JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for scripts.")] = False,
) -> None:
    """Show one decision as a tree: evidence, answers, costs, verdict and reasons, action, outcome.

    With --replay it ends with 1 where something would be decided differently today.
    """
    if again:
        _replay(ctx, decision_id, as_json=as_json)
        return
    with asking(ctx) as client:
        said = client.get(f"/decisions/{_found(client, decision_id)}", format="otlp" if as_otlp else None)
    if as_json or as_otlp:
        _print_json(said)
        return
    console = Terminal()
    for line in rendered(_tree(said)):
        console.print(line, soft_wrap=True)


def _replay(ctx: typer.Context, decision_id: str, *, as_json: bool) -> None:
    """Decides again from what was read, and prints the first difference."""
    if not is_local(ctx):
        msg = "--replay reads the whole record from the local cloud's database, and a deployment was named."
        raise UsageError(msg, remedy="Leave --replay out, or name the local cloud: scripts/acp --profile local")
    with _reading(ctx) as connection:
        prefix = _checked(decision_id)
        loaded = load(connection, _only(find_decisions(connection, prefix), decision_id))
    assert loaded is not None, "it was found in the same transaction"
    facts = loaded.record.decision
    plug_ins = load_deciding().get(facts.domain)
    if plug_ins is None:
        msg = f"No domain {facts.domain} is here, which decided {facts.decision_id}."
        raise AcpError(msg, remedy="Replay it with the release that decided it.")
    with network_off() as refused:
        result = replay(loaded, plug_ins)
    found = result.difference
    is_same = found is None and not refused
    if as_json:
        difference = None
        if found is not None:
            path, recorded, decided = found.field()
            names = ("seq", "what", "field", "recorded", "decided")
            difference = dict(zip(names, (found.seq, found.what, path, recorded, decided), strict=True))
        content = {
            "decision_id": facts.decision_id, "is_identical": is_same, "steps": result.steps,
            "compared_bytes": result.compared_bytes, "refused": refused, "difference": difference,
        }  # fmt: skip
        _print_json(content)
    else:
        console = Terminal()
        for line in _compared(result, refused):
            console.print(line, soft_wrap=True)
    if not is_same:
        raise typer.Exit(1)


def _compared(result: Replayed, refused: Sequence[str]) -> Iterator[str]:
    """What a replay found, as lines of markup."""
    counts = f"{result.steps} steps, {result.compared_bytes:,} bytes"
    if refused:
        yield f"[red]It asked for the network[/], which was off: {shown(', '.join(sorted(set(refused))))}"
    if (found := result.difference) is None:
        if not refused:
            yield f"[green]replayed byte-identical[/], {counts}, network off"
        return
    path, recorded, decided = found.field()
    where = f"{found.what}, {path}" if path else found.what
    yield f"[red]Step {found.seq} would be decided differently[/] ({shown(where)}), after {counts} alike"
    yield f"  recorded: {shown(_short(recorded))}"
    yield f"  decided:  {shown(_short(decided))}"


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _reading(ctx: typer.Context) -> psycopg.Connection[Any]:
    cloud: Cloud = ctx.obj
    run = cloud.running()
    return psycopg.connect(database.reader_url(cloud.postgres(run), run))


def _found(client: Client, text: str) -> str:
    prefix = _checked(text)
    return _only([str(one["decision_id"]) for one in client.pages("/decisions", most=2, id_prefix=prefix)], text)


def _checked(text: str) -> str:
    prefix = text.lower()
    if _PREFIX.fullmatch(prefix) is None:
        msg = f"{text!r} is no decision's id, nor the first four or more characters of one."
        raise UsageError(msg, remedy="scripts/acp decisions lists them.")
    return prefix


def _only[Id: (str, UUID)](found: Sequence[Id], text: str) -> Id:
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
    action = f" · {shown(one['action_type'])}" if one["action_type"] else ""
    return (
        f"[bold]{one['decision_id'][:8]}[/]  {instant_of(one['occurred_at']):%Y-%m-%d %H:%M}  {about:<24} "
        f"[{colour}]{one['state']}[/]{shadow}{action}"
    )


def _print_json(value: object) -> None:
    # In ASCII: what a model answered may hold what controls a terminal.
    sys.stdout.write(json.dumps(value, indent=2, default=_as_text) + "\n")


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
