"""Measures PgQueuer: one process whose entrypoint does nothing.

Its settings are those that its page on performance names: the asyncpg driver, one connection for the queue manager, its
own autovacuum settings, a larger batch for short jobs. Its tables are durable, which is its default.
"""

import asyncio
import logging
import os
import time
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.types import QueueExecutionMode

from bench.child import Parent

BATCH = int(os.environ.get("PEER_BATCH", "500"))


async def main() -> None:
    """Enqueues the outbox's pending messages, waits for the start, works on them until none is left, and reports."""
    parent = Parent()
    logging.getLogger("pgqueuer").setLevel(logging.WARNING)
    connection = await asyncpg.connect(os.environ["PEER_DATABASE_URL"])
    bodies = [row[0].encode() for row in await connection.fetch(os.environ["PEER_MESSAGES"])]
    driver = AsyncpgDriver(connection)
    queries = Queries(driver)
    await queries.install()
    await queries.optimize_autovacuum()
    await queries.enqueue(["bench"] * len(bodies), list(bodies), [0] * len(bodies))
    await connection.execute("VACUUM ANALYZE pgqueuer")

    handled = 0
    worker = PgQueuer(driver)

    async def handle(_job: Job) -> None:
        nonlocal handled
        handled += 1

    worker.entrypoint("bench")(handle)
    await asyncio.to_thread(parent.wait_for_go)
    started, cpu_started = time.perf_counter(), time.process_time()
    # It ends once the queue is empty and every job is logged.
    await worker.run(batch_size=BATCH, mode=QueueExecutionMode.drain, dequeue_timeout=timedelta(seconds=1))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    again = await asyncpg.connect(os.environ["PEER_DATABASE_URL"])
    left = await again.fetchval("SELECT count(*) FROM pgqueuer")
    await again.close()
    parent.report({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": {"published": handled - left}})


if __name__ == "__main__":
    uvloop.run(main())
