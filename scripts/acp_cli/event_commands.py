"""events: what was stored, newest first."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID  # noqa: TC003 - typer reads the annotation

import typer

from acp_cli.asking import asking
from acp_cli.instants import instant_text
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

PANEL = "Signals"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("events", rich_help_panel=PANEL)(events)


def events(
    ctx: typer.Context,
    *,
    event_type: Annotated[
        str | None, typer.Option("--type", "-t", help="Such as MARKET_TICK_INGESTED.", show_default=False)
    ] = None,
    entity: Annotated[str | None, typer.Option("--entity", "-e", help="Such as AAPL.", show_default=False)] = None,
    trace: Annotated[
        UUID | None, typer.Option("--trace", metavar="ID", help="The run that stored it.", show_default=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Such as yfinance; beside one of the others.", show_default=False)
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Stored then or later: 2026-01-05T14:30Z.", show_default=False)
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Stored before then.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """List events, newest stored first; `acp trace ID` shows what became of one."""
    with asking(ctx) as client:
        # One more is read than is shown, to see whether there are more.
        found = list(
            client.pages(
                "/events",
                most=limit + 1,
                event_type=event_type,
                entity_id=entity,
                trace_id=trace,
                source=source,
                since=instant_text(since, "--since"),
                until=instant_text(until, "--until"),
            )
        )
    if as_json:
        sys.stdout.write(json.dumps(found[:limit], indent=2) + "\n")
        return
    console = Terminal()
    for event in found[:limit]:
        console.print(_line(event), soft_wrap=True)
    if len(found) > limit:
        Progress().say(f"These are the newest {limit}; --limit shows more.")
    if not found:
        Progress().say("No event fits." if any((event_type, entity, trace, since, until)) else "No events.")


def _line(event: Mapping[str, Any]) -> str:
    occurred = datetime.fromisoformat(event["occurred_at"]).astimezone(UTC)
    about = " ".join(filter(None, (event["entity_id"], event["series"])))
    # An older API says no state.
    state = event.get("state")
    tone = {"dead_lettered": "red", "retrying": "yellow"}.get(state or "", "default")
    stands = "" if state is None else f"  [{tone}]{shown(state.replace('_', ' '))}[/]"
    revision = f", revision {event['revision']}" if event["revision"] else ""
    return (
        f"[dim]{event['event_id']}[/]  [bold]{shown(event['event_type'])}[/]  {shown(about)}  "
        f"{occurred:%Y-%m-%d %H:%M:%S}Z{revision}  [dim]{shown(event['source'])}[/]{stands}"
    )
