"""Stores looks as a backfill does: in transactions of a few thousand, by store_events, as IngestionFunction's role.

Options: first (the first look's number), looks (how many), size (of a transaction). Making up the looks is not timed.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from bench.child import Parent, peak_memory_bytes
from bench.looks import batches
from control_plane.ingestion.store import store_events
from control_plane.platform.database import connect

if TYPE_CHECKING:
    from collections.abc import Callable


class _Timed:
    """A function, with how long its calls take together."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.seconds = 0.0

    def __call__(self, *values: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._call(*values, **named)
        finally:
            self.seconds += time.perf_counter() - started


def main() -> None:
    """Connects, waits for the start, stores, and reports."""
    parent = Parent()
    options = parent.options()
    stored, seconds, cpu_seconds, commit_seconds = 0, 0.0, 0.0, 0.0
    with connect(os.environ["BENCH_INGEST_URL"], application_name="acp-bench") as connection:
        statements = _Timed(connection.execute)
        connection.execute = statements  # type: ignore[method-assign]  # what the database takes is told apart
        parent.wait_for_go()
        statements.seconds = 0.0
        for looks in batches(options["first"], options["looks"], options["size"]):
            started, cpu_started = time.perf_counter(), time.process_time()
            with connection.transaction():
                stored += len(store_events(connection, [], looks).events)
                executed = time.perf_counter()
            commit_seconds += time.perf_counter() - executed
            seconds += time.perf_counter() - started
            cpu_seconds += time.process_time() - cpu_started
    parent.report(
        {
            "seconds": seconds,
            "write_seconds": statements.seconds + commit_seconds,
            "cpu_seconds": cpu_seconds,
            "stored": stored,
            "peak_memory_bytes": peak_memory_bytes(),
        }
    )


if __name__ == "__main__":
    main()
