"""policy check, policy test: whether policies can be used, and what they would have decided so far."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from rich.table import Table

from control_plane.decisions import policy as policies
from control_plane.decisions import retrial
from control_plane.decisions.policy import PolicyUnusable
from domains import DOMAINS, load_deciding
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.decisions.policy import Policy
    from control_plane.decisions.retrial import Retried
    from control_plane.model.deciding import Gate

PANEL = "Decisions"
_policy = typer.Typer(help="Check policies, or try them on every verdict so far.", no_args_is_help=True)
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
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Judge every recorded request again by these policies, and say where the verdict would have been another.

    Nothing is changed. Verdicts that fell before any policy was asked (schema, evidence) stay what they are.
    """
    loaded = _load(file, domain, schema)
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    run = cloud.running()
    with psycopg.connect(database.reader_url(cloud.postgres(run), run)) as connection:
        retried = list(retrial.retry(connection, domain, loaded))
        unasked = retrial.count_unasked(connection)
    changed = retrial.differences(retried)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(retried, changed, unasked), indent=2) + "\n")
        return
    if changed:
        Terminal().print(_table(changed))
    Progress().say(_summary(retried, changed, unasked))


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


def _table(changed: Sequence[Retried]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("decision", "entity", "bar", "was", "would be", "because of"):
        table.add_column(column, overflow="fold")
    for one in changed:
        table.add_row(
            str(one.decision_id)[:8],
            shown(one.entity_id),
            f"{one.occurred_at:%Y-%m-%d %H:%M}",
            _said(one.before.verdict),
            _said(one.after.verdict),
            shown(", ".join(one.after.reasons or one.after.errors)),
        )
    return table


def _said(verdict: str) -> str:
    return {"needs_approval": "approval"}.get(verdict, verdict)


def _summary(retried: Sequence[Retried], changed: Sequence[Retried], unasked: int) -> str:
    moves = Counter(f"{_said(one.before.verdict)} → {_said(one.after.verdict)}" for one in changed)
    how = "".join(f"; {move}: {count}" for move, count in sorted(moves.items()))
    return (
        f"{len(changed)} of {len(retried)} verdicts would differ{how}.\n"
        f"{unasked} fell before any policy was asked, and stay."
    )


def _as_json(retried: Sequence[Retried], changed: Sequence[Retried], unasked: int) -> dict[str, Any]:
    return {
        "judged": len(retried),
        "unasked": unasked,
        "differences": [
            {
                "verdict_id": str(one.verdict_id),
                "decision_id": str(one.decision_id),
                "entity_id": one.entity_id,
                "occurred_at": one.occurred_at.isoformat(),
                "is_shadow": one.is_shadow,
                "recorded": one.recorded,
                "before": one.before.verdict,
                "after": one.after.verdict,
                "reasons": list(one.after.reasons),
                "errors": list(one.after.errors),
            }
            for one in changed
        ],
    }
