"""Copies the rows that store_events would write into the same tables, with their indexes, constraints and triggers.

Options: first (the first look's number), looks (how many), size (of a transaction). What is copied is made
beforehand and not timed. The chains of revisions are not read, so this loop could not be run twice.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import psycopg

from bench.child import Parent
from bench.looks import batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from control_plane.ingestion.store import Look

_COPY_EVENTS = (
    "COPY events (event_id, event_type, source, entity_id, entity_type, series, occurred_at, revision, observed_at,"
    " ingested_at, schema_version, trace_id, payload_json) FROM STDIN"
)
_COPIES = (
    _COPY_EVENTS,
    "COPY outbox (id, event_id, topic, event_type, schema_version, trace_id, payload_json) FROM STDIN",
    "COPY pending_deliveries (outbox_id, subscription, payload_bytes) FROM STDIN",
)
_COLUMNS = (
    "event_id",
    "event_type",
    "source",
    "entity_id",
    "entity_type",
    "series",
    "occurred_at",
    "revision",
    "observed_at",
    "ingested_at",
    "schema_version",
    "trace_id",
)


def main() -> None:
    """Connects, waits for the start, copies, and reports."""
    parent = Parent()
    options = parent.options()
    stored, seconds = 0, 0.0
    with psycopg.connect(os.environ["BENCH_ADMIN_URL"], autocommit=True) as connection:
        row = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM outbox").fetchone()
        assert row is not None
        next_id: int = row[0]
        rows = connection.execute("SELECT name, topic FROM subscriptions WHERE removed_at IS NULL").fetchall()
        parent.wait_for_go()
        for looks in batches(options["first"], options["looks"], options["size"]):
            texts = _as_text(looks, next_id + stored, rows)
            started = time.perf_counter()
            with connection.transaction(), connection.cursor() as cursor:
                for statement, text in zip(_COPIES, texts, strict=True):
                    with cursor.copy(statement) as copy:
                        copy.write(text)
            seconds += time.perf_counter() - started
            stored += len(looks)
    parent.report({"seconds": seconds, "stored": stored})


def _as_text(
    looks: Sequence[Look], first_id: int, subscriptions: Sequence[tuple[str, str]]
) -> tuple[bytes, bytes, bytes]:
    events, outbox, pending = [], [], []
    for number, look in enumerate(looks, first_id):
        message: Mapping[str, Any] = look.to_event(revision=0, ingested_at=look.observed_at).to_message()
        body = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        events.append([*(message[name] for name in _COLUMNS), json.dumps(message["payload"])])
        outbox.append(
            [
                number,
                message["event_id"],
                look.payload.topic,
                message["event_type"],
                message["schema_version"],
                message["trace_id"],
                body,
            ]
        )
        size = len(body.encode())
        pending += [[number, name, size] for name, topic in subscriptions if topic == look.payload.topic]
    return _rows(events), _rows(outbox), _rows(pending)


def _rows(rows: Iterable[Sequence[object]]) -> bytes:
    """Returns rows as COPY's text format; no value here is null or holds a tab or a line end."""
    return "".join("\t".join(str(value).replace("\\", "\\\\") for value in row) + "\n" for row in rows).encode()


if __name__ == "__main__":
    main()
