"""LocalStack in host mode: without Docker; the executor of scripts/localstack runs its functions as processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local_cloud import tools
from local_cloud.build import digest
from local_cloud.emulators.emulator import StartedEmulator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class LocalStack(StartedEmulator):
    """LocalStack 4.14.0, the last release that needs no account token."""

    name = "localstack"
    title = "LocalStack"
    health_path = "/_localstack/health"
    ignores_changed_rules = True

    def prepare(self) -> None:
        """Makes or updates LocalStack's environment, with our executor in it, and the functions' environment."""
        python = tools.environment(self.workspace, "localstack", "requirements/localstack.txt")
        tools.environment(self.workspace, "runtime", "requirements/runtime.txt")
        executor = self.workspace.checkout / "scripts" / "localstack"
        stamp_file = self.workspace.venvs / "localstack" / ".executor"
        # uv removes from the environment whatever the new lock does not name.
        stamp = (
            digest([executor, executor.with_name("loopback_guard")])
            + (self.workspace.venvs / "localstack" / ".lock-checksum").read_text()
        )
        if not stamp_file.exists() or stamp_file.read_text() != stamp:
            _install(python, executor, self)
            stamp_file.write_text(stamp)

    def command(self) -> Sequence[str]:
        """Returns LocalStack's own entry point."""
        return [str(self.workspace.python_of("localstack")), "-m", "localstack.runtime.main"]

    def environ(self, port: int) -> Mapping[str, str]:
        """Returns the settings for host mode, on loopback, with our executor."""
        return {
            # The folder where it caches the list of plugins; with a cache of its own it always finds the executor.
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "FILESYSTEM_ROOT": str(self.root / "filesystem"),
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            # LocalStack's own server would listen on every address despite the line above, and let web pages in.
            "GATEWAY_SERVER": "bound",
            # The guard refuses every foreign Origin; with this, answers do not invite one either.
            "DISABLE_CORS_HEADERS": "1",
            "DISABLE_CUSTOM_CORS_S3": "1",
            "DISABLE_CUSTOM_CORS_APIGATEWAY": "1",
            "LOCALSTACK_HOST": f"localhost:{port}",
            "SQS_ENDPOINT_STRATEGY": "path",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DISABLE_EVENTS": "1",
            "DNS_ADDRESS": "0",
            "OVERRIDE_IN_DOCKER": "0",
            "EAGER_SERVICE_LOADING": "0",
            "LAMBDA_RUNTIME_EXECUTOR": "process",
            # Importing yfinance takes seconds.
            "LAMBDA_RUNTIME_ENVIRONMENT_TIMEOUT": "60",
            # Seconds before a failed asynchronous invocation is retried; a minute would be long to watch.
            "LAMBDA_RETRY_BASE_DELAY": "5",
            "ACP_LAMBDA_PYTHON": str(self.workspace.python_of("runtime")),
        }


def _install(python: Path, executor: Path, emulator: LocalStack) -> None:
    tools.uv(
        emulator.workspace,
        [
            "pip",
            "install",
            f"--python={python}",
            "--no-deps",
            "--no-build-isolation",
            # The package's version never changes, so a cached build would be an old one.
            "--no-cache",
            "--reinstall",
            str(executor),
        ],
        log="executor",
    )
