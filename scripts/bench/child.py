"""The measured process's side of the protocol: it says when it is ready, waits for the start, and reports at its end.

This module imports little, because its imports would count as the measured program's memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


class Parent:
    """The connection to the bench. Standard output becomes /dev/null, because the measured relay prints metrics."""

    def __init__(self) -> None:
        self._reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)

    @staticmethod
    def options() -> dict[str, Any]:
        """Returns the bench's options, a JSON object on the command line."""
        options: dict[str, Any] = json.loads(sys.argv[1])
        return options

    def wait_for_go(self) -> None:
        """Says that all is prepared, and waits for the start. Ends the process if the bench is gone."""
        self._reports.write("ready\n")
        self._reports.flush()
        if not sys.stdin.readline():
            raise SystemExit(1)

    def report(self, measured: dict[str, Any]) -> None:
        """Sends the measurements to the bench."""
        self._reports.write(json.dumps(measured) + "\n")
        self._reports.flush()


def peak_memory_bytes() -> int:
    """Returns this process's peak resident memory in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss survives exec, so it would include the bench, which this process was forked from.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
