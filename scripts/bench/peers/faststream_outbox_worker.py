"""Measures faststream-outbox: one process with four workers, whose handler does nothing.

Its settings are those that its page on performance names for high throughput: batched terminal deletes, and its own
autovacuum settings. It fetches 500 rows at once, as the relay does.
"""

import asyncio
import logging
import os
import time

import asyncpg
import uvloop
from faststream_outbox import OutboxBroker, make_outbox_table, outbox_autovacuum_ddl
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import create_async_engine

from bench.child import Parent

FETCHED = 500
FLUSHED = 100
WORKERS = 4
TABLE = "peer_outbox"


async def main() -> None:
    """Stores the outbox's pending messages as its own, waits for the start, handles them all, and reports."""
    parent = Parent()
    url = os.environ["PEER_DATABASE_URL"]
    connection = await asyncpg.connect(url)
    bodies = [row[0].encode() for row in await connection.fetch(os.environ["PEER_MESSAGES"])]
    await connection.close()

    metadata = MetaData()
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=WORKERS + 2)
    broker = OutboxBroker(
        engine,
        outbox_table=make_outbox_table(metadata, table_name=TABLE),
        apply_types=False,
        log_level=logging.WARNING,
    )
    handled, done = 0, asyncio.Event()

    async def handle(_body: bytes) -> None:
        nonlocal handled
        handled += 1
        if handled == len(bodies):
            done.set()

    broker.subscriber(
        "bench",
        max_workers=WORKERS,
        fetch_batch_size=FETCHED,
        terminal_flush_batch_size=FLUSHED,
        min_fetch_interval=0.01,
        max_fetch_interval=1.0,
    )(handle)
    async with engine.begin() as session:
        await session.run_sync(metadata.create_all)
        await session.execute(text(outbox_autovacuum_ddl(TABLE)))
        await broker.publish_batch(*bodies, queue="bench", session=session)
    async with engine.connect() as session:
        await (await session.execution_options(isolation_level="AUTOCOMMIT")).execute(text(f"VACUUM ANALYZE {TABLE}"))

    await asyncio.to_thread(parent.wait_for_go)
    started, cpu_started = time.perf_counter(), time.process_time()
    await broker.start()
    await done.wait()
    # It deletes what is handled before it stops.
    await broker.stop()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    async with engine.connect() as session:
        left = (await session.execute(text(f"SELECT count(*) FROM {TABLE}"))).scalar_one()  # noqa: S608
    parent.report({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": {"published": handled - left}})
    await engine.dispose()


if __name__ == "__main__":
    uvloop.run(main())
