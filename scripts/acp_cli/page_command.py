"""page: the address of a deployment's page, with a token of its own that ends by itself."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from acp_cli.asking import EVERY, asking, why
from acp_client.client import ApiError
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import shown

if TYPE_CHECKING:
    from acp_client.client import Client

PANEL = "Deployments"
HOURS: Final = 12
"""How long the page's token is valid."""
_SCOPES: Final = ("read", "operate", "approve")
"""What the page can use: never admin, which could make further tokens."""
_TRIES: Final = 5
"""How many names are tried while others make tokens at the same time."""


@dataclass(frozen=True, slots=True)
class PageAddress:
    """The page's address with its token, and what that token may do until when."""

    url: str
    name: str
    scopes: list[str]
    expires_at: str

    @property
    def told(self) -> str:
        """What a person should know about the address."""
        until = datetime.fromisoformat(self.expires_at).astimezone(UTC)
        return (
            f"Whoever has this address may {shown(', '.join(self.scopes))} until {until:%Y-%m-%d %H:%M}Z. "
            f"To end that: acp tokens revoke {shown(self.name)}"
        )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("page", rich_help_panel=PANEL)(page)


def page(
    ctx: typer.Context,
    *,
    because: Annotated[str, typer.Option("--because", metavar="TEXT", help="Why; kept in the audit.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the address and nothing else.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Print the page's address with a fresh token, for a browser; nothing is opened.

    The token may read, operate and approve, as far as yours may, and ends after 12 hours. It is in the part of the
    address that browsers send to no server.
    """
    with asking(ctx) as client:
        made = page_address(client, why(because))
    if as_json:
        fields = {"url": made.url, "name": made.name, "scopes": made.scopes, "expires_at": made.expires_at}
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
        return
    sys.stdout.write(f"{made.url}\n")
    if not quiet:
        Progress().say(made.told)


def page_address(client: Client, reason: str) -> PageAddress:
    """Makes a token for the page, with no scope that the client's own lacks and no longer valid than that one.

    Raises UsageError where that token can make none, ApiError, ApiUnreachable.
    """
    own = client.get("/whoami")
    scopes = [scope for scope in _SCOPES if scope in own["scopes"]]
    if "admin" not in own["scopes"]:
        msg = f"The token {own['name']} is no admin, so it cannot make one for the page."
        raise UsageError(msg, remedy=f"Open {client.profile.url}/ui and paste the token that you have.")
    ends = datetime.now(UTC) + timedelta(hours=HOURS)
    if own["expires_at"] is not None:
        ends = min(ends, datetime.fromisoformat(own["expires_at"]))
    body = {"scopes": scopes, "expires_at": ends.isoformat(), "reason": reason}
    made = _make(client, body)
    if made["token"] is None:
        msg = f"The token {made['name']} was made, and the answer that held it was lost."
        raise AcpError(msg, remedy=f"Run it again, and: acp tokens revoke {made['name']}")
    return PageAddress(
        f"{client.profile.url}/ui#token={made['token']}", made["name"], made["scopes"], made["expires_at"]
    )


def _make(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """Makes a token of the first name page-N that was never given."""
    named = (re.fullmatch(r"page-(\d{1,9})", token["name"]) for token in client.pages("/tokens", most=EVERY))
    free = max((int(match[1]) for match in named if match), default=0) + 1
    for number in range(free, free + _TRIES):
        try:
            made: dict[str, Any] = client.send("POST", "/tokens", {"name": f"page-{number}", **body})
        except ApiError as error:
            # Somebody else has taken this name since the list was read.
            if error.status != 409 or number == free + _TRIES - 1:
                raise
        else:
            return made
    raise AssertionError("the last try returns or raises")
