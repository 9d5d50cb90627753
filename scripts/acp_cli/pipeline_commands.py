"""The commands ingest, relay, watch and trace: they start signals and follow them."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import psycopg
import typer
from psycopg.rows import dict_row
from rich.cells import cell_len
from rich.live import Live
from rich.table import Table

from acp_cli.asking import asking, is_local, why
from acp_cli.deciders import instant_of
from acp_cli.output import wait_while_read
from acp_cli.symbols import split_symbols
from acp_cli.timeline import instant, render_timeline, state_text, styled_state
from control_plane.model.errors import ConfigurationError
from control_plane.ops.timeline import EventTimeline, recent_messages
from control_plane.platform.breakers import Breaker
from control_plane.platform.queries import load_queries
from control_plane.platform.settings import parse_symbols
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.functions import function_name
from local_cloud.market import REPLAYED
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown, visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acp_client.client import Client
    from local_cloud.run_state import RunState

PANEL = "Signals"
QUERIES = load_queries("acp_cli")
_SHORT_ID = 8
_MOST_CANDIDATES = 10
_MOST_OF_RUN = 10_000
_DIGITS = 32
"""Hexadecimal digits of an id."""
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
_ReasonOption = Annotated[str, typer.Option("--reason", help="Why; a deployment keeps it on record.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ingest, relay, watch, trace):
        app.command(command.__name__, rich_help_panel=PANEL)(command)


def ingest(
    ctx: typer.Context,
    symbols: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"As Yahoo spells them: AAPL MSFT, or AAPL,MSFT; the replay has {REPLAYED}. "
            "A deployment ingests its own: name none.",
            show_default=False,
        ),
    ] = None,
    *,
    reason: _ReasonOption = "",
    as_json: _JsonOption = False,
) -> None:
    """Ingest symbols now, without waiting for the schedule. Fails when one of them does, naming it.

    On a deployment the run is started, and not waited for.
    """
    if not is_local(ctx):
        if symbols:
            msg = f"A deployment ingests its own symbols, and {', '.join(symbols)} cannot be chosen."
            raise UsageError(msg, remedy="Leave them out. Its symbols are the stack's parameter Symbols.")
        _start(ctx, "/ingestion/run", reason, as_json=as_json)
        return
    try:
        # As the function will read them: what it would refuse is refused here, before anything is asked.
        symbols = [*parse_symbols(split_symbols(symbols or []), name="The list of symbols")]
    except ConfigurationError as error:
        raise UsageError(f"{error}.", remedy="Try scripts/acp ingest AAPL MSFT") from None
    cloud, run = _running(ctx)
    with Progress().step(f"Ingesting {', '.join(symbols)}"):
        result = _invoke(cloud, run, "ingestion", {"symbols": symbols})
    if as_json:
        _print_json(result)
    else:
        _print_ingested(cloud, run, result)
    if result["failed_symbols"]:
        msg = f"Failed: {', '.join(result['failed_symbols'])}."
        raise AcpError(
            msg,
            remedy="The failure itself is an event on system.events, unless the source's breaker is open; "
            "more in scripts/acp logs ingestion and scripts/acp status.",
        )


def relay(ctx: typer.Context, *, reason: _ReasonOption = "", as_json: _JsonOption = False) -> None:
    """Deliver what is pending now: one relay that drains the outbox and ends. A deployment's is not waited for."""
    if not is_local(ctx):
        _start(ctx, "/relay/run", reason, as_json=as_json)
        return
    cloud, run = _running(ctx)
    with Progress().step("Relaying"):
        result = _invoke(cloud, run, "relay", {"linger_seconds": 0})
    if as_json:
        _print_json(result)
        return
    counts = ("claimed", "published", "failed", "dead_lettered", "released")
    Terminal().print("  ".join(f"[bold]{result[name]}[/] {name.replace('_', '-')}" for name in counts))
    for subscription, state in result["breakers"].items():
        if state != "closed":
            Terminal().print(f"[yellow]{shown(subscription)}: breaker {shown(state)}[/]")


def watch(
    ctx: typer.Context,
    *,
    limit: Annotated[
        int | None,
        typer.Option(
            "-n", "--limit", min=1, max=500, help="How many to show.", show_default="what fits; 20 without a terminal"
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: one object a line, for each change.")] = False,
) -> None:
    """Watch messages and their deliveries as they happen, until Ctrl-C. Plain lines where no terminal is.

    On a terminal it shows as many columns and rows as fit; `trace` takes an id as short as it is shown.
    """
    cloud, run = _running(ctx)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run), autocommit=True) as connection:
        try:
            if sys.stdout.isatty() and not as_json:
                console = Terminal()
                with Live(console=console, refresh_per_second=4) as live:
                    while True:
                        # One row is for the table's head, and one for the cursor.
                        count = limit or max(1, console.height - 2)
                        rows = recent_messages(connection, limit=count)
                        live.update(deliveries_table(rows[-count:], width=console.width))
                        time.sleep(interval)
            seen: dict[tuple[object, ...], tuple[object, ...]] = {}
            while True:
                _print_changes(recent_messages(connection, limit=limit or 20), seen, as_json=as_json)
                wait_while_read(interval)
        except KeyboardInterrupt:
            return


def trace(
    ctx: typer.Context,
    event_id: Annotated[
        str,
        typer.Argument(
            help="An event's id or its beginning, as watch shows it, or a run's trace id.", show_default=False
        ),
    ],
    *,
    as_otlp: Annotated[bool, typer.Option("--otlp", help="Its spans, as OTLP's JSON.")] = False,
    as_json: _JsonOption = False,
) -> None:
    """Show an event's timeline: raw payload, event, its delivery to each subscription with every attempt, consumers."""
    digits = id_digits(event_id)
    with asking(ctx) as client:
        found = _find_events(ctx, client, event_id, digits)
        if len(found) > 1:
            if as_otlp:
                msg = f"{event_id} is a run of {len(found)} events, and --otlp shows the spans of one."
                raise UsageError(msg, remedy=f"Try scripts/acp trace {found[0]['event_id']} --otlp")
            _show_run(found, as_json=as_json)
            return
        told = client.get(f"/events/{found[0]['event_id']}", format="otlp" if as_otlp else None)
        breakers = [] if as_json or as_otlp else list(client.pages("/breakers", most=_MOST_OF_RUN))
    if as_json or as_otlp:
        _print_json(told)
        return
    # A newer deployment may tell more.
    timeline = EventTimeline(**{field.name: told[field.name] for field in fields(EventTimeline) if field.name in told})
    Terminal().print(render_timeline(timeline, {one["name"]: _breaker(one) for one in breakers}))


def deliveries_table(deliveries: Sequence[Mapping[str, Any]], *, width: int) -> Table:
    """Returns a table of the newest deliveries, newest last. It has as many columns as fit `width` unsqueezed."""
    columns = {
        "stored": [instant(row["created_at"])[:8] for row in deliveries],
        "entity": [row["entity_id"] or "–" for row in deliveries],
        "state": [state_text(row["state"]) if row["state"] else "–" for row in deliveries],
        "event id": [f"{row['event_id']!s:.{_SHORT_ID}}…" for row in deliveries],
    }
    optional = {
        "subscription": [row["subscription"] or "nobody" for row in deliveries],
        "tries": [str(row["delivery_attempts"] or 0) for row in deliveries],
        "event": [row["event_type"] for row in deliveries],
        "source": [row["source"] for row in deliveries],
        "processed by": [", ".join(row["processed_by"]) or "–" for row in deliveries],
    }
    used = _table_width(columns)
    for name, cells in optional.items():
        needed = _table_width({name: cells}) + 2
        if used + needed > width:
            break
        columns[name] = cells
        used += needed
    whole = [str(row["event_id"]) for row in deliveries]
    if used - _table_width({"event id": columns["event id"]}) + _table_width({"event id": whole}) <= width:
        columns["event id"] = whole
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=None if name == "entity" else len(name))
    for row, cells in zip(deliveries, zip(*columns.values(), strict=True), strict=True):
        texts = dict(zip(columns, map(shown, cells), strict=True))
        texts["state"] = styled_state(row["state"]) if row["state"] else "–"
        texts["event id"] = f"[dim]{texts['event id']}[/]"
        table.add_row(*texts.values())
    return table


def _table_width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(max(map(cell_len, (name, *cells))) for name, cells in columns.items()) + 2 * (len(columns) - 1)


def id_digits(text: str) -> str:
    """Returns the digits that an id begins with. Raises UsageError for other text."""
    digits = text.strip().rstrip("….").replace("-", "").lower()
    if not re.fullmatch(rf"[0-9a-f]{{1,{_DIGITS}}}", digits):
        msg = f"{text!r} is no event id: it must be a UUID or its beginning, such as scripts/acp watch shows."
        raise UsageError(msg)
    return digits


def _find_events(ctx: typer.Context, client: Client, asked: str, digits: str) -> list[dict[str, Any]]:
    """Returns the one event that the id means, or all events of the one run, in the order in which they were stored.

    Raises AcpError if there is none, UsageError if there are several.
    """
    events = list(client.pages("/events", most=_MOST_CANDIDATES + 1, id_prefix=digits))
    if len(events) == 1:
        return events
    runs = _find_runs(ctx, digits)
    if not events and len(runs) == 1:
        of_run = list(client.pages("/events", most=_MOST_OF_RUN, trace_id=str(runs[0]["trace_id"])))
        if of_run:
            return of_run[::-1]
    if not events and len(runs) < 2:
        msg = f"There is no event and no run {asked}."
        if is_local(ctx):
            raise AcpError(msg, remedy="scripts/acp watch shows the newest events.")
        raise AcpError(msg, remedy="scripts/acp events lists events. A run is found by its whole trace id alone.")
    candidates = [f"  {row['event_id']}  {row['event_type']} {row['entity_id'] or ''}".rstrip() for row in events]
    candidates += [f"  {row['trace_id']}  a run of {row['count']} events" for row in runs if "count" in row]
    more = ["  …"] if len(candidates) > _MOST_CANDIDATES else []
    msg = f"{asked!r} could be several:"
    raise UsageError(msg, details="\n".join(candidates[:_MOST_CANDIDATES] + more), remedy="Give more of the id.")


def _find_runs(ctx: typer.Context, digits: str) -> list[dict[str, Any]]:
    """Returns the ingestion runs whose trace ids begin so; a deployment's API finds one by its whole id alone."""
    if len(digits) == _DIGITS:
        return [{"trace_id": UUID(digits)}]
    if not is_local(ctx):
        return []
    ids = {"lowest": UUID(digits.ljust(_DIGITS, "0")), "highest": UUID(digits.ljust(_DIGITS, "f"))}
    cloud, run = _running(ctx)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run), row_factory=dict_row) as connection:
        return connection.execute(QUERIES["runs_by_id"].sql, ids | {"limit": _MOST_CANDIDATES + 1}).fetchall()


def _breaker(told: Mapping[str, Any]) -> Breaker:
    """Returns a breaker as the API tells it."""
    known = {field.name: told[field.name] for field in fields(Breaker) if field.name in told}
    opened_at = known.get("opened_at")
    return Breaker(**known | {"opened_at": None if opened_at is None else instant_of(opened_at)})


def _start(ctx: typer.Context, path: str, reason: str, *, as_json: bool) -> None:
    """Starts a run on a deployment."""
    with asking(ctx) as client:
        told = client.send("POST", path, {"reason": why(reason)})
    if as_json:
        _print_json(told)
    else:
        Progress().say(f"{told['started']} was started at {client.profile.url}. What it does: scripts/acp events")


def _show_run(events: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Prints the events of one ingestion run; each has a timeline of its own."""
    if as_json:
        _print_json(events)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("event id", "entity", "event", "occurred"):
        table.add_column(column, no_wrap=column == "event id", overflow="ellipsis")
    for row in events:
        occurred = f"{instant_of(row['occurred_at']).astimezone(UTC):%m-%d %H:%M:%S}Z"
        table.add_row(
            f"{row['event_id']!s:.{_SHORT_ID}}…", shown(row["entity_id"] or "–"), shown(row["event_type"]), occurred
        )
    console = Terminal()
    console.print(table)
    said = f"{len(events)} events of trace {events[0]['trace_id']}; scripts/acp trace EVENT_ID shows one"
    console.print(f"[dim]{said}[/]", soft_wrap=True)


def _print_changes(
    deliveries: Sequence[Mapping[str, Any]], seen: dict[tuple[object, ...], tuple[object, ...]], *, as_json: bool
) -> None:
    """Prints one line for each delivery that is new or has changed since the last look."""
    keys = [(row["id"], row["subscription"], row["operation_id"]) for row in deliveries]
    for key, row in zip(keys, deliveries, strict=True):
        now = (row["state"], row["delivery_attempts"], tuple(row["processed_by"]))
        if seen.get(key) != now:
            seen[key] = now
            if as_json:
                content = {"payload" if name == "payload_json" else name: value for name, value in row.items()}
                sys.stdout.write(json.dumps(content, default=_plain_value) + "\n")
                continue
            processed = f"  processed by {', '.join(row['processed_by'])}" if row["processed_by"] else ""
            error = f"  {row['last_error']}" if row["last_error"] else ""
            state = f"{row['subscription']}  {row['state']}" if row["subscription"] else "without a subscription"
            line = (
                f"{instant(row['created_at'])}  {row['event_id']}  {row['event_type']} {row['entity_id'] or ''}  "
                f"{row['topic']}  {state}{processed}{error}"
            )
            sys.stdout.write(visible(line) + "\n")
    sys.stdout.flush()
    for gone in seen.keys() - set(keys):
        del seen[gone]


def _print_ingested(cloud: Cloud, run: RunState, result: Mapping[str, Any]) -> None:
    with psycopg.connect(database.reader_url(cloud.postgres(run), run), row_factory=dict_row) as connection:
        rows = connection.execute(QUERIES["run_events"].sql, {"trace_id": result["trace_id"]}).fetchall()
    console = Terminal()
    console.print(ingested_table(result, rows))
    counts = (
        f"{result['fetched']} bars: {result['ingested']} new, {result['duplicates']} known already, "
        f"{result['stale']} stale, {result['rejected']} rejected"
    )
    # Apart from the table, which would wrap it: a trace id is copied whole or not at all.
    console.print(f"[dim]{counts}\ntrace {result['trace_id']}[/]", soft_wrap=True)


def ingested_table(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Per symbol what is new, or why it failed, as the events of this very run tell."""
    table = Table(box=None, pad_edge=False, header_style="bold")
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
            shown(symbol),
            str(sum(row["count"] for row in ticks)),
            instant(ticks[0]["newest"], with_date=True) if ticks else "–",
            shown(f"{payload['price']} {payload['currency']}") if payload else "–",
            f"[red]{shown('; '.join(problems))}[/]" if problems else "",
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
    sys.stdout.write(json.dumps(content, indent=2, default=_plain_value) + "\n")


def _plain_value(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
