"""The interface between `acp` and a local cloud: a program that speaks AWS's API here and runs functions."""

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
    """The value of --cloud."""
    title: ClassVar[str]
    """The name that people use."""
    outlives_us: ClassVar[bool] = False
    """Whether it runs on after `acp down`, so that what was deployed must be deleted."""
    ignores_changed_rules: ClassVar[bool] = False
    """Whether an update of a stack leaves its rules, alarms and API as they were."""
    ignores_changes: ClassVar[str] = "ignores changes of alarms, log groups and the API"
    """Why changed resources need a new stack; it completes the sentence "new again, as <title> …"."""
    remedy: ClassVar[str] = ""
    """What to look at if a deployed function does not do what it should."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @abstractmethod
    def prepare(self) -> None:
        """Makes or updates what it needs on this machine."""

    @abstractmethod
    def endpoint(self, asked: str | None, current: str | None) -> str:
        """Returns its URL: `asked` for by the user, or `current`, its last one.

        Raises AcpError if the requested URL cannot be used.
        """

    @abstractmethod
    def start(self, endpoint: str) -> None:
        """Starts it, unless it runs. It may not be ready when this returns."""

    @abstractmethod
    def wait_until_ready(self, endpoint: str) -> None:
        """Returns once it answers. Raises AcpError."""

    @abstractmethod
    def is_there(self, endpoint: str) -> bool:
        """Whether it runs."""

    @abstractmethod
    def holder(self, endpoint: str, stack: str) -> str | None:
        """Returns a name for the process or stack on which every deployment depends; None if there is nothing."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it if we started it; it may not run at all."""

    @abstractmethod
    def log_tail(self) -> str:
        """Returns the last lines that it logged, if they are available."""

    def api_url(self, endpoint: str, deployed: str) -> str:
        """Returns where it serves the REST API whose URL on AWS is `deployed`, without a / at the end."""
        parts = urlsplit(deployed)
        api_id = (parts.hostname or "").partition(".")[0]
        return f"{endpoint}/_aws/execute-api/{api_id}/{parts.path.strip('/')}"


class StartedEmulator(Emulator):
    """A local cloud that `acp` starts as a background service; it forgets everything when it ends."""

    health_path: ClassVar[str]

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.service = Service(self.name, records=workspace.services, log=workspace.logs / f"{self.name}.log")

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Returns the command that runs it in the foreground."""

    @abstractmethod
    def environ(self, port: int) -> Mapping[str, str]:
        """Returns its own settings, beyond those that every emulator gets."""

    @property
    def root(self) -> Path:
        """Returns its own folder, which is deleted with the state."""
        return self.workspace.state / self.name

    def endpoint(self, asked: str | None, current: str | None) -> str:  # noqa: ARG002  its port is ours to choose
        """Returns its last address, or else a free port: a well-known port is the first that a web page would try."""
        if current and (self.service.process is not None or port_is_free(_port(current))):
            return current
        return f"http://localhost:{free_port()}"

    def start(self, endpoint: str) -> None:
        """Starts it with an environment that we define completely: a setting of the user's would configure it, too."""
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
        """Returns once it answers. Raises ServiceError."""
        self.service.wait_until(lambda: self._answers(_port(endpoint)), seconds=_READY_SECONDS)

    def is_there(self, endpoint: str) -> bool:  # noqa: ARG002  its process tells
        """Whether its process lives."""
        return self.service.process is not None

    def holder(self, endpoint: str, stack: str) -> str | None:  # noqa: ARG002  its process tells
        """Returns a name for this very run of the process, because another run starts empty."""
        return self.service.identity

    def stop(self) -> None:
        """Ends it quickly, since it keeps nothing and would take long to end by itself."""
        self.service.stop(grace_seconds=2)

    def log_tail(self) -> str:
        """Returns the end of its log."""
        return self.service.log_tail()

    def _answers(self, port: int) -> bool:
        if not self.service.listens_on(port):
            return False
        # Asks it directly, because no proxy may stand between this machine and itself.
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
