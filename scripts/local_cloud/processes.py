"""Background services: started detached, found again by any later `acp`, and ended with all they started.

A small record identifies a service: its pid, and when that process started. After a reboot, or once another process has
the pid, the start time no longer matches, so a stranger is never killed. Until the pid is known, a mark in the
process's environment stands for it: a service is found even if the command that started it was killed at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil

from local_cloud.errors import AcpError
from local_cloud.workspace import read_json, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_POLL_SECONDS = 0.05
_MARK = "ACP_SERVICE"
"""Variable of a service's environment that tells it from all other processes."""


class ServiceError(AcpError):
    """Raised when a service ended by itself, or was not ready in time. `details` holds the end of its log."""


class Service:
    """One named background process of the local cloud, with its record and its log file."""

    def __init__(self, name: str, *, records: Path, log: Path) -> None:
        self.name = name
        self.log = log
        self._record = records / f"{name}.json"

    @property
    def process(self) -> psutil.Process | None:
        """Returns the running process, or None."""
        record = read_json(self._record)
        if record is None or record["pid"] is None:
            return None
        try:
            process = psutil.Process(int(record["pid"]))
            ours = _is(process, float(record["created"])) and is_alive(process)
        except psutil.Error:
            return None
        return process if ours else None

    @property
    def crashed(self) -> bool:
        """Whether it was started, was not stopped, and no longer runs."""
        return self._record.exists() and self.process is None

    @property
    def identity(self) -> str | None:
        """Returns a name for this very run of the service, with which its memory is lost; None if it does not run."""
        process = self.process
        return None if process is None else f"{process.pid}@{process.create_time():.2f}"

    def start(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        """Starts it in a session of its own, which survives this process and its terminal.

        It is not yet ready on return.
        """
        self.stop()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        mark = uuid4().hex
        write_private(self._record, json.dumps({"pid": None, "created": time.time(), "mark": mark}))
        with self.log.open("wb") as log:
            child = subprocess.Popen(
                command,
                env={**env, _MARK: mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            created = psutil.Process(child.pid).create_time()
        except psutil.NoSuchProcess:
            created = 0.0
        write_private(self._record, json.dumps({"pid": child.pid, "created": created, "command": list(command)}))
        # The service outlives this process on purpose, so Popen need not warn about it.
        child.returncode = 0

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Waits until `ready`. Raises ServiceError as soon as the process has ended, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process is None:
                msg = f"{self.name} ended while it started."
                raise ServiceError(msg, details=self.log_tail(), remedy=f"Its log: {self.log}")
            if time.monotonic() > deadline:
                msg = f"{self.name} was not ready within {seconds:.0f} s."
                raise ServiceError(msg, details=self.log_tail(), remedy=f"Its log: {self.log}")
            time.sleep(_POLL_SECONDS)

    def listens_on(self, port: int) -> bool:
        """Whether the service itself listens on the TCP port; another program may have taken the port first."""
        process = self.process
        members: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            members = [] if process is None else [process, *process.children(recursive=True)]
        return any(_listens_on(member, port) for member in members)

    def stop(self, *, grace_seconds: float = 10) -> bool:
        """Ends it and the rest of its session: asks first, then kills. Returns whether it had been started."""
        record = read_json(self._record)
        if record is None:
            return False
        leader = _marked(record["mark"]) if record["pid"] is None else int(record["pid"])
        targets = [] if leader is None else _session(leader, float(record["created"]))
        for signal_number, patience in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
            for process in targets:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal_number)
            wait_until_gone(targets, seconds=patience)
            # Processes that were started while the signal was on its way.
            targets = [] if leader is None else _session(leader, float(record["created"]))
            if not targets:
                break
        self._record.unlink(missing_ok=True)
        return True

    def log_tail(self, lines: int = 15) -> str:
        """Returns the last lines that it logged."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs. A zombie does not: it only waits until its parent notices, which may take a while."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_until_gone(processes: Sequence[psutil.Process], *, seconds: float) -> bool:
    """Waits until all of them have ended; returns False if one still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _listens_on(process: psutil.Process, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        connections = process.net_connections("tcp")
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)
    return False


def _is(process: psutil.Process, created: float) -> bool:
    # The start time moves a little when the clock is set; a pid is not used again within seconds.
    return abs(process.create_time() - created) < 5


def _marked(mark: str) -> int | None:
    """Returns the pid of the session's leader whose environment has the mark, or None."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == process.pid and process.environ().get(_MARK) == mark:
                return process.pid
    return None


def _session(leader: int, created: float) -> list[psutil.Process]:
    """Returns the living processes of the session that `leader` opened, itself included; the leader may be gone.

    No new process gets a pid that is still a session's id. So a session with an older or another leader is a
    stranger's.
    """
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if (
                process.pid != os.getpid()
                and os.getsid(process.pid) == leader
                and (process.pid != leader or _is(process, created))
                and process.create_time() >= created - 5
                and is_alive(process)
            ):
                members.append(process)
    return members
