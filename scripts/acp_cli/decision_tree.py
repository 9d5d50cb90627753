"""How a decision is shown to somebody who has never seen one: step after step, what was asked hanging below it."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from local_cloud.visible import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from control_plane.decisions.reading import DecisionTree, TreeStep

COLOURS = {
    "executed": "green", "scored": "green", "released": "green", "observing": "green", "permitted": "green",
    "refused": "yellow", "denied": "yellow", "expired": "yellow", "awaiting_approval": "cyan",
    "needs_approval": "cyan", "failed": "red", "abandoned": "red",
}  # fmt: skip
"""By a decision's state, or a verdict."""
_WIDTH = 78
_LINES = 2
"""Most lines of a value; of prose there are more."""
_PROSE_LINES = 5
_PROSE = frozenset({"text", "why", "summary", "reason", "problem"})
_BELOW = frozenset({"call_intended", "call_answered", "agent_failed", "budget_exhausted"})
"""Kinds of steps that hang below the round of calls that they belong to."""
_HIDDEN = frozenset({
    "state", "source", "entity_id", "occurred_at", "agent", "agent_version", "attempt", "outcome", "seed", "is_given",
    "decided_by", "verdict", "action_type", "fence", "claimed_by", "name", "ceiling_seconds", "told_as", "series",
    "anomaly", "returns_ppm",
})  # fmt: skip
"""Fields that tell a reader nothing, or that the step's own line tells."""
_OPAQUE = ("_sha256", "_id", "_seq", "_at", "lease_until")
"""How the names of fields end that are for machines."""
_ONLY = {
    "opened": (), "answers": (), "calls": (), "call_intended": (), "state": (), "closed": ("reason",),
    "anomaly": ("payload",), "joined": ("payload",), "verdict": ("reasons", "errors"), "released": ("account",),
    "shadow_verdict": ("reasons", "errors"),
    "execution": ("reason", "effect"), "approval": ("reason",), "approval_asked": (), "agent_failed": ("reason",),
    "simulation": ("paths", "horizon_bars", "large_move", "options"),
    "proposal": ("option", "hypothesis", "claims"),
}  # fmt: skip
"""By the kind of a step: the only fields of its body that are shown. Of other kinds all are."""


def rendered(tree: DecisionTree) -> Iterator[str]:
    """Returns the decision as lines of markup, none of which is longer than 80 characters."""
    facts = tree.facts
    colour = COLOURS.get(facts["state"], "default")
    yield f"[bold]{facts['decision_id']}[/]"
    yield (
        f"{shown(facts['entity_id'])} {shown(facts['anomaly_kind'])}, {facts['occurred_at']:%Y-%m-%d %H:%M} UTC, "
        f"by {shown(facts['playbook'])} {shown(facts['playbook_version'])}: [{colour}]{facts['state']}[/]"
        + (" (shadow: nothing is released)" if facts["is_shadow"] else "")
    )
    cost = sum(step.cost_micros for step in tree.steps)
    yield f"[dim]{len(tree.steps)} steps, agents cost {_usd(cost)} of at most {_usd(facts['budget_micros'])}[/]"
    ended = {step.body.get("call_id") for step in tree.steps if step.kind == "call_answered"}
    told = [
        step
        for step in tree.steps
        if step.kind != "answers" and not (step.kind == "call_intended" and step.body.get("call_id") in ended)
    ]
    for place, step in enumerate(told):
        is_last = place == len(told) - 1
        is_below = step.kind in _BELOW
        ends_branch = is_last or told[place + 1].kind not in _BELOW
        spine = " " if is_last and not is_below else "│"
        mark, below = (f"│ {'└' if ends_branch else '├'} ", f"│ {' ' if ends_branch else '│'}  ") if is_below else (
            f"{'└' if is_last else '├'} ", f"{spine}   "
        )  # fmt: skip
        yield f"{mark}{_line(step, facts['opened_at'])}"
        if step.kind == "verdict" and is_other_policy(told[0], step):
            yield f"{below}[dim]by another policy than when the decision was opened[/]"
        for detail in _details(step, _WIDTH - len(below)):
            yield f"{below}[dim]{shown(detail)}[/]"


def is_other_policy(opened: TreeStep, verdict: TreeStep) -> bool:
    """Whether a verdict fell by other policies than those that were in force when its decision was opened."""
    pinned = _parsed(opened.output).get("policy") or {}
    used = {"policy": verdict.body.get("policy_sha256"), "policy_schema": verdict.body.get("schema_sha256")}
    return any(name in used and used[name] not in (None, f"\\x{value}") for name, value in pinned.items())


def _line(step: TreeStep, opened_at: datetime) -> str:
    seconds = max((step.at - opened_at).total_seconds(), 0.0)
    cost = f"  {_usd(step.cost_micros)}" if step.cost_micros else ""
    return f"{_what(step.kind, step.body)}{cost}  [dim]+{seconds:.1f} s[/]"


def _what(kind: str, body: Mapping[str, Any]) -> str:  # noqa: C901 - a line for each kind of step
    match kind:
        case "calls":
            what = f"asked: {shown(', '.join(str(call.get('agent')) for call in body.get('calls', [])))}"
        case "call_answered":
            what = f"{shown(body.get('agent', ''))} {shown(body.get('outcome', ''))}"
        case "call_intended":
            what = f"{shown(body.get('agent', ''))} has not answered yet"
        case "agent_failed" | "budget_exhausted":
            what = f"{shown(body.get('agent', ''))}: {kind.replace('_', ' ')}"
        case "proposal" | "released":
            what = f"{kind}: [bold]{shown(body.get('action_type', ''))}[/]"
        case "verdict":
            verdict = str(body.get("verdict", ""))
            what = f"verdict: [bold {COLOURS.get(verdict, 'default')}]{shown(verdict)}[/]"
        case "shadow_verdict":
            what = _in_shadow(body)
        case "execution":
            what = f"execution: {shown(body.get('outcome', ''))}"
        case "approval":
            what = f"{'approved' if body.get('is_given') else 'denied'} by {shown(body.get('decided_by', ''))}"
        case "approval_asked":
            what = "a person is asked to approve"
        case "state" | "closed":
            state = str(body.get("state", ""))
            what = f"{kind}: [{COLOURS.get(state, 'default')}]{shown(state)}[/]"
        case _:
            what = kind.replace("_", " ")
    return what


def _in_shadow(body: Mapping[str, Any]) -> str:
    """What policies in shadow would have said."""
    digits = str(body.get("policy_sha256") or "").removeprefix("\\x")[:8]
    which = f"another policy (shadow, {shown(digits)})" if digits else "another policy (shadow)"
    if body.get("errors"):
        return f"{which} could not be asked"
    verdict = str(body.get("verdict", ""))
    would = "would have said the same" if verdict == body.get("enforced") else "would have said"
    return f"{which} {would}: [{COLOURS.get(verdict, 'default')}]{shown(verdict)}[/]"


def _details(step: TreeStep, width: int) -> Iterator[str]:
    """What the step says, in plain lines that are no longer than the width."""
    only = _ONLY.get(step.kind)
    told = {name: value for name, value in step.body.items() if only is None or name in only}
    if step.kind in ("anomaly", "joined"):
        payload = told.get("payload")
        details = payload.get("details", {}) if isinstance(payload, dict) else {}
        told = {name: payload[name] for name in ("score", "threshold") if isinstance(payload, dict) and name in payload}
        told |= {"is_withdrawn": True} if isinstance(payload, dict) and payload.get("is_withdrawn") else {}
        told |= details if isinstance(details, dict) else {}
    if step.kind == "call_answered":
        told = {"error": step.body.get("error")} | _parsed(step.output)
    if step.kind == "proposal":
        told = {"action": _parsed(step.output)} | told
    if step.kind == "outcome" and "scores" in told:
        told.pop("forecasts", None)  # the scores name them
    for name, value in told.items():
        if value not in (None, [], {}, "") and not _is_hidden(name):
            yield from _field(name, value, width)


def _field(name: str, value: Any, width: int) -> Iterator[str]:
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        yield f"{_label(name)}:"
        for one in value:
            title = next((str(one[key]) for key in ("name", "agent", "event", "hypothesis", "kind") if key in one), "")
            rest = {key: inner for key, inner in one.items() if inner != title}
            yield _cut(f"  {title} {_value('', rest)}".rstrip().replace("   ", "  "), width)
    elif isinstance(value, str) and name in _PROSE:
        yield from textwrap.wrap(
            f"{_label(name)}: {value}", width, subsequent_indent="  ", max_lines=_PROSE_LINES, placeholder=" …"
        )
    else:
        text = f"{_label(name)}: {_value(name, value)}"
        yield from textwrap.wrap(text, width, subsequent_indent="  ", max_lines=_LINES, placeholder=" …")


def _value(name: str, value: Any) -> str:
    """A value as people write it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return _number(name, value)
        case dict():
            known = {key: inner for key, inner in value.items() if inner is not None and not _is_hidden(key)}
            # What is short comes first, for the end may be cut off.
            known = dict(sorted(known.items(), key=lambda field: isinstance(field[1], dict | list)))
            return ", ".join(f"{_label(key)} {_value(key, inner)}" for key, inner in known.items())
        case list():
            is_long = len(value) > 4 or any(isinstance(one, dict | list) for one in value)
            return f"{len(value)} values" if is_long else "; ".join(_value(name, one) for one in value)
    return str(value)


def _number(name: str, value: float) -> str:
    """A number in the unit that its name ends with: ppm, micros and milli are whole numbers on record."""
    if name.endswith("_ppm"):
        return f"{value / 1e4:+.1f} %" if "return" in name else f"{value / 1e4:.1f} %"
    if name.endswith("_micros"):
        return f"{value / 1e6:,.2f}"
    if name.endswith("_milli"):
        return f"{value / 1e3:.1f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _label(name: str) -> str:
    for unit in ("_ppm", "_micros", "_milli"):
        name = name.removesuffix(unit)
    return name.removeprefix("is_").replace("_", " ")


def _is_hidden(name: str) -> bool:
    return name in _HIDDEN or name.endswith(_OPAQUE)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _parsed(output: str | None) -> dict[str, Any]:
    try:
        answer = json.loads(output) if output else {}
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _usd(micros: int) -> str:
    return f"${micros / 1_000_000:.6f}".rstrip("0").rstrip(".") if micros else "$0"
