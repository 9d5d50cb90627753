"""audit log: what was changed by the API, by whose token and why."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from acp_cli.asking import asking
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown


def log(
    ctx: typer.Context,
    *,
    token: Annotated[
        str | None, typer.Option("--name", metavar="TOKEN", help="By this token alone.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts; before and after, too.")] = False,
) -> None:
    """List what was changed by the API, newest first: when, by whose token, what and why."""
    with asking(ctx) as client:
        found = list(client.pages("/audit", most=limit, token=token))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for row in found:
        Terminal().print(_line(row), soft_wrap=True)
    if not found:
        Progress().say("Nothing was changed by the API." if token is None else f"Nothing was changed by {token}.")


def _line(row: dict[str, Any]) -> str:
    at = datetime.fromisoformat(row["at"]).astimezone(UTC)
    return (
        f"[bold]{row['id']}[/]  {at:%Y-%m-%d %H:%M:%S}Z  [bold]{shown(row['token'])}[/]  {shown(row['route'])}  "
        f"{row['status']}  [dim]{shown(row['address'])}[/]  {shown(row['reason'])}"
    )
