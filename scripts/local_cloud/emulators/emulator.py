"""What a local cloud is to `acp`: something that speaks AWS's API on this machine and runs functions here."""

from __future__ import annotations

import os
import urllib.request
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from local_cloud.environ import LOCAL_AWS
from local_cloud.errors import AcpError
from local_cloud.net import free_port, port_is_free
from local_cloud.processes import Service

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from local_cloud.workspace import Workspace

_READY_SECONDS = 120


class Emulator(ABC):
    """One local cloud of a workspace, running or not.

    Its functions run as processes of this machine: their layers are built for it, and they reach its loopback.
    """

    name: ClassVar[str]
    """As --cloud takes it."""
    title: ClassVar[str]
    """As people call it."""
    outlives_us: ClassVar[bool] = False
    """Whether it runs on after `acp down`, so that what was deployed must be deleted."""
    ignores_changed_rules: ClassVar[bool] = False
    """Whether an update of a stack leaves its rules, alarms and API as they were."""
    ignores_changes: ClassVar[str] = "ignores changes of alarms, log groups and the API"
    """Completes "new again, as <title> …", where it does."""
    remedy: ClassVar[str] = ""
    """What to look at where a deployed function does not do what it should."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @abstractmethod
    def prepare(self) -> None:
        """Make or update what it needs on this machine."""

    @abstractmethod
    def endpoint(self, asked: str | None, current: str | None) -> str:
        """The URL it has, or is to have: `asked` for by the user, or `current`, where it was last.

        Raises AcpError where what was asked for will not do.
        """

    @abstractmethod
    def start(self, endpoint: str) -> None:
        """Start it, unless it runs. It may not be ready on return."""

    @abstractmethod
    def wait_until_ready(self, endpoint: str) -> None:
        """Return once it answers. Raises AcpError."""

    @abstractmethod
    def is_there(self, endpoint: str) -> bool:
        """Whether it runs."""

    @abstractmethod
    def holder(self, endpoint: str, stack: str) -> str | None:
        """Names what holds the stack for as long as it does; None where nothing can."""

    @abstractmethod
    def stop(self) -> None:
        """End it where it is ours; it may not run."""

    @abstractmethod
    def log_tail(self) -> str:
        """The last lines it wrote, where they can be had."""

    def api_url(self, endpoint: str, deployed: str) -> str:
        """Where it serves the REST API that has the URL `deployed` on AWS. Without a / at its end."""
        parts = urlsplit(deployed)
        api_id = (parts.hostname or "").partition(".")[0]
        return f"{endpoint}/_aws/execute-api/{api_id}/{parts.path.strip('/')}"


class StartedEmulator(Emulator):
    """One that `acp` starts as a background service; it forgets everything when it ends."""

    health_path: ClassVar[str]

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.service = Service(self.name, records=workspace.services, log=workspace.logs / f"{self.name}.log")

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What runs it, in the foreground."""

    @abstractmethod
    def environ(self, port: int) -> Mapping[str, str]:
        """Its settings, beyond what every one is given."""

    @property
    def root(self) -> Path:
        """Its own folder, which goes with the state."""
        return self.workspace.state / self.name

    def endpoint(self, asked: str | None, current: str | None) -> str:  # noqa: ARG002  its port is ours to choose
        """Where it runs or ran last, or else a free port: a well-known one is the first that a web page would try."""
        if current and (self.service.process is not None or port_is_free(_port(current))):
            return current
        return f"http://localhost:{free_port()}"

    def start(self, endpoint: str) -> None:
        """Its environment is ours from the ground up: a setting of the user's would configure it."""
        if self.service.process is not None:
            return
        temporary = self.root / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        self.service.start(
            self.command(),
            cwd=self.root,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "LANG": "C.UTF-8",
                "HOME": str(self.root),
                "TMPDIR": str(temporary),
                "NO_PROXY": "127.0.0.1,localhost",
                **LOCAL_AWS,
                **self.environ(_port(endpoint)),
            },
        )

    def wait_until_ready(self, endpoint: str) -> None:
        """Raises ServiceError."""
        self.service.wait_until(lambda: self._answers(_port(endpoint)), seconds=_READY_SECONDS)

    def is_there(self, endpoint: str) -> bool:  # noqa: ARG002  its process tells
        """Whether its process lives."""
        return self.service.process is not None

    def holder(self, endpoint: str, stack: str) -> str | None:  # noqa: ARG002  its process tells
        """This very run of it: another one starts empty."""
        return self.service.identity

    def stop(self) -> None:
        """It keeps nothing, and takes its time to say goodbye."""
        self.service.stop(grace_seconds=2)

    def log_tail(self) -> str:
        """Of its log."""
        return self.service.log_tail()

    def _answers(self, port: int) -> bool:
        if not self.service.listens_on(port):
            return False
        # Straight to it: no proxy of the user's stands between this machine and itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{port}{self.health_path}", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def _port(endpoint: str) -> int:
    port = urlsplit(endpoint).port
    if port is None:
        msg = f"{endpoint} names no port."
        raise AcpError(msg)
    return port
