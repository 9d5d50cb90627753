"""ingest, relay, watch, trace, logs: signals on their way."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import psycopg
import typer
from psycopg.rows import dict_row
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from acp_cli.logs import render_line, since_seconds
from acp_cli.timeline import instant, render_timeline, styled_state
from control_plane.ops.timeline import read_timeline, recent_messages
from control_plane.platform.queries import load_queries
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.functions import function_name
from local_cloud.logs import read_lines
from local_cloud.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from local_cloud.run_state import RunState

PANEL = "Signals"
QUERIES = load_queries("acp_cli")
_EVENT_ID_WIDTH = 36
_WIDE = 140
"""Columns of a terminal from which `watch` shows more of each message."""
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ingest, relay, watch, trace, logs):
        app.command(command.__name__, rich_help_panel=PANEL)(command)


def ingest(
    ctx: typer.Context,
    symbols: Annotated[list[str], typer.Argument(help="As Yahoo spells them: AAPL BTC-USD.", show_default=False)],
    *,
    as_json: _JsonOption = False,
) -> None:
    """Ingest symbols now, without waiting for the schedule. Fails when one of them does, naming it."""
    cloud, run = _running(ctx)
    with Progress().step(f"Ingesting {', '.join(symbols)}"):
        result = _invoke(cloud, run, "ingestion", {"symbols": symbols})
    if as_json:
        _print_json(result)
    else:
        Console(highlight=False).print(_ingested(cloud, run, result))
    if result["failed_symbols"]:
        msg = f"Failed: {', '.join(result['failed_symbols'])}."
        raise AcpError(
            msg,
            remedy="The failure itself is an event on system.events, unless the source's breaker is open; "
            "more in scripts/acp logs ingestion and scripts/acp status.",
        )


def relay(ctx: typer.Context, *, as_json: _JsonOption = False) -> None:
    """Deliver what is pending now: one relay that drains the outbox and ends."""
    cloud, run = _running(ctx)
    with Progress().step("Relaying"):
        result = _invoke(cloud, run, "relay", {"linger_seconds": 0})
    if as_json:
        _print_json(result)
        return
    counts = ("claimed", "published", "failed", "dead_lettered", "released")
    Console(highlight=False).print("  ".join(f"[bold]{result[name]}[/] {name.replace('_', '-')}" for name in counts))
    for subscription, state in result["breakers"].items():
        if state != "closed":
            Console(highlight=False).print(f"[yellow]{escape(subscription)}: breaker {escape(state)}[/]")


def watch(
    ctx: typer.Context,
    *,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=500, help="How many to show.")] = 20,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Watch messages and their deliveries as they happen, until Ctrl-C. Plain lines where no terminal is."""
    cloud, run = _running(ctx)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run), autocommit=True) as connection:
        try:
            if sys.stdout.isatty():
                console = Console(highlight=False)
                with Live(console=console, refresh_per_second=4) as live:
                    while True:
                        rows = recent_messages(connection, limit=limit)
                        live.update(deliveries_table(rows[-limit:], wide=console.width >= _WIDE))
                        time.sleep(interval)
            seen: dict[tuple[object, ...], tuple[object, ...]] = {}
            while True:
                _print_changes(recent_messages(connection, limit=limit), seen)
                time.sleep(interval)
        except KeyboardInterrupt:
            return


def trace(
    ctx: typer.Context,
    event_id: Annotated[str, typer.Argument(help="An event's id, as watch shows it.", show_default=False)],
    *,
    as_json: _JsonOption = False,
) -> None:
    """Show an event's timeline: raw payload, event, its delivery to each subscription with every attempt, consumers."""
    try:
        wanted = UUID(event_id)
    except ValueError:
        msg = f"{event_id!r} is no event id: it must be a UUID, such as scripts/acp watch shows."
        raise UsageError(msg) from None
    cloud, run = _running(ctx)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run)) as connection:
        timeline = read_timeline(connection, wanted)
    if timeline is None:
        msg = f"There is no event {wanted}."
        raise AcpError(msg)
    if as_json:
        _print_json(timeline.to_dict())
    else:
        Console(highlight=False).print(render_timeline(timeline))


def logs(
    ctx: typer.Context,
    function: Annotated[
        str,
        typer.Argument(
            help="ingestion, relay, signal-lab, ops-api, migration, maintenance, or a logical id.", show_default=False
        ),
    ],
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    since: Annotated[str, typer.Option(help="How far back: 30s, 10m, 2h, 1d.")] = "15m",
    raw: Annotated[bool, typer.Option("--raw", help="The lines as they were written.")] = False,
) -> None:
    """Show a function's log, its JSON lines made readable."""
    seconds = since_seconds(since)
    cloud, run = _running(ctx)
    name = function_name(cloud.outputs(run), function)
    console = Console(highlight=False)
    start, seen = int((time.time() - seconds) * 1000), set[str]()
    try:
        while True:
            for line in read_lines(cloud.aws(run), name, start_milliseconds=start):
                if line.id not in seen:
                    seen.add(line.id)
                    if raw:
                        sys.stdout.write(line.message + "\n")
                    else:
                        console.print(render_line(line), soft_wrap=True)
                # A line may arrive after a younger one of another environment.
                start = max(start, line.milliseconds - 10_000)
            if not follow:
                break
            sys.stdout.flush()
            time.sleep(1)
    except KeyboardInterrupt:
        return
    if not seen:
        Progress().say(f"{name} has logged nothing in the last {since}.")


def deliveries_table(deliveries: Sequence[Mapping[str, Any]], *, wide: bool) -> Table:
    """The newest deliveries, newest last; without `wide` it fits 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["stored", "entity", "subscription", "state", "event id"]
    if wide:
        columns += ["event", "source", "tries", "processed by"]
    for column in columns:
        table.add_column(
            column, no_wrap=True, overflow="ellipsis", min_width=_EVENT_ID_WIDTH if column == "event id" else None
        )
    for row in deliveries:
        cells = [
            instant(row["created_at"])[:8],
            escape(row["entity_id"] or "–"),
            escape(row["subscription"] or "nobody"),
            styled_state(row["state"]) if row["state"] else "–",
            f"[dim]{row['event_id']}[/]",
        ]
        if wide:
            cells += [
                escape(row["event_type"]),
                escape(row["source"]),
                str(row["delivery_attempts"] or 0),
                escape(", ".join(row["processed_by"])),
            ]
        table.add_row(*cells)
    return table


def _print_changes(deliveries: Sequence[Mapping[str, Any]], seen: dict[tuple[object, ...], tuple[object, ...]]) -> None:
    """Print one line for each delivery that is new or has changed since the last look."""
    keys = [(row["id"], row["subscription"], row["operation_id"]) for row in deliveries]
    for key, row in zip(keys, deliveries, strict=True):
        now = (row["state"], row["delivery_attempts"], tuple(row["processed_by"]))
        if seen.get(key) != now:
            seen[key] = now
            processed = f"  processed by {', '.join(row['processed_by'])}" if row["processed_by"] else ""
            error = f"  {row['last_error']}" if row["last_error"] else ""
            state = f"{row['subscription']}  {row['state']}" if row["subscription"] else "without a subscription"
            sys.stdout.write(
                f"{instant(row['created_at'])}  {row['event_id']}  {row['event_type']} {row['entity_id'] or ''}  "
                f"{row['topic']}  {state}{processed}{error}\n"
            )
    sys.stdout.flush()
    for gone in seen.keys() - set(keys):
        del seen[gone]


def _ingested(cloud: Cloud, run: RunState, result: Mapping[str, Any]) -> Table:
    """Per symbol what is new, or why it failed, as the events of this very run tell."""
    with psycopg.connect(database.reader_url(cloud.postgres(run), run), row_factory=dict_row) as connection:
        rows = connection.execute(QUERIES["run_events"].sql, {"trace_id": result["trace_id"]}).fetchall()
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption=f"{result['fetched']} bars: {result['ingested']} new, {result['duplicates']} known already, "
        f"{result['stale']} stale, {result['rejected']} rejected · trace {result['trace_id']}",
        caption_justify="left",
    )
    for column in ("symbol", "new events", "newest bar", "price", "problem"):
        table.add_column(column)
    for symbol in result["symbols"]:
        ticks = [row for row in rows if row["entity_id"] == symbol and row["event_type"] == "MARKET_TICK_INGESTED"]
        others = [row for row in rows if row["entity_id"] == symbol and row["event_type"] != "MARKET_TICK_INGESTED"]
        problems = [_problem(row) for row in others]
        if symbol in result["failed_symbols"] and not problems:
            problems = ["not fetched: the source's breaker is not closed, see scripts/acp status"]
        payload = ticks[0]["newest_payload"] if ticks else {}
        table.add_row(
            escape(symbol),
            str(sum(row["count"] for row in ticks)),
            instant(ticks[0]["newest"], with_date=True) if ticks else "–",
            f"{payload['price']} {payload['currency']}" if payload else "–",
            f"[red]{escape('; '.join(problems))}[/]" if problems else "",
        )
    return table


def _problem(row: Mapping[str, Any]) -> str:
    return f"{row['event_type']}: {row['newest_payload'].get('reason', '')}".removesuffix(": ")


def _invoke(cloud: Cloud, run: RunState, function: str, event: Mapping[str, Any]) -> Any:
    return cloud.aws(run).invoke(function_name(cloud.outputs(run), function), event)


def _running(ctx: typer.Context) -> tuple[Cloud, RunState]:
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    return cloud, cloud.running()


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
