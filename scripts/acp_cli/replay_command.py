"""replay: plans that stored messages are sent again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from acp_cli.asking import ByOption, asking, why
from acp_cli.following import plan_operation
from acp_cli.instants import instant_text
from acp_cli.operations_commands import show_plan

PANEL = "Signals"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay", rich_help_panel=PANEL)(replay)


def replay(
    ctx: typer.Context,
    *,
    subscription: Annotated[
        str | None, typer.Option("--subscription", "-s", help="To this subscription alone.", show_default=False)
    ] = None,
    topic: Annotated[
        str | None, typer.Option(help="To all subscriptions of this topic, such as market.ticks.", show_default=False)
    ] = None,
    event_type: Annotated[str | None, typer.Option("--type", "-t", help="Of this type.", show_default=False)] = None,
    entity: Annotated[str | None, typer.Option("--entity", "-e", help="Such as AAPL.", show_default=False)] = None,
    source: Annotated[str | None, typer.Option(help="Such as yfinance.", show_default=False)] = None,
    since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="About that time or later.", show_default=False)
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="About a time before that.", show_default=False)
    ] = None,
    stored_since: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Stored then or later.", show_default=False)
    ] = None,
    stored_until: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Stored before then.", show_default=False)
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Messages per second; 100 without it.", show_default=False)
    ] = None,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")] = "",
    by: ByOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Plan that stored messages are sent again: how many, how long. `operations start` starts the plan."""
    given: dict[str, Any] = {
        "subscription": subscription,
        "topic": topic,
        "event_type": event_type,
        "entity_id": entity,
        "source": source,
        "occurred_since": instant_text(since, "--since"),
        "occurred_until": instant_text(until, "--until"),
        "ingested_since": instant_text(stored_since, "--stored-since"),
        "ingested_until": instant_text(stored_until, "--stored-until"),
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    recorded = why(because, by)
    with asking(ctx) as client:
        planned = plan_operation(client, "replay", wanted, reason=recorded, rate=rate)
    show_plan(planned, as_json=as_json)
