"""Rows to test with, made the way the pipeline makes them."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection, sql
from psycopg.rows import dict_row

from control_plane.ingestion.source import Observation
from control_plane.ingestion.store import Draft, store_events
from control_plane.model.contract import Event, MarketTick, Payload, SourceFetchFailed, new_event
from control_plane.outbox import store
from control_plane.platform.queries import Query

FIRST_BAR = datetime(2026, 1, 5, 14, 32, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def bar(minute: int = 0, **changes: Any) -> Observation:
    """One closed bar, ``minute`` minutes after FIRST_BAR."""
    payload = {
        "price": 100.5 + minute,
        "open": 100.0,
        "high": 101.0,
        "low": 99.5,
        "volume": 1200,
        "currency": "USD",
        "interval": "1m",
    }
    return Observation("MARKET_TICK_INGESTED", FIRST_BAR + minute * MINUTE, payload | changes)


def bars(count: int, *, start: int = 0) -> list[Observation]:
    return [bar(minute) for minute in range(start, start + count)]


def event(payload: Payload, *, entity_id: str = "AAPL", occurred_at: datetime = FIRST_BAR) -> Event:
    return new_event(
        payload,
        source="fake",
        entity_id=entity_id,
        entity_type="equity",
        occurred_at=occurred_at,
        ingested_at=FIRST_BAR,
        trace_id=UUID(int=1),
    )


def ticks(count: int, *, entity_id: str = "AAPL") -> list[Event]:
    """Events of market.ticks."""
    return [
        event(MarketTick(**observation.payload), entity_id=entity_id, occurred_at=observation.occurred_at)
        for observation in bars(count)
    ]


def failures(count: int) -> list[Event]:
    """Events of system.events."""
    return [
        event(SourceFetchFailed(symbol="AAPL", kind="malformed", reason=f"number {number}")) for number in range(count)
    ]


def promise(connection: Connection[Any], events: Sequence[Event]) -> list[UUID]:
    """Stores events with their promises; returns their ids."""
    with connection.transaction():
        store_events(connection, [], [Draft(event, None) for event in events])
    return [event.event_id for event in events]


def promise_body(connection: Connection[Any], body: dict[str, Any], *, topic: str = "market.ticks") -> UUID:
    """An outbox row with a body and a topic of one's own; returns its event's id."""
    some_event = event(SourceFetchFailed(symbol="AAPL", kind="malformed", reason=str(uuid4())))
    message = some_event.to_message()
    with connection.transaction():
        connection.execute(
            "INSERT INTO events (event_id, event_type, source, occurred_at, ingested_at, schema_version, trace_id,"
            " payload_json) VALUES (%s, %s, 'fake', now(), now(), 1, %s, '{}')",
            [message["event_id"], message["event_type"], message["trace_id"]],
        )
        connection.execute(
            "INSERT INTO outbox (event_id, topic, payload_json) VALUES (%s, %s, %s)",
            [message["event_id"], topic, json.dumps(body)],
        )
    return some_event.event_id


def outbox(connection: Connection[Any]) -> dict[UUID, dict[str, Any]]:
    """Every promise by its event's id, with its state and ``wait``: the seconds until its next attempt."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT *, extract(epoch FROM next_attempt_at - clock_timestamp())::float AS wait FROM outbox_states"
        )
        return {row["event_id"]: row for row in cursor}


def failed_attempts(connection: Connection[Any]) -> list[tuple[UUID, int, str, str]]:
    """Every failed attempt: event_id, attempt, claimed_by, error."""
    return connection.execute(
        "SELECT event_id, attempt, failure.claimed_by, error FROM delivery_failures AS failure"
        " JOIN outbox ON outbox.id = outbox_id ORDER BY outbox_id, attempt, failed_at"
    ).fetchall()


def pass_time(connection: Connection[Any]) -> None:
    """As if all waits, back-offs and leases were over."""
    connection.execute(
        "UPDATE outbox SET next_attempt_at = now() WHERE delivered_at IS NULL AND dead_lettered_at IS NULL"
    )


def cool_down(connection: Connection[Any]) -> None:
    """As if every breaker's cool-down were over."""
    connection.execute("UPDATE circuit_breakers SET retry_at = now() WHERE state <> 'closed'")


def counts(connection: Connection[Any]) -> tuple[int, int, int]:
    """Rows in raw_payloads, events, outbox."""
    ((raw_payloads, events, promises),) = connection.execute(
        "SELECT (SELECT count(*) FROM raw_payloads), (SELECT count(*) FROM events), (SELECT count(*) FROM outbox)"
    ).fetchall()
    return raw_payloads, events, promises


def prepare(connection: Connection[Any], query: Query) -> list[str]:
    """PREPAREs a named query as ``checked``; returns the names of its parameters, in order."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query.sql)))
    numbered = re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", query.sql).replace("%%", "%")
    connection.execute(f"PREPARE checked AS {numbered}".encode())
    return names


def plan(connection: Connection[Any], query: Query, parameters: dict[str, Any]) -> str:
    """Runs a named query, and says as JSON how Postgres went about it."""
    names = prepare(connection, query)
    values = sql.SQL(", ").join(sql.Literal(parameters[name]) for name in names)
    execute = sql.SQL("EXECUTE checked ({})" if names else "EXECUTE checked").format(values)
    ((steps,),) = connection.execute(sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(execute)).fetchall()
    connection.execute("DEALLOCATE checked")
    return json.dumps(steps)


def lanes(limit: int) -> dict[str, store.Lane]:
    """Both topics, from the beginning."""
    return {topic: store.Lane(limit) for topic in ("market.ticks", "system.events")}
