"""A bare loop to compare the relay with: boto3's send_message_batch on several threads, without a database.

It sends the messages that are pending in the outbox, with entries that are made in memory before the start.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from typing import Any

import boto3
import psycopg
from botocore.config import Config

from bench.child import Parent
from control_plane.model.trace import traceparent
from control_plane.platform.queries import load_queries
from control_plane.platform.settings import RelaySettings


def entries(rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Returns the entries of one batch, with the attributes that the relay sends."""
    return [
        {
            "Id": str(index),
            "MessageBody": body,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value}
                for name, value in {
                    "event_id": str(event_id),
                    "event_type": event_type,
                    "schema_version": str(schema_version),
                    "trace_id": str(trace_id),
                    "traceparent": traceparent(str(trace_id), str(event_id)),
                }.items()
            },
        }
        for index, (body, event_id, event_type, schema_version, trace_id) in enumerate(rows)
    ]


def main() -> None:
    """Prepares, waits for the start, publishes, and reports."""
    parent = Parent()
    settings = RelaySettings.from_environ(os.environ)
    with psycopg.connect(os.environ["DATABASE_READER_URL"]) as connection:
        rows = connection.execute(load_queries("bench")["pending_messages"].sql).fetchall()
    batches = [entries(list(batch)) for batch in batched(rows, 10, strict=False)]
    (queue_url,) = settings.subscription_queue_urls.values()
    client: Any = boto3.client(
        "sqs",
        endpoint_url=settings.cloud_endpoint_url,
        config=Config(max_pool_connections=settings.publish_concurrency),
    )

    def send(batch: list[dict[str, Any]]) -> int:
        answer = client.send_message_batch(QueueUrl=queue_url, Entries=batch)
        if answer.get("Failed"):
            raise RuntimeError(json.dumps(answer["Failed"]))
        return len(answer["Successful"])

    parent.wait_for_go()
    started, cpu_started = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(settings.publish_concurrency) as pool:
        published = sum(pool.map(send, batches))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    parent.report({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": {"published": published}})


if __name__ == "__main__":
    main()
