"""Runs the tools we stand on (uv, SAM, the environments of scripts/lib), quietly: a log file, quoted when one fails."""

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
    """A tool ended with an error. `details` holds the last lines it wrote."""


def environment(workspace: Workspace, name: str, lock: str) -> Path:
    """Make or update the environment of a lock file below requirements/, and return its Python."""
    _shell(workspace, f"environment-{name}", 'environment "$1" "$2"', [name, lock])
    return workspace.python_of(name)


def uv(workspace: Workspace, arguments: Sequence[str], *, log: str) -> None:
    """Run uv, the user's own or ours, as scripts/lib/environment.sh finds it."""
    _shell(workspace, log, 'find_uv; "$UV" "$@"', arguments)


def sam(
    workspace: Workspace, arguments: Sequence[str], *, log: str, extra_environ: Mapping[str, str] | None = None
) -> None:
    """Run this environment's SAM CLI from the checkout. It reaches no AWS but the endpoint in `extra_environ`."""
    # It leaves a folder behind for each function that it packs.
    with tempfile.TemporaryDirectory(prefix="acp-sam-") as temporary:
        environ = sam_environ(workspace) | {"TMPDIR": temporary} | dict(extra_environ or {})
        run(workspace, sam_command(*arguments), log=log, env=environ)


def sam_command(*arguments: str) -> list[str]:
    """The command line of this environment's SAM CLI."""
    return [sys.executable, "-m", "samcli", *arguments]


def sam_environ(workspace: Workspace) -> dict[str, str]:
    """SAM's environment, without the user's account and home."""
    binaries = os.pathsep.join([str(Path(sys.executable).parent), str(Path(sys.base_prefix) / "bin")])
    return isolated(os.environ) | {
        # It looks for a python3.13 on the path, one with pip where it builds a layer itself.
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "SAM_CLI_TELEMETRY": "0",
        # Seconds between two looks at a stack; the real cloud's five are long here.
        "SAM_CLI_POLL_DELAY": "1",
        # Its notes about itself, otherwise in the user's home.
        "__SAM_CLI_APP_DIR": str(workspace.home / "cache" / "sam"),
        "PIP_CACHE_DIR": str(workspace.home / "cache" / "pip"),
    }


def run(workspace: Workspace, command: Sequence[str], *, log: str, env: Mapping[str, str]) -> None:
    """Run a command from the checkout, its output in a log file. Raises ToolError quoting its last lines."""
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
