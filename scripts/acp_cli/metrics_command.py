"""metrics: what a deployment has counted, as Prometheus reads it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from acp_cli.asking import asking

PANEL = "Signals"
_TEXT = "text/plain"
_OPENMETRICS = "application/openmetrics-text"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("metrics", rich_help_panel=PANEL)(metrics)


def metrics(
    ctx: typer.Context,
    *,
    openmetrics: Annotated[
        bool, typer.Option("--openmetrics", help="In OpenMetrics, with the trace of one of those that were counted.")
    ] = False,
) -> None:
    """Print the metrics as Prometheus reads them; the token needs the scope metrics."""
    with asking(ctx) as client:
        sys.stdout.write(client.text("/metrics", content_type=_OPENMETRICS if openmetrics else _TEXT))
