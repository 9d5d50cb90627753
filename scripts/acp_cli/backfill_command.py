"""backfill: plans that the past is filled in; says whether a file of observations can be, and which rows cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from acp_cli.asking import ByOption, asking, why
from acp_cli.following import plan_operation
from acp_cli.instants import instant_text
from acp_cli.observation_files import BadRows, read_file
from acp_cli.operations_commands import show_plan
from acp_cli.symbols import split_symbols
from control_plane.model.backfill import MOST_PIECES
from domains import DOMAINS
from local_cloud.errors import UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from acp_cli.observation_files import ReadFile
    from control_plane.model.backfill import FileShape

PANEL = "Signals"
MOST_SHOWN: Final = 50
"""How many bad rows are printed; --json has all."""
_SHAPES: Final = {shape.name: shape for domain in DOMAINS for shape in domain.files}
_backfill = typer.Typer(help="Fill in the past from a source or a file.", no_args_is_help=True)
_ShapeOption = Annotated[str, typer.Option("--shape", help=f"What its rows are: {', '.join(_SHAPES)}.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_backfill, name="backfill", rich_help_panel=PANEL)


@_backfill.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A CSV (also .csv.gz) or Parquet file.", show_default=False)],
    *,
    shape: _ShapeOption = "bars",
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Read a file as a backfill would, and say which rows are bad. Sends nothing, and needs no local cloud."""
    read = read_file(file, find_shape(shape))
    if as_json:
        json.dump(_as_json(read), sys.stdout, indent=2)
        sys.stdout.write("\n")
    refuse_bad_rows(file, read, quiet=as_json)
    if not as_json:
        pieces = "1 piece" if len(read.parts) == 1 else f"{len(read.parts)} pieces"
        Progress().say(f"{file.name}: {read.observations:,} observations in {pieces}; no row is bad.")


@_backfill.command("plan")
def plan(
    ctx: typer.Context,
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL", help="Such as AAPL MSFT.", show_default=False)],
    *,
    since: Annotated[str, typer.Option(metavar="INSTANT", help="From then on, in UTC: 2026-01-05.")],
    until: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Up to then; until now without it.", show_default=False)
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Of bars, such as 1m or 1d; 1m without it.", show_default=False)
    ] = None,
    source: Annotated[str | None, typer.Option(help="If there are several.", show_default=False)] = None,
    publish: Annotated[bool, typer.Option("--publish/--no-publish", help="Deliver what is stored, or not.")] = True,
    rate: Annotated[float | None, typer.Option("--rate", help="Pieces per second.", show_default=False)] = None,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")] = "",
    by: ByOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Plan that the past of some symbols is fetched and stored. `operations start` starts the plan."""
    given = {
        "symbols": list(split_symbols(symbols)),
        "since": instant_text(since, "--since"),
        "until": instant_text(until, "--until"),
        "interval": interval,
        "source": source,
        "publish": publish,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    recorded = why(because, by)
    with asking(ctx) as client:
        planned = plan_operation(client, "backfill", wanted, reason=recorded, rate=rate)
    show_plan(planned, as_json=as_json)


@_backfill.command("file")
def file_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A CSV (also .csv.gz) or Parquet file.", show_default=False)],
    *,
    observed_at: Annotated[
        str,
        typer.Option(metavar="INSTANT", help="When its observations were made, so that a later look stands before it."),
    ],
    shape: _ShapeOption = "bars",
    source: Annotated[str, typer.Option(help="What the events name as their source.")] = "file",
    publish: Annotated[bool, typer.Option("--publish/--no-publish", help="Deliver what is stored, or not.")] = True,
    rate: Annotated[float | None, typer.Option("--rate", help="Pieces per second.", show_default=False)] = None,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the operation.")] = "",
    by: ByOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Send a file in pieces, and plan that it is stored. Nothing is sent if a row is bad."""
    observed, recorded = instant_text(observed_at, "--observed-at"), why(because, by)
    read = read_file(file, find_shape(shape))
    refuse_bad_rows(file, read)
    assert observed is not None, "the option is required"
    wanted = file_wanted(read, observed_at=observed, source=source, publish=publish)
    with asking(ctx) as client:
        with Progress().step("Sent") as step:
            for number, part in enumerate(read.parts, 1):
                body = {"observations": json.loads(part.body), "reason": recorded}
                client.send("PUT", f"/backfill-files/{wanted['file']}/{number}", body)
                step.update(f"{number:,} of {len(read.parts):,} pieces")
            step.note = f"{read.observations:,} observations in {len(read.parts):,} pieces"
        planned = plan_operation(client, "backfill", wanted, reason=recorded, rate=rate)
    show_plan(planned, as_json=as_json)


def find_shape(name: str) -> FileShape:
    """Returns a kind of file by its name. Raises UsageError."""
    if name not in _SHAPES:
        msg = f"There are no files of {name!r}. There are: {', '.join(_SHAPES)}."
        raise UsageError(msg)
    return _SHAPES[name]


def refuse_bad_rows(file: Path, read: ReadFile, *, quiet: bool = False) -> None:
    """Prints each bad row by its line and reason. Raises BadRows if there is one, or no good one."""
    terminal = Terminal(stderr=True)
    for row in () if quiet else read.bad_rows[:MOST_SHOWN]:
        terminal.print(f"line {row.line}: {shown(row.reason)}", highlight=False)
    more = len(read.bad_rows) - MOST_SHOWN
    if more > 0 and not quiet:
        terminal.print(f"… and {more:,} more: --json has all of them")
    if read.bad_rows:
        msg = f"{file.name}: {len(read.bad_rows):,} of {len(read.bad_rows) + read.observations:,} rows are bad."
        raise BadRows(msg, remedy="Mend or remove them: a file is ingested whole.")
    if not read.observations:
        msg = f"{file.name} has no rows."
        raise UsageError(msg)
    if len(read.parts) > MOST_PIECES:
        msg = f"{file.name} makes {len(read.parts):,} pieces, and {MOST_PIECES:,} are the most: split the file."
        raise UsageError(msg)


def file_wanted(read: ReadFile, *, observed_at: str, source: str = "file", publish: bool = True) -> dict[str, Any]:
    """Returns the filter of a backfill of an uploaded file."""
    return {
        "file": read.sha256,
        "pieces": len(read.parts),
        "observed_at": observed_at,
        "source": source,
        "publish": publish,
    }


def _as_json(read: ReadFile) -> dict[str, Any]:
    return {
        "file": read.sha256 if read.parts else None,
        "observations": read.observations,
        "pieces": len(read.parts),
        "bad_rows": [{"line": row.line, "reason": row.reason} for row in read.bad_rows],
    }
