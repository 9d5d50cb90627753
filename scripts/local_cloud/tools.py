"""Runs the tools that we build on (uv, SAM, scripts/lib) quietly; the log file of a failed run is quoted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from local_cloud.environ import isolated
from local_cloud.errors import AcpError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from local_cloud.workspace import Workspace


class ToolError(AcpError):
    """Raised when a tool ended with an error. `details` holds the last lines it wrote."""


def environment(workspace: Workspace, name: str, lock: str) -> Path:
    """Makes or updates the environment of a lock file below requirements/, and returns its Python."""
    _shell(workspace, f"environment-{name}", 'environment "$1" "$2"', [name, lock])
    return workspace.python_of(name)


def uv(workspace: Workspace, arguments: Sequence[str], *, log: str) -> None:
    """Runs the uv that scripts/lib/environment.sh finds: the user's own, or ours."""
    _shell(workspace, log, 'find_uv; "$UV" "$@"', arguments)


def sam(
    workspace: Workspace, arguments: Sequence[str], *, log: str, extra_environ: Mapping[str, str] | None = None
) -> None:
    """Runs this environment's SAM CLI from the checkout. It reaches no AWS but the endpoint in `extra_environ`."""
    # SAM leaves a folder behind for each function that it packs.
    with tempfile.TemporaryDirectory(prefix="acp-sam-") as temporary:
        environ = sam_environ(workspace) | {"TMPDIR": temporary} | dict(extra_environ or {})
        run(workspace, sam_command(*arguments), log=log, env=environ)


def sam_command(*arguments: str) -> list[str]:
    """Returns the command line of this environment's SAM CLI."""
    return [sys.executable, "-m", "samcli", *arguments]


def sam_environ(workspace: Workspace) -> dict[str, str]:
    """Returns SAM's environment, without the user's account and home."""
    binaries = os.pathsep.join([str(Path(sys.executable).parent), str(Path(sys.base_prefix) / "bin")])
    return isolated(os.environ) | {
        # SAM looks for a python3.13 on the path; where it builds a layer itself, that needs pip.
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "SAM_CLI_TELEMETRY": "0",
        # Seconds between two looks at a stack; the five of the real cloud would be long here.
        "SAM_CLI_POLL_DELAY": "1",
        # SAM's notes about itself, which would otherwise go to the user's home.
        "__SAM_CLI_APP_DIR": str(workspace.home / "cache" / "sam"),
        "PIP_CACHE_DIR": str(workspace.home / "cache" / "pip"),
    }


def run(workspace: Workspace, command: Sequence[str], *, log: str, env: Mapping[str, str]) -> None:
    """Runs a command from the checkout, with its output in a log file. Raises ToolError that quotes its last lines."""
    path = workspace.logs / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as output:
        completed = subprocess.run(
            command,
            cwd=workspace.checkout,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if completed.returncode != 0:
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-20:])
        msg = f"{log} failed (exit code {completed.returncode})."
        raise ToolError(msg, details=tail, remedy=f"Its log: {path}")


def _shell(workspace: Workspace, log: str, script: str, arguments: Sequence[str]) -> None:
    run(
        workspace,
        ["bash", "-c", f"set -euo pipefail; . scripts/lib/environment.sh; {script}", "bash", *arguments],
        log=log,
        env=isolated(os.environ) | {"ACP_HOME": str(workspace.home)},
    )
