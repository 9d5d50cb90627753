"""Stores events with the promise to deliver them. The caller opens the transaction and commits it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.ingestion.source import Json
from control_plane.model.contract import Event
from control_plane.model.ids import canonical_instant
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@dataclass(frozen=True, slots=True)
class RawPayload:
    """What a source answered."""

    id: UUID
    source: str
    fetched_at: datetime
    trace_id: UUID
    payload: Json


@dataclass(frozen=True, slots=True)
class Draft:
    """An event that may or may not be stored already, and the raw payload it came from, if any."""

    event: Event
    raw_payload_id: UUID | None


def store_events(
    connection: Connection[Any], raw_payloads: Sequence[RawPayload], drafts: Sequence[Draft]
) -> frozenset[UUID]:
    """Writes raw payloads, events and outbox rows in one round trip per table; returns the ids of the new events.

    Never commits: the three belong to the caller's transaction, and stand or fall with it. An event stored before is
    no error, and no second promise.
    """
    if raw_payloads:
        connection.execute(
            QUERIES["insert_raw_payloads"].sql,
            {
                "raw_payloads": json.dumps(
                    [
                        {
                            "id": str(raw.id),
                            "source": raw.source,
                            "fetched_at": canonical_instant(raw.fetched_at, field="fetched_at"),
                            "trace_id": str(raw.trace_id),
                            "payload_json": raw.payload,
                        }
                        for raw in raw_payloads
                    ],
                    allow_nan=False,
                )
            },
        )
    if not drafts:
        return frozenset()
    messages = {draft.event.event_id: draft.event.to_message() for draft in drafts}
    rows = connection.execute(
        QUERIES["insert_events"].sql,
        {
            "events": json.dumps(
                [
                    messages[draft.event.event_id]
                    | {"raw_payload_id": None if draft.raw_payload_id is None else str(draft.raw_payload_id)}
                    for draft in sorted(drafts, key=lambda draft: draft.event.event_id)
                ],
                allow_nan=False,
            )
        },
    ).fetchall()
    new = frozenset(row[0] for row in rows)
    if new:
        topics = {draft.event.event_id: draft.event.topic for draft in drafts}
        connection.execute(
            QUERIES["insert_promises"].sql,
            {
                "promises": json.dumps(
                    [
                        {"topic": topics[event_id], "message": message}
                        for event_id, message in messages.items()
                        if event_id in new
                    ],
                    allow_nan=False,
                )
            },
        )
    return new


def newest_occurrences(
    connection: Connection[Any], *, source: str, event_type: str, entity_ids: Sequence[str]
) -> Mapping[str, datetime]:
    """The instant of the newest stored event per entity; an entity without any is left out."""
    rows = connection.execute(
        QUERIES["newest_occurrence"].sql,
        {"entity_ids": list(entity_ids), "source": source, "event_type": event_type},
    )
    return dict(rows.fetchall())


def database_time(connection: Connection[Any]) -> datetime:
    """The database's clock."""
    row = connection.execute(QUERIES["database_time"].sql).fetchone()
    assert row is not None
    instant: datetime = row[0]
    return instant
