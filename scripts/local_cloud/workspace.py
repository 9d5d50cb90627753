"""The folders of a checkout: everything that we write lies in one ignored folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_cloud.errors import AcpError, BusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CHECKOUT = Path(__file__).resolve().parents[2]
"""The checkout that this module lies in. Where acp was installed alone there is none: see :func:`has_checkout`."""


def has_checkout() -> bool:
    """Tells whether this is a checkout, rather than a package that was installed alone."""
    return (CHECKOUT / "template.yaml").is_file()


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders. `home` holds what may be kept for good (environments, caches), `state` what `down` deletes."""

    checkout: Path
    home: Path
    state: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Workspace:
        """Returns the workspace: .acp of the checkout, or $ACP_HOME; its folder state, or $ACP_STATE.

        A second $ACP_STATE makes a second local cloud. A relative path counts from the checkout, as in
        scripts/lib/environment.sh.
        """
        home = CHECKOUT / (environ.get("ACP_HOME") or ".acp")
        return cls(CHECKOUT, home, CHECKOUT / (environ.get("ACP_STATE") or home / "state"))

    @property
    def logs(self) -> Path:
        """One log file per service, and one per step that runs a tool."""
        return self.state / "logs"

    @property
    def services(self) -> Path:
        """One record per started service."""
        return self.state / "services"

    @property
    def layers(self) -> Path:
        """The layers as built for processes of this host. They are kept, because building them is slow."""
        return self.home / "build" / "host-layers"

    @property
    def build(self) -> Path:
        """The stack as built for the processes of this host."""
        return self.state / "build"

    @property
    def venvs(self) -> Path:
        """The environments that scripts/lib/environment.sh makes."""
        return self.home / "venvs"

    def python_of(self, environment: str) -> Path:
        """Returns the interpreter of an environment."""
        return self.venvs / environment / "bin" / "python"


def write_private(path: Path, text: str) -> None:
    """Replaces a file at once, readable by its owner alone: a reader sees the old text or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # the file's mode is 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in the file, or None if there is no file.

    Raises AcpError for a file that is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        msg = f"{path} is damaged."
        raise AcpError(msg, remedy="Run scripts/acp down, which clears it.")
    return content


@contextlib.contextmanager
def locked(
    folder: Path, purpose: str, *, on_wait: Callable[[str], object], wait_seconds: float = 900
) -> Iterator[None]:
    """Keeps other `acp` commands from changing the folder meanwhile. The lock ends with its process, however that ends.

    `on_wait` is called once, with the lock's holder. Raises BusyError after `wait_seconds`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock is beside the folder, not in it: deleting the folder must not remove a lock for which another command
    # waits.
    with folder.with_name(f"{folder.name}.lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait_seconds
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another acp"
            if time.monotonic() > deadline:
                msg = f"{holder} is still at work."
                raise BusyError(msg, remedy="Wait for it, or end it, then run this again.")
            if not told:
                on_wait(f"Waiting for {holder} …")
                told = True
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"acp {purpose} (pid {os.getpid()})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
