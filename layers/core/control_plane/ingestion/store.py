"""Stores looks: each one that says something new becomes an event with messages.

The caller opens and commits the transaction.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.pq import TransactionStatus

from control_plane.ingestion.source import Json
from control_plane.model.contract import Event, Payload, new_event
from control_plane.model.ids import canonical_instant, derive_event_id
from control_plane.platform.messages import NewMessage, as_json
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
MAX_ENTITIES: Final = 500
"""The most entities that one transaction locks. Postgres sizes its table of locks at its start, so a transaction must
not fill it."""


LARGEST_RAW_PAYLOAD: Final = 16 << 20
"""Most bytes of one raw payload, as the text of its JSON; the table raw_payloads refuses more."""


@dataclass(frozen=True, slots=True)
class RawPayload:
    """What a source answered about one entity."""

    id: UUID
    source: str
    entity_id: str | None
    observed_at: datetime
    """When the source was asked."""
    window_since: datetime | None
    """The start of the requested time; None for the most recent hour."""
    fetched_at: datetime
    trace_id: UUID
    payload: Json


@dataclass(frozen=True, slots=True)
class Look:
    """One observation as it was just seen, before it is known whether it says anything new."""

    payload: Payload
    source: str
    entity_id: str | None
    entity_type: str | None
    occurred_at: datetime
    observed_at: datetime
    trace_id: UUID
    series: str = ""
    raw_payload_id: UUID | None = None

    @property
    def key(self) -> "Key":
        """The key of the look's chain: looks with one key form a chain of revisions."""
        return Key(self.source, self.payload.event_type, self.entity_id, self.series, self.occurred_at)

    def event_id(self, revision: int) -> UUID:
        """Returns the id of the event that this look becomes as the given revision. Raises ContractViolation."""
        return derive_event_id(
            source=self.source,
            event_type=self.payload.event_type,
            entity_id=self.entity_id,
            series=self.series,
            occurred_at=self.occurred_at,
            schema_version=self.payload.schema_version,
            revision=revision,
            payload=self.payload.model_dump(mode="json"),
        )

    def to_event(self, *, revision: int, ingested_at: datetime, event_id: UUID | None = None) -> Event:
        """Returns the event that this look becomes as the given revision. Raises ContractViolation.

        ``event_id`` is what ``self.event_id(revision)`` returned, where that is known.
        """
        return new_event(
            self.payload,
            source=self.source,
            entity_id=self.entity_id,
            entity_type=self.entity_type,
            occurred_at=self.occurred_at,
            observed_at=self.observed_at,
            ingested_at=ingested_at,
            trace_id=self.trace_id,
            series=self.series,
            revision=revision,
            event_id=event_id,
        )


@dataclass(frozen=True, slots=True)
class Key:
    """What a look is about: one instant of one entity's series."""

    source: str
    event_type: str
    entity_id: str | None
    series: str
    occurred_at: datetime


class LookOutcome(StrEnum):
    """What a look turned out to be, compared with the latest stored revision."""

    NEW = "new"
    DUPLICATE = "duplicate"
    STALE = "stale"
    """Older than the newest look at the same instant, or at what was erased: it is counted and makes no event."""


@dataclass(frozen=True, slots=True)
class StoredLook:
    """What became of one look."""

    outcome: LookOutcome
    event: Event | None
    """The event that was stored; None unless the look is new."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch of looks."""

    looks: Sequence[StoredLook]
    """One per look, in order."""
    unsubscribed: Mapping[str, int]
    """By topic, how many new messages have no subscription: nobody will receive them."""

    @property
    def events(self) -> Sequence[Event]:
        """The events that were stored."""
        return [look.event for look in self.looks if look.event is not None]


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: its latest revision, and when its instant was last looked at."""

    revision: int
    event_id: UUID
    observed_at: datetime


@dataclass(slots=True)
class Chains:
    """The known chains of revisions; the only place that decides whether a look is new.

    When looks are stored, the ends of the chains come from the database; a rebuild begins with no chains.
    """

    heads: dict[Key, Head] = field(default_factory=dict)
    repeated: dict[Key, datetime] = field(default_factory=dict)
    """By key, when an instant was last looked at and found unchanged."""

    def add(self, look: Look) -> tuple[LookOutcome, Head]:
        """Adds a look; returns its outcome, and the head that it repeats, becomes or is too old for."""
        key = look.key
        head = self.heads.get(key)
        if head is None:
            return self._extend(key, look, 0)
        if look.event_id(head.revision) == head.event_id:
            if look.observed_at > head.observed_at:
                self.repeated[key] = look.observed_at
                self.heads[key] = Head(head.revision, head.event_id, look.observed_at)
            return LookOutcome.DUPLICATE, head
        if look.observed_at < head.observed_at:
            return LookOutcome.STALE, head
        return self._extend(key, look, head.revision + 1)

    def _extend(self, key: Key, look: Look, revision: int) -> tuple[LookOutcome, Head]:
        head = self.heads[key] = Head(revision, look.event_id(revision), look.observed_at)
        return LookOutcome.NEW, head


def store_events(
    connection: Connection[Any],
    raw_payloads: Sequence[RawPayload],
    looks: Sequence[Look],
    *,
    is_promised: bool = True,
) -> Stored:
    """Stores raw payloads and, for each look that says something new, its event, outbox messages and pending
    deliveries.

    Never commits: everything belongs to the caller's transaction, in READ COMMITTED, and is stored whole or not at all.
    A look equal to the latest revision is a duplicate, one older than the newest look is stale, and any other is the
    next revision, even a return to an earlier value. The looks are about no more than MAX_ENTITIES entities. Where the
    messages are not promised, nobody gets them until a replay. Raises psycopg.Error, and ValueError outside a
    transaction.
    """
    if connection.info.transaction_status is not TransactionStatus.INTRANS:
        raise ValueError("events are stored within a transaction: open one with connection.transaction()")
    if not raw_payloads and not looks:
        return Stored([], {})
    # In a stricter isolation level, this transaction would not see what others stored while it waited for its locks.
    # Postgres refuses this statement if the level is stricter and the transaction has already read something.
    connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    lock_entities(
        connection,
        {(raw.source, raw.entity_id) for raw in raw_payloads} | {(look.source, look.entity_id) for look in looks},
    )
    raw_payloads, erased = _without_erased(connection, raw_payloads, looks)
    if raw_payloads:
        _insert_raw_payloads(connection, raw_payloads)
    if not looks:
        return Stored([], {})
    ingested_at = database_time(connection)
    chains = Chains(_read_heads(connection, {look.key for look in looks}))
    stored: list[StoredLook] = []
    for place, look in enumerate(looks):
        if place in erased:
            stored.append(StoredLook(LookOutcome.STALE, None))
            continue
        outcome, head = chains.add(look)
        event = None
        if outcome is LookOutcome.NEW:
            event = look.to_event(revision=head.revision, ingested_at=ingested_at, event_id=head.event_id)
        stored.append(StoredLook(outcome, event))
    if chains.repeated:
        _advance_repeated_looks(connection, chains.repeated)
    statement = QUERIES["insert_events" if is_promised else "insert_unpromised_events"].sql
    return Stored(stored, _insert_events(connection, statement, looks, stored))


def lock_entities(connection: Connection[Any], entities: set[tuple[str, str | None]]) -> None:
    """Makes every other transaction that stores looks at one of these entities wait until this transaction ends.

    It is a statement of its own, before any chain is read, so that the next statement sees chains that nobody else can
    change. All callers take the locks in the same order, so no two transactions deadlock.
    """
    if len(entities) > MAX_ENTITIES:
        raise ValueError(f"{len(entities)} entities in one transaction: {MAX_ENTITIES} are the most")
    connection.execute(
        QUERIES["lock_entities"].sql,
        {"sources": [source for source, _ in entities], "entity_ids": [entity for _, entity in entities]},
    )


def _without_erased(
    connection: Connection[Any], raw_payloads: Sequence[RawPayload], looks: Sequence[Look]
) -> tuple[Sequence[RawPayload], set[int]]:
    """Returns the raw payloads of what was not erased, and the places of the looks at what was.

    It is asked under the entities' locks, which an erasure takes before it begins.
    """
    rows = connection.execute(
        QUERIES["erased_places"].sql,
        {
            "sources": [raw.source for raw in raw_payloads] + [look.source for look in looks],
            "entity_ids": [raw.entity_id for raw in raw_payloads] + [look.entity_id for look in looks],
            "event_types": [None for _ in raw_payloads] + [look.payload.event_type for look in looks],
            "series": [None for _ in raw_payloads] + [look.series for look in looks],
            "occurred_at": [None for _ in raw_payloads] + [look.occurred_at for look in looks],
        },
    ).fetchall()
    erased = {place - 1 for (place,) in rows}
    kept = [raw for place, raw in enumerate(raw_payloads) if place not in erased]
    return kept, {place - len(raw_payloads) for place in erased if place >= len(raw_payloads)}


def newest_occurrences(
    connection: Connection[Any], *, source: str, event_type: str, series: str, entity_ids: Sequence[str]
) -> Mapping[str, datetime]:
    """Returns the instant of the newest stored event per entity; an entity without any is left out."""
    rows = connection.execute(
        QUERIES["newest_occurrence"].sql,
        {"entity_ids": list(entity_ids), "source": source, "event_type": event_type, "series": series},
    )
    return dict(rows.fetchall())


def database_time(connection: Connection[Any]) -> datetime:
    """Returns the time by the database's clock."""
    row = connection.execute(QUERIES["database_time"].sql).fetchone()
    assert row is not None
    instant: datetime = row[0]
    return instant


def count_fetches(connection: Connection[Any], source: str, *, fetched: int, failed: int) -> None:
    """Counts how many fetches of a source succeeded and failed, in the caller's transaction. Raises psycopg.Error."""
    connection.execute(QUERIES["count_fetches"].sql, {"source": source, "fetched": fetched, "failed": failed})


def _insert_raw_payloads(connection: Connection[Any], raw_payloads: Sequence[RawPayload]) -> None:
    connection.execute(
        QUERIES["insert_raw_payloads"].sql,
        {
            "raw_payloads": json.dumps(
                [
                    {
                        "id": str(raw.id),
                        "source": raw.source,
                        "entity_id": raw.entity_id,
                        "observed_at": canonical_instant(raw.observed_at, field="observed_at"),
                        "window_since": None
                        if raw.window_since is None
                        else canonical_instant(raw.window_since, field="window_since"),
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


def _read_heads(connection: Connection[Any], keys: set[Key]) -> dict[Key, Head]:
    ordered = list(keys)
    rows = connection.execute(
        QUERIES["chain_heads"].sql,
        {
            "sources": [key.source for key in ordered],
            "event_types": [key.event_type for key in ordered],
            "entity_ids": [key.entity_id for key in ordered],
            "series": [key.series for key in ordered],
            "occurred_at": [key.occurred_at for key in ordered],
        },
    )
    return {
        ordered[place - 1]: Head(revision, event_id, observed_at) for place, revision, event_id, observed_at in rows
    }


def _insert_events(
    connection: Connection[Any], statement: str, looks: Sequence[Look], stored: Sequence[StoredLook]
) -> Mapping[str, int]:
    new = [(look, one.event) for look, one in zip(looks, stored, strict=True) if one.event is not None]
    if not new:
        return {}
    rows = connection.execute(
        statement,
        {
            "events": as_json(
                [
                    NewMessage(look.payload.topic, event.to_message(), raw_payload_id=look.raw_payload_id)
                    for look, event in new
                ]
            )
        },
    )
    return Counter(dict(rows.fetchall()))


def _advance_repeated_looks(connection: Connection[Any], repeated: Mapping[Key, datetime]) -> None:
    connection.execute(
        QUERIES["advance_repeated_looks"].sql,
        {
            "sources": [key.source for key in repeated],
            "event_types": [key.event_type for key in repeated],
            "entity_ids": [key.entity_id for key in repeated],
            "series": [key.series for key in repeated],
            "occurred_at": [key.occurred_at for key in repeated],
            "observed_at": list(repeated.values()),
        },
    )
