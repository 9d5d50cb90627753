"""policy check, policy test, policy shadow: whether policies can be used, and what they would have decided so far."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from acp_cli.asking import asking
from acp_cli.deciders import instant_of
from acp_cli.instants import instant_text
from control_plane.decisions import policy as policies
from control_plane.decisions.policy import PolicyUnusable
from domains import DOMAINS, load_deciding
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control_plane.decisions.policy import Policy
    from control_plane.model.deciding import Gate

PANEL = "Decisions"
_policy = typer.Typer(help="Check policies, or try them on what was judged so far.", no_args_is_help=True)
_DomainOption = Annotated[str, typer.Option("--domain", help="Whose policies they are.")]
_SchemaOption = Annotated[
    Path | None, typer.Option("--schema", help="Another Cedar schema than the domain's.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_policy, name="policy", rich_help_panel=PANEL)


@_policy.command("check")
def check(
    file: Annotated[
        Path | None, typer.Argument(help="A file of Cedar policies; without one, those of this checkout.")
    ] = None,
    *,
    domain: _DomainOption = "finance",
    schema: _SchemaOption = None,
) -> None:
    """Say whether policies can be used: parsed, named, and valid against their schema. Needs no local cloud."""
    loaded = _load(file, domain, schema)
    Progress().say(f"{_called(file, domain)}: {len(loaded.names)} policies fit their schema.")


@_policy.command("test")
def try_on_history(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file of Cedar policies.", show_default=False)],
    *,
    domain: _DomainOption = "finance",
    schema: _SchemaOption = None,
    limit: Annotated[
        int, typer.Option("-n", "--limit", min=1, max=500, help="How many of the newest requests to judge again.")
    ] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Judge the newest recorded requests again by these policies, and say where the verdict would have been another.

    The deployment does it, by its own schema where none is given; nothing is changed. Verdicts that fell before any
    policy was asked (schema, evidence) stay what they are.
    """
    wanted: dict[str, Any] = {"policies": _read(file), "domain": domain, "limit": limit}
    if schema is not None:
        wanted["schema"] = _read(schema)
    with asking(ctx) as client:
        said = client.ask("/policies/test", wanted)
    if as_json:
        sys.stdout.write(json.dumps(said, indent=2) + "\n")
        return
    if said["rows"]:
        Terminal().print(_table(said["rows"]))
    Progress().say(_summary(said))


@_policy.command("shadow")
def show_shadow(
    ctx: typer.Context,
    *,
    domain: Annotated[str | None, typer.Option("--domain", help="Of this domain alone.", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="INSTANT", help="Given then or later; otherwise in the last 7 days.", show_default=False),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="INSTANT", help="Given before then.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Count how often policies in shadow said what, beside what the enforced ones said to the same request."""
    with asking(ctx) as client:
        said = client.get(
            "/policies/shadow",
            domain=domain,
            since=instant_text(since, "--since"),
            until=instant_text(until, "--until"),
        )
    if as_json:
        sys.stdout.write(json.dumps(said, indent=2) + "\n")
        return
    if said["pairs"]:
        Terminal().print(_pairs(said["pairs"]))
    differ = sum(one["count"] for one in said["pairs"] if one["enforced"] != one["shadow"])
    Progress().say(
        f"{differ} of {said['judged']} verdicts would differ; {said['without_shadow']} were judged without a shadow."
    )


def gate_of(domain: str) -> Gate:
    """A domain's gate. Raises UsageError where there is none."""
    known = [each.name for each in DOMAINS]
    if domain in known:
        deciding = load_deciding([each for each in DOMAINS if each.name == domain])
        if domain in deciding:
            return deciding[domain].gate
        msg = f"The domain {domain} plugs nothing into the decision engine: it releases nothing."
        raise UsageError(msg)
    msg = f"There is no domain {domain!r}. There are: {', '.join(known)}."
    raise UsageError(msg)


def _load(file: Path | None, domain: str, schema: Path | None) -> Policy:
    gate = gate_of(domain)
    try:
        return policies.load(
            gate.policies if file is None else _read(file), gate.schema if schema is None else _read(schema)
        )
    except PolicyUnusable as error:
        msg = f"{_called(file, domain)} cannot be used: {error}"
        raise AcpError(
            msg, remedy="Nothing would be released by it. docs/decisions/0025 says what is needed."
        ) from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} cannot be read: {error}"
        raise UsageError(msg) from None


def _called(file: Path | None, domain: str) -> str:
    return f"{domain}'s policies" if file is None else str(file)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("decision", "entity", "bar", "was", "would be", "because of"):
        table.add_column(column, overflow="fold")
    for one in rows:
        table.add_row(
            one["decision_id"][:8],
            shown(one["entity_id"]),
            f"{instant_of(one['occurred_at']):%Y-%m-%d %H:%M}",
            _said(one["was"]),
            _said(one["would_be"]),
            shown(", ".join(one["reasons"] or one["errors"])),
        )
    return table


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("domain", "policy", "enforced", "in shadow", "times", "newest", "decision"):
        table.add_column(column, overflow="fold")
    for one in pairs:
        table.add_row(
            shown(one["domain"]),
            (one["policy_sha256"] or "unknown")[:8],
            _said(one["enforced"]),
            _said(one["shadow"]),
            str(one["count"]),
            f"{instant_of(one['newest_at']):%Y-%m-%d %H:%M}",
            one["newest_decision_id"][:8],
        )
    return table


def _said(verdict: str) -> str:
    return {"needs_approval": "approval"}.get(verdict, verdict)


def _summary(said: Mapping[str, Any]) -> str:
    counts = said["counts"]
    how = "".join(f"; {_said(one['was'])} → {_said(one['would_be'])}: {one['count']}" for one in counts["moves"])
    left = said["recorded"] - said["tried"]
    older = {
        "limit": f"{left} older ones were not tried.\n",
        "time": f"There was no time for {left} older ones.\n",
    }.get(said["stopped_by"], "")
    return (
        f"{counts['different']} of {said['tried']} verdicts would differ{how}.\n{older}"
        f"{said['unasked']} fell before any policy was asked, and stay."
    )
