"""The state of one local cloud, for later commands: state/run.json, which only its owner can read."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from local_cloud.errors import AcpError
from local_cloud.roles import SECRETS
from local_cloud.workspace import read_json, write_private

if TYPE_CHECKING:
    from local_cloud.workspace import Workspace

DEFAULT = "localstack"
STACK = "ai-control-plane"
_FILE = "run.json"


def _secret() -> str:
    return secrets.token_urlsafe(24)


@dataclass
class Deployment:
    """The stack as it was deployed, and what it was deployed from."""

    held_by: str
    """The emulator's `holder` at the deployment; another run of the emulator has another holder and starts empty."""
    template: str
    """Digest of the template and its parameters."""
    code: str
    """Digest of the built functions and layers."""
    outputs: dict[str, str]
    environ: dict[str, str]
    """The environment variables that have the same value in all functions."""
    never_updated: str = ""
    """Digest of the resources that an update does not change, on an emulator with that flaw (UpdateGaps.others)."""


@dataclass
class RunState:
    """Everything later commands must know.

    Passwords live as long as the database. The ports of PostgreSQL and the market are wishes for the next start.
    """

    superuser_password: str = field(default_factory=_secret)
    role_passwords: dict[str, str] = field(default_factory=lambda: {role: _secret() for role in SECRETS.values()})
    """Passwords by the database's role."""
    api_token: str = field(default_factory=_secret)
    cloud: str = DEFAULT
    """The emulator's name, as in --cloud."""
    endpoint: str = ""
    """The emulator's URL; empty until there is one."""
    stack: str = STACK
    stack_is_ours: bool = False
    """Whether we made the stack of that name, so that we may delete what an interrupted deployment left."""
    postgres_port: int | None = None
    market_port: int | None = None
    market_source: str | None = None
    market_reason: str = ""
    market_from: str | None = None
    """The day that the replay started at; None where it goes round and round."""
    market_from_at: str = ""
    """The instant that has that day."""
    parameters: dict[str, str] = field(default_factory=dict)
    """The template's parameters that a user chose."""
    deployment: Deployment | None = None

    def save(self, workspace: Workspace) -> None:
        """Writes the whole file, or nothing."""
        write_private(workspace.state / _FILE, json.dumps(asdict(self), indent=2))


def load(workspace: Workspace) -> RunState | None:
    """Returns the saved state, or None if there is none. Raises AcpError for a damaged file."""
    content: dict[str, Any] | None = read_json(workspace.state / _FILE)
    if content is None:
        return None
    try:
        deployment = content.pop("deployment")
        # A role that has come since gets a password; `acp up` makes the role.
        content["role_passwords"] = RunState().role_passwords | content["role_passwords"]
        return RunState(**content, deployment=None if deployment is None else Deployment(**deployment))
    except (KeyError, TypeError) as error:
        msg = f"{workspace.state / _FILE} was written by another version of acp."
        raise AcpError(msg, remedy="Run scripts/acp down, which clears it.") from error
