"""login, logout and profiles: which deployments acp knows, and which one it asks."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from acp_cli.asking import LOCAL, UnreachableError, sentence
from acp_cli.version import version
from acp_client.client import ApiError, ApiUnreachable, Client
from acp_client.profiles import ProfileError, Profiles, profile_of, profiles_path
from local_cloud.errors import AcpError, UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from acp_client.profiles import Profile

PANEL = "Deployments"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (login, logout, profiles):
        app.command(command.__name__, rich_help_panel=PANEL)(command)


def login(
    name: Annotated[str, typer.Argument(help="What to call the deployment: prod, staging.", show_default=False)],
    *,
    url: Annotated[str, typer.Option(help="Its API: the stack's output ApiUrl.", show_default=False)],
) -> None:
    """Store a deployment's URL and token, and make it the one that is asked. The token is read, not typed as an option.

    It is asked for at a terminal, and otherwise read from standard input: acp login prod --url URL < token
    """
    if name == LOCAL or not name.strip():
        msg = f"{name!r} cannot be a profile's name: {LOCAL} is the local cloud."
        raise UsageError(msg)
    token = typer.prompt("Token", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    try:
        profile = profile_of(name, url, token.strip() or None)
    except ProfileError as error:
        raise UsageError(sentence(error)) from None
    if profile.token is None:
        msg = "There is no token on standard input."
        raise UsageError(msg, remedy=f"acp login {name} --url {url} < FILE")
    _check(profile)
    _profiles().keep(profile)
    Progress().say(f"{name} is asked from now on, unless --profile names another. acp logout {name} forgets it.")


def logout(
    name: Annotated[str, typer.Argument(help="The profile to forget.", show_default=False)],
) -> None:
    """Forget a deployment and its token. The token itself stays valid: acp tokens revoke NAME ends it."""
    if not _profiles().forget(name):
        msg = f"There is no profile {name!r}."
        raise UsageError(msg, remedy="acp profiles lists them.")


def profiles(*, as_json: Annotated[bool, typer.Option("--json", help="For scripts; without tokens.")] = False) -> None:
    """List the deployments that acp knows; the one that is asked has a star."""
    try:
        stored = _profiles().read()
    except ProfileError as error:
        raise AcpError(sentence(error)) from None
    current = stored["current"] or LOCAL
    known = {LOCAL: None, **{name: one["url"] for name, one in stored["profiles"].items()}}
    if as_json:
        found = [{"name": name, "url": url, "is_current": name == current} for name, url in known.items()]
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for name, url in known.items():
        star = "*" if name == current else " "
        Terminal().print(f"{star} {shown(name)}  {shown(url or 'the local cloud')}", soft_wrap=True)


def _check(profile: Profile) -> None:
    """Raises AcpError where the deployment does not answer, or does not accept the token."""
    client = Client(profile, agent=f"acp/{version()}")
    try:
        client.get("/flow")
    except ApiUnreachable as error:
        msg = f"Nothing was stored: {error}."
        raise UnreachableError(msg, remedy="Is the URL right, and the network?") from None
    except ApiError as error:
        # A token without the scope read is a good token all the same.
        if error.status != 403:
            msg = f"Nothing was stored: {profile.url} says: {error}"
            raise AcpError(msg) from None


def _profiles() -> Profiles:
    return Profiles(profiles_path(os.environ))
