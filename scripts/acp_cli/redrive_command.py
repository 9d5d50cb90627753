"""redrive: sends dead letters again, by an operation that is planned, looked at and started."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acp_cli.asking import ByOption, asking, sentence, why
from acp_cli.following import cancel_operation, follow_operation, plan_operation
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
)
from acp_client.client import ApiError
from local_cloud.errors import AcpError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from acp_cli.letter_filters import Letters
    from acp_client.client import Client

PANEL = "Signals"


@dataclass(frozen=True, slots=True)
class RedriveReport:
    """What a redrive did, or would do."""

    dry_run: bool
    operation_id: UUID | None
    """The operation that the new deliveries belong to; None where there are none."""
    redriven: Mapping[str, int] = field(default_factory=dict)
    """How many dead letters of each subscription are pending again."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """How many dead letters of each subscription stay as they are because the subscription is not active."""
    unknown: Mapping[str, int] = field(default_factory=dict)
    """How many stay as they are because the outbox holds no such message, by subscription, or queue of invocations."""
    not_open: Sequence[int] = ()
    """Requested ids that belong to no open dead letter, or to one that the filter excludes."""

    @property
    def complaints(self) -> Sequence[str]:
        """One sentence for each thing that was not redriven, with the remedy."""
        inactive = [
            f"{count} dead {'letter' if count == 1 else 'letters'} of subscription {name} "
            f"{'stays' if count == 1 else 'stay'}: it is not active. Deploy a template that has it, run "
            "MigrationFunction, and redrive again"
            for name, count in self.refused.items()
        ]
        foreign = [
            f"{count} dead {'letter' if count == 1 else 'letters'} of {name} {'stays' if count == 1 else 'stay'}: the "
            f"outbox has no such message, so {'it' if count == 1 else 'they'} cannot be sent again. Read what "
            f"{'it holds' if count == 1 else 'they hold'}, and discard {'it' if count == 1 else 'them'}"
            for name, count in self.unknown.items()
        ]
        closed = [f"no open dead letter {number} fits: was it redriven already?" for number in self.not_open]
        return [*inactive, *foreign, *closed]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values, except ``operation_id``, which is a UUID."""
        return asdict(self)


class NotRedrivenError(AcpError):
    """Raised when some of the requested dead letters were not redriven; all others were."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("redrive", rich_help_panel=PANEL)(redrive)


def redrive(
    ctx: typer.Context,
    ids: IdsArgument = None,
    *,
    subscription: SubscriptionOption = None,
    reason: ReasonOption = None,
    kind: KindOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    event: EventOption = None,
    trace: TraceOption = None,
    everything: EverythingOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be redriven.")] = False,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Letters per second, so that others go before.", show_default=False)
    ] = None,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")] = "",
    by: ByOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Send dead letters again, each with a fresh budget of attempts; their failures stay on record.

    Name ids, a subscription, a part of the reason and the like (all that are given must fit), or --all. What the outbox
    does not hold stays; it can only be discarded.
    """
    chosen = chosen_letters(ids, subscription, reason, kind, older_than, newer_than, event, trace)
    check_asked(chosen, "redrive", everything=everything)
    recorded = why(because, by)
    with asking(ctx) as client:
        report, skipped = _redriven(client, chosen, recorded, rate=rate, dry_run=dry_run)
    if as_json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
    else:
        Terminal().print(_said(report), soft_wrap=True)
        if report.redriven and not dry_run:
            Progress().say("The next relay delivers them: scripts/acp relay starts one now.")
    complaints = list(report.complaints)
    if skipped:
        complaints.append(f"{skipped} of them were redriven or discarded by somebody else meanwhile")
    if complaints:
        raise NotRedrivenError("\n".join(map(_sentence, complaints)))


def _redriven(
    client: Client, chosen: Letters, reason: str, *, rate: float | None, dry_run: bool
) -> tuple[RedriveReport, int]:
    """Redrives; returns what was done, or would be, and how many letters were gone when their turn came."""
    not_open: Sequence[int] = ()
    gone = 0
    if chosen.ids is not None:
        there = {letter["id"] for letter in chosen.read(client)}
        not_open = [number for number in chosen.ids if number not in there]
        if not there:
            return RedriveReport(dry_run, None, not_open=not_open), 0
    planned = plan_operation(client, "redrive", chosen.wanted(), reason=reason, rate=rate)
    plan = planned["plan"]
    if chosen.ids is not None:
        gone = len(there) - sum(sum(plan[part].values()) for part in ("letters", "inactive", "unknown"))
    if dry_run or not planned["total"]:
        cancel_operation(client, planned, reason="a dry run" if dry_run else "there is nothing to redrive")
        return _report(plan, None, not_open, dry_run=dry_run), gone
    try:
        started = client.send(
            "POST",
            f"/operations/{planned['operation_id']}/start",
            {"plan_hash": planned["plan_hash"], "reason": reason},
        )
    except ApiError:
        cancel_operation(client, planned, reason="it could not be started")
        raise
    ended = follow_operation(client, started)
    return _report(plan, ended["operation_id"], not_open, dry_run=False), gone + ended["skipped"]


def _report(plan: Mapping[str, Any], operation_id: Any, not_open: Sequence[int], *, dry_run: bool) -> RedriveReport:
    return RedriveReport(
        dry_run,
        operation_id,
        redriven={name: count for name, count in plan["letters"].items() if count},
        refused=plan["inactive"],
        unknown=plan["unknown"],
        not_open=not_open,
    )


def _sentence(text: str) -> str:
    return sentence(Exception(text))


def _said(report: RedriveReport) -> str:
    total = sum(report.redriven.values())
    if not total:
        return "Nothing is redriven: no open dead letter fits." if not report.complaints else "Nothing is redriven."
    letters = f"{total} dead {'letter' if total == 1 else 'letters'}"
    by_subscription = ", ".join(f"{shown(name)} {count}" for name, count in report.redriven.items())
    if report.dry_run:
        return f"{letters} would be redriven: {by_subscription}"
    return f"[green]{letters} redriven[/]: {by_subscription}  [dim]operation {report.operation_id}[/]"
