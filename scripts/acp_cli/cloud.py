"""The local cloud as a whole: what belongs to it, how it comes up, how it goes down."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from acp_cli import build, database, deployment, localstack, market, run_state
from acp_cli.aws import LocalCloud
from acp_cli.environ import LOCAL_AWS
from acp_cli.errors import AcpError, NotRunningError
from acp_cli.market import MarketChoice
from acp_cli.postgres import PostgresServer
from acp_cli.processes import Service
from acp_cli.run_state import RunState
from acp_cli.workspace import locked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from acp_cli.progress import Progress
    from acp_cli.workspace import Workspace

_DEFAULTS = {"RelayLingerSeconds": "50"}
"""The template's parameters that fit a laptop better: here a relay that stays costs nothing, and people look on."""
_ACCESS = ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What a person may choose; what they leave open stays as it is, or takes its default.

    `parameters` are the template's, by name.
    """

    market: MarketChoice = MarketChoice.AUTO
    parameters: Mapping[str, str] = field(default_factory=dict)


class Cloud:
    """The local cloud of one workspace, running or not."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.localstack = self._service("localstack")
        self.market = self._service("market")

    def _service(self, name: str) -> Service:
        return Service(name, records=self.workspace.services, log=self.workspace.logs / f"{name}.log")

    def postgres(self, run: RunState) -> PostgresServer:
        """The database server, running or not."""
        return PostgresServer(
            self.workspace.state / "postgres",
            password=run.superuser_password,
            port=run.postgres_port,
            log=self.workspace.logs / "postgres.log",
        )

    def missing(self, run: RunState) -> list[str]:
        """The parts that should run and do not."""
        parts = {
            "PostgreSQL": self.postgres(run).running,
            "LocalStack": self.localstack.process is not None,
            "the market replay": self.market.process is not None or run.market_source != MarketChoice.REPLAY,
            "the stack": run.deployment is not None and run.deployment.localstack == self.localstack.identity,
        }
        return [name for name, there in parts.items() if not there]

    def running(self) -> RunState:
        """The state of a cloud that is up. Raises NotRunningError where it is not, or no longer whole."""
        run = run_state.load(self.workspace)
        if run is None:
            msg = "The local cloud is not running."
            raise NotRunningError(msg, remedy="Start it with: scripts/acp up")
        missing = self.missing(run)
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            msg = f"The local cloud is not whole: {' and '.join(missing)} {verb} missing."
            raise NotRunningError(msg, remedy="Mend it with: scripts/acp up")
        return run

    def aws(self, run: RunState) -> LocalCloud:
        """Clients for its LocalStack."""
        return LocalCloud(run.endpoint)

    def outputs(self, run: RunState) -> dict[str, str]:
        """The stack's outputs."""
        assert run.deployment is not None, "a running cloud has a stack"
        return run.deployment.outputs

    def describe(self, run: RunState) -> dict[str, str]:
        """Of each part of a running cloud, where it is."""
        return {
            "PostgreSQL": f"127.0.0.1:{self.postgres(run).port}",
            "LocalStack": run.endpoint,
            **({"API": url} if (url := self.outputs(run).get("ApiUrl")) else {}),
            "market data": f"{run.market_source}, because {run.market_reason}",
        }

    def environ(self, run: RunState) -> dict[str, str]:
        """All a script needs to reach it: the functions' environment, the endpoint, the stack's outputs."""
        assert run.deployment is not None, "a running cloud has a stack"
        server, outputs = self.postgres(run), run.deployment.outputs
        # The functions are given secrets' ARNs, a script the secrets: exactly one of the two may be set.
        environ = {name: value for name, value in run.deployment.environ.items() if not name.endswith("_SECRET_ARN")}
        return {
            **environ,
            "DATABASE_URL": database.app_url(server, run),
            "DATABASE_OWNER_URL": database.owner_url(server, run),
            "API_TOKEN": run.api_token,
            **({"API_URL": url} if (url := outputs.get("ApiUrl")) else {}),
            "AWS_ENDPOINT_URL": run.endpoint,
            **{name: LOCAL_AWS[name] for name in _ACCESS},
            **outputs,
        }

    def up(self, options: UpOptions, progress: Progress) -> RunState:
        """Bring everything to the wished state; what is there already is kept. The caller holds the lock."""
        run = run_state.load(self.workspace) or RunState()
        run.parameters |= options.parameters
        run.save(self.workspace)
        with progress.step("Environments"), locked(self.workspace.venvs, "up", on_wait=progress.say):
            localstack_python, lambda_python = localstack.prepare(self.workspace)
        self._start_localstack(run, localstack_python, lambda_python)
        server = self.postgres(run)
        with progress.step("PostgreSQL") as step:
            server.start()
            run.postgres_port = server.port
            run.save(self.workspace)
            database.prepare(server, run)
            step.note = f"on port {server.port}"
        with progress.step("Database schema") as step:
            report = database.apply_migrations(self.workspace, database.owner_url(server, run))
            step.note = f"version {report.version}, {len(report.applied) or 'none'} applied"
        with progress.step("Market data") as step:
            market_url = self._settle_market(run, options.market)
            step.note = f"{run.market_source}, because {run.market_reason}"
        with progress.step("Build for this host"), locked(self.workspace.layers, "up", on_wait=progress.say):
            template = build.build_for_host(self.workspace)
        with progress.step("LocalStack") as step:
            assert run.localstack_port is not None, "it was started above"
            localstack.wait_until_ready(self.localstack, run.localstack_port)
            step.note = f"on port {run.localstack_port}"
            if run.localstack_port != localstack.DEFAULT_PORT:
                step.note += f", as {localstack.DEFAULT_PORT} was in use"
        with progress.step("Deployment") as step:
            step.note = self._deploy(run, template, {"MarketDataUrl": market_url, **_DEFAULTS, **run.parameters})
        with progress.step("Check") as step:
            step.note = self._check(run)
        return run

    def down(self, progress: Progress, *, keep: bool) -> None:
        """Stop everything there is, and clear the state unless told to keep it. Nothing to stop is fine."""
        try:
            run = run_state.load(self.workspace)
        except AcpError:
            # Damaged: the servers are found without it.
            run = None
        with progress.step("Stopping"):
            # It keeps nothing, and takes its time to say goodbye.
            self.localstack.stop(grace_seconds=2)
            self.market.stop()
            self.postgres(run or RunState()).stop("fast" if keep else "immediate")
        if not keep:
            with progress.step("Clearing the local state"):
                try:
                    shutil.rmtree(self.workspace.state)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    msg = f"Could not remove {error.filename}: {error.strerror}."
                    raise AcpError(
                        msg, remedy=f"Everything is stopped; remove {self.workspace.state} by hand."
                    ) from error

    def _start_localstack(self, run: RunState, python: Path, lambda_python: Path) -> None:
        if self.localstack.process is not None:
            return
        # What the last one held is gone with it.
        run.deployment = None
        run.localstack_port = localstack.choose_port()
        run.save(self.workspace)
        localstack.start(
            self.workspace, self.localstack, python=python, lambda_python=lambda_python, port=run.localstack_port
        )

    def _settle_market(self, run: RunState, choice: MarketChoice) -> str:
        """Decide where prices come from, start what that needs, and return MarketDataUrl (empty: Yahoo)."""
        if choice is not MarketChoice.AUTO or run.market_source is None:
            chosen = market.choose(choice)
            run.market_source, run.market_reason = chosen.source, chosen.reason
        if run.market_source == MarketChoice.YAHOO:
            self.market.stop()
            run.save(self.workspace)
            return ""
        if self.market.process is None:
            run.market_port = market.start_replay(
                self.workspace, self.market, wished_port=run.market_port, environ=os.environ
            )
        run.save(self.workspace)
        return f"http://127.0.0.1:{run.market_port}"

    def _deploy(self, run: RunState, template: Path, parameters: Mapping[str, str]) -> str:
        cloud, server, identity = self.aws(run), self.postgres(run), self.localstack.identity
        if identity is None:
            msg = "LocalStack has ended."
            raise AcpError(msg, details=self.localstack.log_tail(), remedy=f"Its log: {self.localstack.log}")
        secrets = {
            "DatabaseSecretArn": cloud.put_secret("acp/database", database.app_url(server, run)),
            "DatabaseOwnerSecretArn": cloud.put_secret("acp/database-owner", database.owner_url(server, run)),
            "ApiTokenSecretArn": cloud.put_secret("acp/api-token", run.api_token),
        }
        previous, run.deployment = run.deployment, None
        # An interrupted deployment is then not taken for a whole one.
        run.save(self.workspace)
        run.deployment, what = deployment.deploy(
            self.workspace, cloud, template, {**parameters, **secrets}, localstack=identity, previous=previous
        )
        run.save(self.workspace)
        return what

    def _check(self, run: RunState) -> str:
        """One function that does run, reading its secret and reaching the database, tells that the others can."""
        result = self.aws(run).invoke(self.outputs(run)["MigrationFunctionName"], {})
        return f"MigrationFunction reads its secret and finds the schema at version {result['version']}"
