"""MiniStack runs Python functions as processes by itself; scripts/ministack gives them their interpreter."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from local_cloud import tools
from local_cloud.emulators.emulator import StartedEmulator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class MiniStack(StartedEmulator):
    """MiniStack 1.5.33, which acp starts."""

    name = "ministack"
    title = "MiniStack"
    health_path = "/_ministack/health"

    def prepare(self) -> None:
        """Makes or updates MiniStack's environment, and the functions' environment."""
        for environment in ("ministack", "runtime"):
            tools.environment(self.workspace, environment, f"requirements/{environment}.txt")

    def command(self) -> Sequence[str]:
        """Returns the command that runs scripts/ministack."""
        host = self.workspace.checkout / "scripts" / "ministack" / "host.py"
        return [str(self.workspace.python_of("ministack")), str(host)]

    def environ(self, port: int) -> Mapping[str, str]:
        """Returns settings for loopback, and the functions' variables, because functions inherit its environment."""
        functions_python = self.workspace.python_of("runtime")
        return {
            "PATH": os.pathsep.join([str(functions_python.parent), "/usr/local/bin", "/usr/bin", "/bin"]),
            "TZ": ":UTC",
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "STATE_DIR": str(self.root / "state"),
            "ACP_LAMBDA_PYTHON": str(functions_python),
            # Seconds before a failed asynchronous invocation is retried, as with LocalStack.
            "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "5",
        }
