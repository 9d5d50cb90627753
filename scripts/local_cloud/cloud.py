"""The local cloud as a whole: what belongs to it, how it starts and how it stops."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from local_cloud import build, containers, database, deployment, market, run_state
from local_cloud.aws import AWS_ERRORS, InvocationError, LocalCloud
from local_cloud.emulators import EMULATORS
from local_cloud.environ import LOCAL_AWS
from local_cloud.errors import AcpError, NotRunningError, UsageError
from local_cloud.market import MarketChoice
from local_cloud.postgres import PostgresServer
from local_cloud.processes import Service
from local_cloud.roles import SECRETS
from local_cloud.run_state import RunState
from local_cloud.workspace import locked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from local_cloud.emulators.emulator import Emulator
    from local_cloud.progress import Progress
    from local_cloud.workspace import Workspace

_DEFAULTS = {"RelayLingerSeconds": "90"}
"""Parameters of the template that differ on a laptop: a lingering relay costs nothing here, and people watch."""
_ACCESS = ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """A user's choices. What is left open stays as it is, or takes its default.

    `cloud` is an emulator's name, `stack` the stack's; `parameters` are the template's, by name.
    """

    market: MarketChoice = MarketChoice.AUTO
    cloud: str | None = None
    stack: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    from_day: str | None = None
    """The real day, YYYY-MM-DD, that the replay starts at."""
    containers: bool = True
    """Whether to prepare for `sam local invoke`, too, if a container engine answers."""


class Cloud:
    """The local cloud of one workspace, running or not.

    `endpoint_url` is the address of the user's own local cloud, if they named one.
    """

    def __init__(self, workspace: Workspace, endpoint_url: str | None = None) -> None:
        self.workspace = workspace
        self.market = Service("market", records=workspace.services, log=workspace.logs / "market.log")
        self.bridge = Service("bridge", records=workspace.services, log=workspace.logs / "bridge.log")
        self._endpoint_url = endpoint_url or None

    def emulator(self, run: RunState) -> Emulator:
        """Returns the emulator that stands in for AWS."""
        return EMULATORS[run.cloud](self.workspace)

    def postgres(self, run: RunState) -> PostgresServer:
        """Returns the database server, running or not."""
        return PostgresServer(
            self.workspace.state / "postgres",
            password=run.superuser_password,
            port=run.postgres_port,
            log=self.workspace.logs / "postgres.log",
        )

    def missing(self, run: RunState) -> list[str]:
        """Returns the names of the parts that should run and do not."""
        emulator = self.emulator(run)
        parts = {
            "PostgreSQL": self.postgres(run).running,
            emulator.title: emulator.is_there(run.endpoint),
            "the market replay": self.market.process is not None or run.market_source != MarketChoice.REPLAY,
            "the stack": run.deployment is not None
            and run.deployment.held_by == emulator.holder(run.endpoint, run.stack),
        }
        return [name for name, there in parts.items() if not there]

    def running(self) -> RunState:
        """Returns the state of a running cloud. Raises NotRunningError if it is down, or a part of it is missing."""
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
        """Returns clients for the cloud's emulator."""
        return LocalCloud(run.endpoint)

    def outputs(self, run: RunState) -> dict[str, str]:
        """Returns the stack's outputs."""
        assert run.deployment is not None, "a running cloud has a stack"
        return run.deployment.outputs

    def describe(self, run: RunState) -> dict[str, str]:
        """Returns where each part of a running cloud is."""
        return {
            "PostgreSQL": f"127.0.0.1:{self.postgres(run).port}",
            self.emulator(run).title: run.endpoint,
            **({"API": url} if (url := self.outputs(run).get("ApiUrl")) else {}),
            "market data": f"{run.market_source}, because {run.market_reason}",
        }

    def environ(self, run: RunState) -> dict[str, str]:
        """Returns all variables that a script needs: the functions' environment, the endpoint, the stack's outputs."""
        assert run.deployment is not None, "a running cloud has a stack"
        server, outputs = self.postgres(run), run.deployment.outputs
        # The functions get the ARNs of secrets, a script gets the secrets; exactly one of the two may be set.
        environ = {name: value for name, value in run.deployment.environ.items() if not name.endswith("_SECRET_ARN")}
        return {
            **environ,
            # The URL is a reader's; whatever a script changes, it changes as the owner.
            "DATABASE_URL": database.reader_url(server, run),
            "DATABASE_OWNER_URL": database.owner_url(server, run),
            "API_TOKEN": run.api_token,
            **({"API_URL": url} if (url := outputs.get("ApiUrl")) else {}),
            "AWS_ENDPOINT_URL": run.endpoint,
            **{name: LOCAL_AWS[name] for name in _ACCESS},
            **outputs,
        }

    def up(self, options: UpOptions, progress: Progress) -> RunState:
        """Brings everything to the wished state; what is there already is kept. The caller holds the lock."""
        run = run_state.load(self.workspace) or RunState()
        run.parameters |= options.parameters
        # Before anything is saved or started: a refused symbol is not one that the next `up` would find.
        _choose_market(run, options.market, options.from_day)
        self._settle_emulator(run, options, progress)
        emulator = self.emulator(run)
        with progress.step("Environments"), locked(self.workspace.venvs, "up", on_wait=progress.say):
            emulator.prepare()
        emulator.start(run.endpoint)
        server = self.postgres(run)
        with progress.step("PostgreSQL") as step:
            server.start()
            run.postgres_port = server.port
            run.save(self.workspace)
            database.prepare(server, run)
            step.note = f"on port {server.port}"
        with progress.step("Database schema and subscriptions") as step:
            # This comes before the deployment, because a schedule may start ingestion before MigrationFunction can be
            # invoked.
            step.note = str(database.bring_up_to_date(self.workspace, database.owner_url(server, run)))
        with progress.step("Market data") as step:
            market_url = self._settle_market(run)
            step.note = f"{run.market_source}, because {run.market_reason}"
        with progress.step("Build for this host"), locked(self.workspace.layers, "up", on_wait=progress.say):
            template = build.build_for_host(self.workspace)
        with progress.step(emulator.title[:1].upper() + emulator.title[1:]) as step:
            emulator.wait_until_ready(run.endpoint)
            step.note = f"at {run.endpoint}"
        with progress.step("Deployment") as step:
            step.note = self._deploy(run, template, {"MarketDataUrl": market_url, **_DEFAULTS, **run.parameters})
        with progress.step("Check") as step:
            step.note = self._check(run)
        if options.containers:
            self._containers(run, progress)
        return run

    def prepare_containers(self, run: RunState) -> None:
        """Lets functions in containers reach the local cloud. Raises NoContainersError. The caller holds the lock."""
        containers.prepare(self.workspace, self.bridge, self.aws(run), self.outputs(run))

    def down(self, progress: Progress, *, keep: bool) -> None:
        """Stops everything that runs, and deletes the state unless it is to be kept. Nothing may be running at all."""
        try:
            run = run_state.load(self.workspace)
        except AcpError:
            # The state is damaged. The servers can be found without it.
            run = None
        undeleted = None
        if run is not None and self.emulator(run).outlives_us:
            try:
                self._leave(run, progress)
            except AWS_ERRORS as error:
                # Our own processes and files are removed nevertheless.
                undeleted = error
            run.save(self.workspace)
        with progress.step("Stopping"):
            containers.forget(self.workspace, self.bridge)
            for emulator in EMULATORS.values():
                emulator(self.workspace).stop()
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
        if run is not None and undeleted is not None:
            msg = f"The stack {run.stack} at {run.endpoint} could not be deleted: {undeleted}"
            raise AcpError(msg, remedy="All else is done; delete it there.") from undeleted

    def _settle_emulator(self, run: RunState, options: UpOptions, progress: Progress) -> None:
        """Decides on the emulator, its address and the stack's name; removes the previous one."""
        name, stack = options.cloud or run.cloud, options.stack or run.stack
        emulator = EMULATORS[name](self.workspace)
        # The endpoint in the environment counts only if the user asked for a cloud.
        asked = self._endpoint_url if options.cloud is not None else None
        endpoint = emulator.endpoint(asked, run.endpoint if name == run.cloud else None)
        if (name, endpoint, stack) != (run.cloud, run.endpoint, run.stack):
            if run.endpoint:
                self._leave(run, progress, stays=(name, endpoint) == (run.cloud, run.endpoint))
            run.cloud, run.endpoint, run.stack = name, endpoint, stack
        if not emulator.is_there(endpoint):
            # The state that belonged to the previous cloud is gone with it.
            run.deployment, run.stack_is_ours = None, False
        run.save(self.workspace)

    def _leave(self, run: RunState, progress: Progress, *, stays: bool = False) -> None:
        """Deletes what was deployed, and stops the emulator if it is ours, unless it `stays`."""
        emulator = self.emulator(run)
        if not emulator.is_there(run.endpoint):
            if emulator.outlives_us and run.stack_is_ours:
                progress.say(f"{run.endpoint} does not answer: if it kept the stack {run.stack}, delete it there.")
        elif emulator.outlives_us or stays:
            if run.stack_is_ours:
                with progress.step(f"Deleting the stack {run.stack} on {emulator.title}") as step:
                    step.note = self._waiting(run)
                    deployment.remove(self.aws(run), run.stack)
        else:
            with progress.step(f"Stopping {emulator.title}, for another cloud takes its place") as step:
                step.note = self._waiting(run)
                emulator.stop()
        run.deployment, run.stack_is_ours = None, False

    def _waiting(self, run: RunState) -> str:
        """Returns what the cloud's queues still hold, which will be lost with them."""
        if run.deployment is None:
            return ""
        return deployment.lost_with_queues(self.aws(run), self.outputs(run))

    def _settle_market(self, run: RunState) -> str:
        """Starts what the chosen market needs, and returns MarketDataUrl (empty for Yahoo)."""
        if run.market_source == MarketChoice.YAHOO:
            self.market.stop()
            run.save(self.workspace)
            return ""
        if self.market.process is None:
            run.market_port = market.start_replay(
                self.workspace,
                self.market,
                wished_port=run.market_port,
                environ=os.environ,
                start=None if run.market_from is None else market.StartDay(run.market_from, run.market_from_at),
            )
        run.save(self.workspace)
        return f"http://127.0.0.1:{run.market_port}"

    def _deploy(self, run: RunState, template: Path, parameters: Mapping[str, str]) -> str:
        cloud, server = self.aws(run), self.postgres(run)
        if not run.stack_is_ours:
            if cloud.stack_id(run.stack) is not None:
                msg = f"There is a stack {run.stack} at {run.endpoint} already, and it is not this local cloud's."
                raise AcpError(msg, remedy="Take another name: scripts/acp up --stack NAME, or delete that stack.")
            run.stack_is_ours = True
        secrets = deployment.put_secrets(
            cloud,
            run.stack,
            {
                **{name: database.url(server, run, role) for name, role in SECRETS.items()},
                "ApiTokenSecretArn": run.api_token,
            },
        )
        previous, run.deployment = run.deployment, None
        # If the deployment is interrupted now, the next command will not take it for complete.
        run.save(self.workspace)
        run.deployment, what = deployment.deploy(
            self.workspace,
            cloud,
            self.emulator(run),
            template,
            {**parameters, **secrets},
            stack=run.stack,
            previous=previous,
            promise_lost=lambda: database.promise_lost(database.owner_url(server, run)),
        )
        run.save(self.workspace)
        return what

    def _containers(self, run: RunState, progress: Progress) -> None:
        with progress.step("Containers") as step:
            try:
                self.prepare_containers(run)
                built = build.build_for_containers(self.workspace, on_wait=progress.say)
            except (AcpError, *AWS_ERRORS) as error:
                # Everything else works without containers.
                step.note = f"not for sam local invoke: {error.args[0]}"
            else:
                step.note = f"sam local invoke reaches it, build {built}"

    def _check(self, run: RunState) -> str:
        """Invokes one function that reads its secret and reaches the database, as a check that the others can."""
        try:
            result = self.aws(run).invoke(self.outputs(run)["MigrationFunctionName"], {})
        except InvocationError as error:
            if not (remedy := self.emulator(run).remedy):
                raise
            raise InvocationError(error.args[0], details=error.details, remedy=remedy) from error
        return f"MigrationFunction reads its secret and finds the schema at version {result['version']}"


def _choose_market(run: RunState, choice: MarketChoice, from_day: str | None) -> None:
    """Decide where prices come from. Raises UsageError for symbols that the replay lacks, where it is the replay."""
    if from_day is not None:
        _start_at(run, choice, from_day)
        choice = MarketChoice.REPLAY
    if choice is not MarketChoice.AUTO or run.market_source is None:
        chosen = market.choose(choice)
        run.market_source, run.market_reason = chosen.source, chosen.reason
    if run.market_source == MarketChoice.REPLAY:
        market.refuse_unknown(run.parameters.get("Symbols", ""))


def _start_at(run: RunState, choice: MarketChoice, day: str) -> None:
    """Let the replay start at a day, once in a database's life: the same minute has one bar."""
    if choice is MarketChoice.YAHOO:
        msg = "--from is for the replay: Yahoo has today's prices alone."
        raise UsageError(msg, remedy="Leave out --market yahoo.")
    if run.market_source is not None and run.market_from != day:
        began = "started otherwise" if run.market_from is None else f"started at {run.market_from}"
        msg = f"The market of this local cloud has {began}, and a day needs a fresh database."
        raise UsageError(msg, remedy=f"scripts/acp down, then scripts/acp up --from {day}")
    if run.market_from is None:
        start = market.start_day(day)
        run.market_from, run.market_from_at = start.day, start.at
        run.parameters.setdefault("Symbols", market.symbols_from(day))
