"""whoami: whose token a deployment's API is asked with, and what it may do."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from acp_cli.asking import asking
from local_cloud.visible import Terminal, shown

PANEL = "Deployments"
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=PANEL)(whoami)


def whoami(ctx: typer.Context, *, as_json: _JsonOption = False) -> None:
    """Say whose token this is, what it may do, and when it ends."""
    with asking(ctx) as client:
        found = client.get("/whoami")
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    end = f"until {shown(found['expires_at'])}" if found["expires_at"] else "until it is revoked"
    Terminal().print(f"{shown(found['name'])}: {shown(', '.join(found['scopes']))}, {end}")
