"""How a command reaches the API: the deployment that is meant, and its errors as acp's own."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from acp_cli.version import version
from acp_client.client import ApiError, ApiUnreachable, Client
from acp_client.profiles import Profile, ProfileError, chosen_profile
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, NotRunningError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local_cloud.run_state import RunState

LOCAL: Final = "local"
"""What the local cloud is called among the profiles."""
ByOption = Annotated[
    str | None, typer.Option("--by", help="Whom the reason names, beside the token.", show_default=False)
]
EVERY: Final = 1 << 62
"""The most items of a list that has no limit."""
_REMEDIES: Final = {
    401: "Is the token of this deployment, not expired and not revoked? acp login NAME --url URL stores another.",
    403: "An admin can make a token with that scope: acp tokens make NAME --scope SCOPE",
    429: "The deployment limits how often it is asked. Try again in a moment.",
    503: "See the deployment's /health, and the log of its functions.",
}


class UnreachableError(AcpError):
    """Raised when the deployment does not answer."""

    exit_code = 5


class Wanted:
    """The options by which a deployment is named, as the root command got them."""

    def __init__(self, url: str | None = None, token: str | None = None, profile: str | None = None) -> None:
        self._url, self._token, self._name = url, token, profile

    def profile(self) -> Profile | None:
        """Returns the deployment that is meant; None is the local cloud. Raises UsageError."""
        if self._name == LOCAL:
            return None
        try:
            return chosen_profile(os.environ, url=self._url, token=self._token, name=self._name)
        except ProfileError as error:
            raise UsageError(sentence(error)) from None


def is_local(ctx: typer.Context) -> bool:
    """Whether the command is for the local cloud, whose parts it may also look at itself."""
    return wanted_profile(ctx) is None


def wanted_profile(ctx: typer.Context) -> Profile | None:
    """Returns the deployment that the command is for; None is the local cloud. Raises UsageError."""
    return _wanted(ctx).profile()


@contextmanager
def asking(ctx: typer.Context) -> Iterator[Client]:
    """Yields a client of the deployment that the command is for; the local cloud's where nothing names another.

    Its errors are raised as AcpError, NotRunningError where the local cloud is down.
    """
    profile = _wanted(ctx).profile()
    if profile is None:
        cloud = ctx.obj
        assert isinstance(cloud, Cloud), "the callback sets it"
        profile = _local_profile(cloud, cloud.running())
    with _translated(profile) as client:
        yield client


@contextmanager
def asking_locally(cloud: Cloud, run: RunState) -> Iterator[Client]:
    """Yields a client of the local cloud with its own token, for a command that has just brought it up."""
    with _translated(_local_profile(cloud, run)) as client:
        yield client


@contextmanager
def _translated(profile: Profile) -> Iterator[Client]:
    try:
        yield Client(profile, agent=f"acp/{version()}")
    except ApiUnreachable as error:
        remedy = "Is it running? scripts/acp status" if profile.name == LOCAL else "Is the URL right, and the network?"
        raise UnreachableError(sentence(error), remedy=remedy) from None
    except ApiError as error:
        message = str(error) if profile.name == LOCAL else f"{profile.url}: {error}"
        raise AcpError(message, remedy=_REMEDIES.get(error.status, "")) from None


def deployment(ctx: typer.Context) -> str:
    """Returns what the deployment is called that the command is for, as a question names it."""
    profile = wanted_profile(ctx)
    return "the local cloud" if profile is None else profile.url


def is_confirmed(question: str, *, undone: str, remedy: str) -> bool:
    """Asks whoever sits at the terminal. Raises UsageError where nobody does: ``undone`` is what was not done then."""
    if not is_terminal():
        msg = f"{undone}: nobody is there to confirm it."
        raise UsageError(msg, remedy=remedy)
    return typer.confirm(question, err=True)


def is_terminal() -> bool:
    """Whether a person can answer."""
    return sys.stdin.isatty()


def why(reason: str, by: str | None = None) -> str:
    """Returns the reason that a change is recorded with; the API asks for one. ``by`` is a person whom it names.

    Raises UsageError for a person without a name.
    """
    if by is not None and not by.strip():
        msg = "--by is empty: say who asks for it, or leave it out."
        raise UsageError(msg)
    if not reason.strip():
        return f"asked for by {(by or os.environ.get('USER', 'somebody')).strip()}"
    return reason.strip() if by is None else f"{reason.strip()} ({by.strip()})"


def _wanted(ctx: typer.Context) -> Wanted:
    wanted = ctx.find_root().meta.get("acp.deployment")
    return wanted if isinstance(wanted, Wanted) else Wanted()


def _local_profile(cloud: Cloud, run: RunState) -> Profile:
    url = cloud.outputs(run).get("ApiUrl")
    if url is None:
        msg = "The local cloud has no API."
        raise NotRunningError(msg, remedy="Deploy it again: scripts/acp up")
    return Profile(LOCAL, url.rstrip("/"), run.api_token)


def sentence(error: Exception) -> str:
    """Returns an error's text as a sentence."""
    text = str(error)
    first = text[:1] if text.startswith("http") else text[:1].upper()
    return first + text[1:] + ("" if text.endswith((".", "?")) else ".")
