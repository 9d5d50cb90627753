"""The measured side of a measurement: a process of its own that says when it is ready, and reports when it is done.

It imports nothing that would count as the measured program's memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


class Parent:
    """The way to the bench. Standard output becomes /dev/null: what is measured writes its metrics there."""

    def __init__(self) -> None:
        self._reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)

    @staticmethod
    def options() -> dict[str, Any]:
        """What the bench asked for: the JSON object on the command line."""
        options: dict[str, Any] = json.loads(sys.argv[1])
        return options

    def wait_for_go(self) -> None:
        """Say that all is prepared, and wait for the start. Ends the process where the bench is gone."""
        self._reports.write("ready\n")
        self._reports.flush()
        if not sys.stdin.readline():
            raise SystemExit(1)

    def report(self, measured: dict[str, Any]) -> None:
        """Hand over what was measured."""
        self._reports.write(json.dumps(measured) + "\n")
        self._reports.flush()


def peak_memory_bytes() -> int:
    """The most memory this program ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss survives exec: it would tell of the bench that this process was forked from.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
