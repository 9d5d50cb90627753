"""LocalStack in host mode: no Docker, its functions run as processes by the executor of scripts/localstack."""

from __future__ import annotations

import os
import urllib.request
from typing import TYPE_CHECKING

from acp_cli import tools
from acp_cli.build import digest
from acp_cli.environ import LOCAL_AWS
from acp_cli.net import free_port, port_is_free

if TYPE_CHECKING:
    from pathlib import Path

    from acp_cli.processes import Service
    from acp_cli.workspace import Workspace

DEFAULT_PORT = 4566
_READY_SECONDS = 120


def prepare(workspace: Workspace) -> tuple[Path, Path]:
    """Make or update LocalStack's environment, our executor in it, and the functions' own. Returns their Pythons."""
    python = tools.environment(workspace, "localstack", "requirements/localstack.txt")
    executor = workspace.checkout / "scripts" / "localstack"
    stamp_file = workspace.venvs / "localstack" / ".executor"
    # A new lock empties the environment of what it does not name.
    stamp = digest([executor]) + (workspace.venvs / "localstack" / ".lock-checksum").read_text()
    if not stamp_file.exists() or stamp_file.read_text() != stamp:
        tools.uv(
            workspace,
            [
                "pip",
                "install",
                f"--python={python}",
                "--no-deps",
                "--no-build-isolation",
                # The version never changes: a cached build of it would be an old one.
                "--no-cache",
                "--reinstall",
                str(executor),
            ],
            log="executor",
        )
        stamp_file.write_text(stamp)
    return python, tools.environment(workspace, "runtime", "requirements/runtime.txt")


def choose_port() -> int:
    """LocalStack's usual port, or else a free one."""
    return DEFAULT_PORT if port_is_free(DEFAULT_PORT) else free_port()


def start(workspace: Workspace, service: Service, *, python: Path, lambda_python: Path, port: int) -> None:
    """Start it; not yet ready on return."""
    root = workspace.state / "localstack"
    temporary = root / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    service.start(
        [str(python), "-m", "localstack.runtime.main"],
        cwd=root,
        env={
            # Its environment is ours from the ground up: DEBUG or LAMBDA_… of the user's would configure it.
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(root),
            "TMPDIR": str(temporary),
            # Where it caches which plugins there are: a cache of our own never misses the executor.
            "XDG_CACHE_HOME": str(root / "cache"),
            "FILESYSTEM_ROOT": str(root / "filesystem"),
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "LOCALSTACK_HOST": f"localhost:{port}",
            "SQS_ENDPOINT_STRATEGY": "path",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DISABLE_EVENTS": "1",
            "DNS_ADDRESS": "0",
            "OVERRIDE_IN_DOCKER": "0",
            "EAGER_SERVICE_LOADING": "0",
            "LAMBDA_RUNTIME_EXECUTOR": "process",
            # yfinance takes seconds to import.
            "LAMBDA_RUNTIME_ENVIRONMENT_TIMEOUT": "60",
            # Seconds before a failed asynchronous invocation is tried again; a minute is long to watch.
            "LAMBDA_RETRY_BASE_DELAY": "5",
            "ACP_LAMBDA_PYTHON": str(lambda_python),
            "NO_PROXY": "127.0.0.1,localhost",
            **LOCAL_AWS,
        },
    )


def wait_until_ready(service: Service, port: int) -> None:
    """Raises ServiceError."""
    service.wait_until(lambda: _answers(port), seconds=_READY_SECONDS)


def _answers(port: int) -> bool:
    # Straight to it: no proxy of the user's stands between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/_localstack/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
