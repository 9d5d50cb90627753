"""anomalies: what the detector has found unusual, and why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acp_cli.asking import asking
from acp_cli.deciders import instant_of
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

PANEL = "Signals"
_COLOURS = {"detected": "yellow", "explained": "green", "withdrawn": "dim"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("anomalies", rich_help_panel=PANEL)(anomalies)


def anomalies(
    ctx: typer.Context,
    *,
    entity: Annotated[str | None, typer.Option("--entity", metavar="SYMBOL", help="Only those about it.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """List the bars that were found unusual, newest first: how unusual, how the market moved, what explains it."""
    with asking(ctx) as client:
        # One more than is shown tells whether there are more.
        found = list(client.pages("/anomalies", most=limit + 1, entity_id=entity))
    if as_json:
        sys.stdout.write(json.dumps(found[:limit], indent=2) + "\n")
        return
    console = Terminal()
    for anomaly in found[:limit]:
        console.print(described(anomaly | {"occurred_at": instant_of(anomaly["occurred_at"])}), soft_wrap=True)
    if len(found) > limit:
        Progress().say(f"These are the newest {limit}; --limit shows more.")
    if not found:
        Progress().say("No anomalies.")


def described(anomaly: Mapping[str, Any]) -> str:
    """An anomaly as rich markup: a line of facts, the market, what explains it."""
    details, state = anomaly["details"], anomaly["state"]
    figure = details.get("return_ppm", details.get("beyond_ppm"))
    what = "" if figure is None else f"{_percent(figure)}, score {anomaly['score']:g}"
    if anomaly["kind"] == "range" and figure is not None:
        side = "below" if details["side"] == "low" else "above"
        what = f"{abs(figure) / 1e6:.1%} {side} open and close, score {anomaly['score']:g}"
    lines = [
        f"[bold]{shown(anomaly['entity_id'])}[/]  {anomaly['occurred_at']:%Y-%m-%d %H:%M}  {anomaly['kind']}"
        f"  [{_COLOURS[state]}]{state}[/]  {what}".rstrip()
    ]
    if anomaly["entities"] and state != "withdrawn":
        middle = "" if anomaly["market_return"] is None else f", the median {anomaly['market_return']:+.1%}"
        lines.append(f"   [dim]the market: {anomaly['fell']} of {anomaly['entities']} fell{middle}[/]")
    lines += [f"   [green]{_explanation(action, details)}[/]" for action in details.get("corporate_actions", [])]
    if anomaly["told_event_id"] is not None:
        lines.append(f"   [dim]event {anomaly['told_event_id']}[/]")
    return "\n".join(lines)


def _explanation(action: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    said = (
        f"a split, {action['ratio_ppm'] / 1e6:g} for 1"
        if action["kind"] == "split"
        else f"a dividend of {action['amount_micros'] / 1e6:g}"
    )
    return f"{said}: {_percent(details['as_traded_ppm'])} as traded, {_percent(details['return_ppm'])} adjusted"


def _percent(ppm: int) -> str:
    return f"{ppm / 1e6:+.1%}"
