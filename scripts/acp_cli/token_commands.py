"""tokens: who may ask a deployment's API for what; making a token, and revoking it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table

from acp_cli.asking import EVERY, asking, why
from acp_client.client import in_path
from local_cloud.errors import UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

PANEL = "Deployments"
_tokens = typer.Typer(help="List the API's tokens, make one, revoke one.", no_args_is_help=True)
_JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
_NameArgument = Annotated[str, typer.Argument(help="The token's name: whose it is.", show_default=False)]
_BecauseOption = Annotated[str, typer.Option("--because", metavar="TEXT", help="Why; kept in the audit.")]


class TokenScope(StrEnum):
    """What a token may do."""

    READ = "read"
    OPERATE = "operate"
    APPROVE = "approve"
    METRICS = "metrics"
    ADMIN = "admin"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(_tokens, name="tokens", rich_help_panel=PANEL)


@_tokens.command("list")
def list_(ctx: typer.Context, *, as_json: _JsonOption = False) -> None:
    """List the tokens, revoked ones too: what each may do, when it ends, and when it was last used."""
    with asking(ctx) as client:
        found = list(client.pages("/tokens", most=EVERY))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("token", "may", "made by", "ends", "last used"):
        table.add_column(column, overflow="fold")
    for token in found:
        table.add_row(
            shown(token["name"]), shown(", ".join(token["scopes"])), shown(token["created_by"]), _end(token),
            _day(token["last_used_at"]) or "never",
        )  # fmt: skip
    if found:
        Terminal().print(table)
    else:
        Progress().say("No tokens but the secret's own, which is called root.")


@_tokens.command("make")
def make(
    ctx: typer.Context,
    name: _NameArgument,
    *,
    scopes: Annotated[
        list[TokenScope], typer.Option("--scope", help="What it may do; may be repeated.", show_default=False)
    ],
    expires: Annotated[
        int | None,
        typer.Option("--expires", metavar="DAYS", min=1, max=36500, help="It ends by itself.", show_default=False),
    ] = None,
    because: _BecauseOption = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token and nothing else.")] = False,
    as_json: _JsonOption = False,
) -> None:
    """Make a token. It is printed this once, and stored nowhere: keep it as you keep a password."""
    body: dict[str, Any] = {"name": name, "scopes": [str(scope) for scope in scopes], "reason": why(because)}
    if expires is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=expires)).isoformat()
    with asking(ctx) as client:
        made = client.send("POST", "/tokens", body)
    if made["token"] is None:
        # The answer was lost, and the repeated request's answer holds no secret.
        msg = f"The token {name} was made, and the answer that held it was lost."
        raise UsageError(msg, remedy=f"Revoke it, and make another: acp tokens revoke {name}")
    if as_json:
        sys.stdout.write(json.dumps(made, indent=2) + "\n")
        return
    sys.stdout.write(f"{made['token']}\n")
    if not quiet:
        may = ", ".join(made["scopes"])
        Progress().say(f"{name} may {may}; it ends {_day(made['expires_at']) or 'when it is revoked'}.")
        Progress().say("The token is shown this once. Store it with: acp login PROFILE --url URL")


@_tokens.command("revoke")
def revoke(
    ctx: typer.Context, name: _NameArgument, *, because: _BecauseOption = "", as_json: _JsonOption = False
) -> None:
    """Revoke a token for good; it is refused within 5 seconds."""
    with asking(ctx) as client:
        revoked = client.send("DELETE", f"/tokens/{in_path(name)}", reason=why(because))
    if as_json:
        sys.stdout.write(json.dumps(revoked, indent=2) + "\n")
    else:
        Progress().say(f"{name} is revoked.")


def _end(token: dict[str, Any]) -> str:
    if token["revoked_at"] is not None:
        return f"revoked {_day(token['revoked_at'])} by {shown(token['revoked_by'] or '')}"
    return _day(token["expires_at"]) or "–"


def _day(instant: str | None) -> str:
    return "" if instant is None else f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M}Z"
