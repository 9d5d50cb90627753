"""backtest: real days through detector, engine, gatekeeper and outcome, and how good the forecasts were."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from backtest.report import render, to_dict
from backtest.run import run_backtest
from local_cloud.progress import Progress
from local_cloud.visible import Terminal
from local_cloud.workspace import CHECKOUT

PANEL = "Measuring"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=PANEL)(backtest)


def backtest(
    *,
    days: Annotated[
        int | None, typer.Option(min=50, help="Only the first days of each stock: a check that it works.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="The figures; - for standard output.", show_default=False),
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="The report, as Markdown.", show_default=False)
    ] = None,
) -> None:
    """Decide on thirteen real years of five stocks, and report how good the forecasts were. Takes about two minutes.

    Needs nothing running: it starts a PostgreSQL of its own and clears it away.
    """
    progress = Progress()
    with progress.step("Backtest") as step:
        run = run_backtest(CHECKOUT / "db" / "migrations", days=days, say=step.update)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    found = to_dict(run, seen_on=datetime.now(UTC).date().isoformat(), machine=machine)
    text = json.dumps(found, indent=2) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
    elif json_file is not None:
        Path(json_file).write_text(text, encoding="utf-8")
    report = render(found)
    if report_file is not None:
        report_file.write_text(report, encoding="utf-8")
    elif json_file != "-":
        Terminal().print(report, markup=False)
