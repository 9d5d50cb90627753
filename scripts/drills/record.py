"""The record of what a drill changes, written before the change, so that a later command can undo it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from local_cloud.errors import AcpError
from local_cloud.processes import is_alive
from local_cloud.workspace import read_json, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from local_cloud.workspace import Workspace


@dataclass
class Change:
    """A function's variables: their values before (None if not set) and during the drill."""

    before: dict[str, str | None]
    during: dict[str, str]

    @classmethod
    def of(cls, variables: Mapping[str, str], during: Mapping[str, str]) -> Change:
        """Returns the change that setting `during` makes to `variables`."""
        return cls({name: variables.get(name) for name in during}, dict(during))

    def applied(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Returns the variables with the change."""
        return {**variables, **self.during}

    def reverted(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Returns the variables without the change; a variable that somebody else has set meanwhile keeps its value."""
        reverted = dict(variables)
        for name, value in self.during.items():
            if reverted.get(name) == value:
                before = self.before[name]
                if before is None:
                    del reverted[name]
                else:
                    reverted[name] = before
        return reverted


@dataclass
class DrillRecord:
    """One drill that has begun and whose changes are not undone yet."""

    drill: str
    pid: int
    created: float
    """When the process started, in seconds since 1970."""
    functions: dict[str, Change] = field(default_factory=dict)
    """The changes of functions, by their names."""
    market_faults: list[str] = field(default_factory=list)
    """The replay's symbols that were made to fail."""

    @classmethod
    def begin(cls, drill: str) -> DrillRecord:
        """Makes the record of a drill of this process."""
        return cls(drill, os.getpid(), psutil.Process().create_time())

    @property
    def is_running(self) -> bool:
        """Whether the process that began the drill still runs."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 5 and is_alive(process)
        except psutil.Error:
            return False

    @property
    def problem(self) -> str:
        """Returns the line about the drill in `acp status`."""
        if self.is_running:
            return f"the drill {self.drill} is under way"
        return f"the drill {self.drill} was cut off before it had put everything right: scripts/acp drill --mend"

    def save(self, workspace: Workspace) -> None:
        """Writes the whole file, or nothing."""
        write_private(_path(workspace), json.dumps(asdict(self), indent=2))

    def clear(self, workspace: Workspace) -> None:
        """Deletes the file, once all is undone."""
        _path(workspace).unlink(missing_ok=True)


def load(workspace: Workspace) -> DrillRecord | None:
    """Returns the drill that runs or was interrupted, or None. Raises AcpError for a damaged file."""
    content: dict[str, Any] | None = read_json(_path(workspace))
    if content is None:
        return None
    try:
        functions = {name: Change(**change) for name, change in content.pop("functions").items()}
        return DrillRecord(**content, functions=functions)
    except (KeyError, TypeError) as error:
        msg = f"{_path(workspace)} was written by another version of acp."
        raise AcpError(msg, remedy="Run scripts/acp down, which clears it.") from error


def _path(workspace: Workspace) -> Path:
    return workspace.state / "drill.json"
