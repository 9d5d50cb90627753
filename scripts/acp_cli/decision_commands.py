"""decisions, decision: what was decided, step by step."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer

from control_plane.decisions.offline import network_off
from control_plane.decisions.reading import find_decisions, list_decisions, read_tree
from control_plane.decisions.record import load
from control_plane.decisions.replay import replay
from domains import load_deciding
from local_cloud import database
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from control_plane.decisions.reading import DecisionSummary, DecisionTree, TreeStep
    from control_plane.decisions.replay import Replayed
    from local_cloud.cloud import Cloud

PANEL = "Decisions"
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{3,35}")
_COLOURS = {
    "executed": "green", "scored": "green", "released": "green", "observing": "green",
    "refused": "yellow", "denied": "yellow", "expired": "yellow", "awaiting_approval": "cyan",
    "failed": "red", "abandoned": "red",
}  # fmt: skip
_HIDDEN = frozenset({"decision_id", "call_id", "fence", "claimed_by", "lease_until", "intended_at", "ended_at"})
"""Of a step's body: what tells nothing to a reader."""
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
    with _reading(ctx) as connection:
        found = list_decisions(connection, limit=limit, state=state, entity_id=entity)
    if as_json:
        _print_json([dataclasses.asdict(one) for one in found])
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
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for scripts.")] = False,
) -> None:
    """Show one decision as a tree: evidence, answers, costs, verdict and reasons, action, outcome.

    With --replay it ends with 1 where something would be decided differently today.
    """
    if again:
        _replay(ctx, decision_id, as_json=as_json)
        return
    with _reading(ctx) as connection:
        tree = read_tree(connection, _found(connection, decision_id))
    assert tree is not None, "it was found in the same transaction"
    if as_json:
        _print_json({"decision": tree.facts, "steps": [dataclasses.asdict(step) for step in tree.steps]})
        return
    console = Terminal()
    for line in _rendered(tree):
        console.print(line, soft_wrap=True)


def _replay(ctx: typer.Context, decision_id: str, *, as_json: bool) -> None:
    """Decides again from what was read, and prints the first difference."""
    with _reading(ctx) as connection:
        loaded = load(connection, _found(connection, decision_id))
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


def _found(connection: psycopg.Connection[Any], text: str) -> UUID:
    prefix = text.lower()
    if _PREFIX.fullmatch(prefix) is None:
        msg = f"{text!r} is no decision's id, nor the first four or more characters of one."
        raise UsageError(msg, remedy="scripts/acp decisions lists them.")
    found = find_decisions(connection, prefix)
    if not found:
        msg = f"There is no decision {text}."
        raise UsageError(msg, remedy="scripts/acp decisions lists them.")
    if len(found) > 1:
        msg = f"More than one decision begins with {text}."
        raise UsageError(msg, remedy="Give more of its id.")
    return found[0]


def _line(one: DecisionSummary) -> str:
    colour = _COLOURS.get(one.state, "default")
    about = f"{shown(one.entity_id)} {shown(one.anomaly_kind)}"
    shadow = " (shadow)" if one.is_shadow else ""
    action = f" · {shown(one.action_type)}" if one.action_type else ""
    return (
        f"[bold]{str(one.decision_id)[:8]}[/]  {one.occurred_at:%Y-%m-%d %H:%M}  {about:<24} "
        f"[{colour}]{one.state}[/]{shadow}{action}"
    )


def _rendered(tree: DecisionTree) -> Iterator[str]:
    """The tree as lines of markup."""
    facts = tree.facts
    colour = _COLOURS.get(facts["state"], "default")
    yield f"[bold]{facts['decision_id']}[/]"
    yield (
        f"{shown(facts['entity_id'])} {shown(facts['anomaly_kind'])}, {facts['occurred_at']:%Y-%m-%d %H:%M} UTC, "
        f"by {shown(facts['playbook'])} {shown(facts['playbook_version'])}: [{colour}]{facts['state']}[/]"
        + (" (shadow: nothing is released)" if facts["is_shadow"] else "")
    )
    cost = sum(step.cost_micros for step in tree.steps)
    yield f"[dim]{len(tree.steps)} steps, agents cost {_usd(cost)} of at most {_usd(facts['budget_micros'])}[/]"
    yield from _branch(tree, None, "", facts["opened_at"])


def _branch(tree: DecisionTree, parent: int | None, indent: str, opened_at: datetime) -> Iterator[str]:
    steps = tree.below(parent)
    for place, step in enumerate(steps):
        is_last = place == len(steps) - 1
        yield f"{indent}{'└' if is_last else '├'} {_step(step, opened_at)}"
        below = indent + ("  " if is_last else "│ ")
        for detail in _details(step):
            yield f"{below}  [dim]{detail}[/]"
        yield from _branch(tree, step.seq, below, opened_at)


def _step(step: TreeStep, opened_at: datetime) -> str:
    seconds = max((step.at - opened_at).total_seconds(), 0.0)
    cost = f"  {_usd(step.cost_micros)}" if step.cost_micros else ""
    body = step.body
    match step.kind:
        case "call_answered":
            what = f"{shown(body.get('agent', ''))} {shown(body.get('outcome', ''))}"
        case "verdict":
            what = f"verdict: [bold]{shown(body.get('verdict', ''))}[/]"
        case "execution":
            what = f"execution: {shown(body.get('outcome', ''))}"
        case "approval":
            given = "approved" if body.get("is_given") else "denied"
            what = f"{given} by {shown(body.get('decided_by', ''))}"
        case kind:
            what = kind.replace("_", " ")
    return f"{what}{cost}  [dim]+{seconds:.1f} s[/]"


def _details(step: TreeStep) -> Iterator[str]:
    """What the step says, in lines that are short enough for 80 columns."""
    told = {name: value for name, value in step.body.items() if name not in _HIDDEN and value not in (None, [], {}, "")}
    match step.kind:
        case "opened":
            told = {name: told[name] for name in ("deadline",) if name in told}
        case "call_answered":
            told = {name: told[name] for name in ("error",) if name in told} | _parsed(step.output)
        case "verdict":
            told = {name: told[name] for name in ("reasons", "errors") if name in told}
        case "released":
            told = {name: told[name] for name in ("action_type", "account", "expires_at") if name in told}
        case "execution":
            told = {name: told[name] for name in ("reason", "effect") if name in told}
        case "approval" | "approval_asked":
            told = {name: told[name] for name in ("reason", "expires_at") if name in told}
    for name, value in told.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield shown(f"{name}: {_short(text)}")


def _parsed(output: str | None) -> dict[str, Any]:
    try:
        answer = json.loads(output) if output else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _usd(micros: int) -> str:
    return f"${micros / 1_000_000:.6f}".rstrip("0").rstrip(".") if micros else "$0"


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_as_text) + "\n")


def _as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
