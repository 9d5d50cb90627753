"""Makes rows for tests in the way the pipeline makes them."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import Connection, sql
from psycopg.rows import dict_row
from tests.conftest import TestDatabase

from control_plane.ingestion.source import Observation
from control_plane.ingestion.store import Look, store_events
from control_plane.model.contract import Event, Payload, SourceFetchFailed
from control_plane.model.lifecycle import Failed, Outcome
from control_plane.model.lifecycle import settle as settlement_of
from control_plane.outbox import claims, settlements
from control_plane.outbox.claims import Claim, LaneLimits
from control_plane.platform.queries import Query
from domains.finance.events import MarketTick

FIRST_BAR = datetime(2026, 1, 5, 14, 32, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def bar(minute: int = 0, **changes: Any) -> Observation:
    """Returns one closed bar, ``minute`` minutes after FIRST_BAR."""
    payload = {
        "price": 100.5 + minute,
        "open": 100.0,
        "high": 101.0,
        "low": 99.5,
        "volume": 1200,
        "currency": "USD",
        "interval": "1m",
    }
    return Observation("MARKET_TICK_INGESTED", FIRST_BAR + minute * MINUTE, payload | changes, series="1m")


def bars(count: int, *, start: int = 0) -> list[Observation]:
    return [bar(minute) for minute in range(start, start + count)]


def look(
    payload: Payload,
    *,
    entity_id: str | None = "AAPL",
    occurred_at: datetime = FIRST_BAR,
    observed_at: datetime = FIRST_BAR,
    series: str = "",
) -> Look:
    """Returns one look at one instant; a market tick's series is its interval."""
    return Look(
        payload,
        source="fake",
        entity_id=entity_id,
        entity_type="equity",
        occurred_at=occurred_at,
        observed_at=observed_at,
        trace_id=UUID(int=1),
        series=payload.interval if isinstance(payload, MarketTick) else series,
    )


def event(payload: Payload, *, revision: int = 0, ingested_at: datetime = FIRST_BAR, **about: Any) -> Event:
    """Returns the event that a look with these values becomes."""
    return look(payload, **about).to_event(revision=revision, ingested_at=ingested_at)


def ticks(count: int, *, entity_id: str = "AAPL") -> list[Look]:
    """Returns looks that become messages of market.ticks."""
    return [
        look(MarketTick(**observation.payload), entity_id=entity_id, occurred_at=observation.occurred_at)
        for observation in bars(count)
    ]


def tick(minute: int) -> Look:
    """Returns the look at the bar ``minute`` minutes after FIRST_BAR."""
    return ticks(minute + 1)[-1]


def failures(count: int) -> list[Look]:
    """Returns looks that become messages of system.events."""
    return [
        look(
            SourceFetchFailed(symbol="AAPL", kind="malformed", reason=f"number {number}"),
            occurred_at=FIRST_BAR + number * MINUTE,
        )
        for number in range(count)
    ]


def store(connection: Connection[Any], looks: Sequence[Look]) -> list[UUID]:
    """Stores new looks with their messages; returns their events' ids, in order."""
    with connection.transaction():
        return [event.event_id for event in store_events(connection, [], looks).events]


def store_body(
    connection: Connection[Any],
    body: dict[str, Any],
    *,
    topic: str = "market.ticks",
    subscriptions: Sequence[str] = ("signal_lab",),
) -> UUID:
    """Stores a message with this body, pending for these subscriptions; returns its event's id."""
    event_id, trace_id = uuid4(), uuid4()
    with connection.transaction():
        connection.execute(
            "INSERT INTO events (event_id, event_type, source, entity_id, occurred_at, ingested_at, schema_version,"
            " trace_id, payload_json) VALUES (%s, 'SOURCE_FETCH_FAILED', 'fake', %s, now(), now(), 1, %s, '{}')",
            [event_id, str(event_id), trace_id],
        )
        connection.execute(
            "WITH message AS (INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
            " VALUES (%s, %s, 'SOURCE_FETCH_FAILED', 1, %s, %s) RETURNING id)"
            " INSERT INTO pending_deliveries (outbox_id, subscription)"
            " SELECT id, subscription FROM message, unnest(%s::text[]) AS subscription",
            [event_id, topic, trace_id, json.dumps(body, ensure_ascii=False), list(subscriptions)],
        )
    return event_id


def store_delivered(owner: Connection[Any], count: int) -> None:
    """Stores ``count`` more messages of market.ticks, accepted by signal_lab's queue; analyzes the tables."""
    with owner.transaction():
        owner.execute(
            "INSERT INTO events (event_id, event_type, source, occurred_at, ingested_at, schema_version, trace_id,"
            " payload_json, series) SELECT gen_random_uuid(), 'A_THING_HAPPENED', 'bulk', now(), now(), 1,"
            " gen_random_uuid(), '{}', number::text FROM generate_series(1, %s) AS number",
            [count],
        )
        owner.execute(
            "WITH message AS (INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
            " SELECT event_id, 'market.ticks', event_type, 1, trace_id, '{}' FROM events WHERE source = 'bulk'"
            " RETURNING id)"
            " INSERT INTO deliveries (outbox_id, subscription, delivery_attempts, message_id)"
            " SELECT id, 'signal_lab', 1, 'm' FROM message"
        )
    owner.execute("ANALYZE")


def deliveries(connection: Connection[Any], *, subscription: str | None = None) -> dict[UUID, dict[str, Any]]:
    """Returns every delivery by its event's id, with its state and ``wait``, the seconds until its next attempt.

    If events have deliveries to several subscriptions, ``subscription`` must be given.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT state.*, pending.claim_token, pending.suspect_since,"
            " extract(epoch FROM state.next_attempt_at - clock_timestamp())::float AS wait"
            " FROM outbox_states AS state LEFT JOIN pending_deliveries AS pending"
            " ON pending.outbox_id = state.id AND pending.subscription = state.subscription"
            " AND pending.operation_id IS NOT DISTINCT FROM state.operation_id"
            " WHERE %(subscription)s::text IS NULL OR state.subscription = %(subscription)s",
            {"subscription": subscription},
        )
        return {row["event_id"]: row for row in cursor}


def failed_attempts(connection: Connection[Any]) -> list[tuple[UUID, int, str, str]]:
    """Returns every failed attempt: event_id, attempt, claimed_by, error."""
    return connection.execute(
        "SELECT event_id, attempt, failure.claimed_by, error FROM delivery_failures AS failure"
        " JOIN outbox ON outbox.id = outbox_id ORDER BY outbox_id, attempt, failed_at"
    ).fetchall()


def pass_time(connection: Connection[Any]) -> None:
    """Makes everything pending due now, as if all waits, back-offs and leases were over."""
    connection.execute("UPDATE pending_deliveries SET next_attempt_at = now()")


def cool_down(connection: Connection[Any]) -> None:
    """Makes every breaker's probe due now, as if its cool-down were over."""
    connection.execute("UPDATE circuit_breakers SET retry_at = now() WHERE state <> 'closed'")


def counts(connection: Connection[Any]) -> tuple[int, int, int]:
    """Returns the number of rows in raw_payloads, events and outbox."""
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
    """Runs a named query, and returns as JSON the plan that Postgres used."""
    names = prepare(connection, query)
    values = sql.SQL(", ").join(sql.Literal(parameters[name]) for name in names)
    execute = sql.SQL("EXECUTE checked ({})" if names else "EXECUTE checked").format(values)
    ((steps,),) = connection.execute(sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(execute)).fetchall()
    connection.execute("DEALLOCATE checked")
    return json.dumps(steps)


def steps(plan: str) -> list[dict[str, Any]]:
    """Returns every step of a plan."""

    def walk(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield step
        for child in step.get("Plans", []):
            yield from walk(child)

    return list(walk(json.loads(plan)[0]["Plan"]))


def limits(rows: int, *, bytes_: int = 2**40, suspects: int = 10) -> dict[str, LaneLimits]:
    """Returns limits for both subscriptions, from the beginning."""
    return {name: LaneLimits(rows, bytes_, suspects) for name in ("signal_lab", "system_events")}


def claim(
    connection: Connection[Any],
    *,
    rows: int = 100,
    max_attempts: int = 3,
    subscriptions: Sequence[str] = ("signal_lab", "system_events"),
) -> Claim:
    """Makes a claim of ``relay-1``, for 30 seconds."""
    return claims.claim(
        connection,
        token=uuid4(),
        claimed_by="relay-1",
        lanes=dict.fromkeys(subscriptions, LaneLimits(rows, 2**40, 10)),
        lease_seconds=30,
        max_attempts=max_attempts,
    )


def settle(
    connection: Connection[Any],
    claim: Claim,
    outcome: Outcome,
    *,
    subscription: str | None = None,
    max_attempts: int = 3,
) -> list[UUID]:
    """Settles a claim's messages (of one subscription, or all) with an outcome.

    Messages that the claim itself gives up on get that verdict instead. Returns the ids of the events whose settlement
    took effect.
    """
    settled = [
        (
            delivery.message,
            settlement_of(
                delivery.verdict or outcome,
                attempt=delivery.message.attempt,
                max_attempts=max_attempts,
                cool_down=timedelta(seconds=30),
            ),
        )
        for delivery in claim.deliveries
        if subscription in {None, delivery.message.subscription}
    ]
    rows = settlements.settle(connection, settled_by="relay-1", settlements=settled)
    event_ids = {message.outbox_id: UUID(message.event_id) for message, _ in settled}
    return [event_ids[row.outbox_id] for row in rows]


def give_up(connection: Connection[Any], *, reason: str = "no luck", attempts: int = 3) -> list[UUID]:
    """Dead-letters all that is due, by so many failed attempts; returns the event ids of the last attempt."""
    for _ in range(attempts):
        failed = settle(connection, claim(connection, max_attempts=attempts), Failed(reason), max_attempts=attempts)
        pass_time(connection)
    return failed


def promised(owner: Connection[Any], seconds_ago: float, *event_ids: UUID) -> None:
    """Sets when pending deliveries (of these events, or all) were promised to so many seconds ago."""
    owner.execute(
        "UPDATE pending_deliveries SET promised_at = now() - make_interval(secs => %(seconds)s)"
        " FROM outbox WHERE outbox.id = outbox_id AND (%(all)s OR event_id = ANY (%(event_ids)s))",
        {"seconds": seconds_ago, "all": not event_ids, "event_ids": list(event_ids)},
    )


def wait_until_waiting(database: TestDatabase, application_name: str) -> None:
    """Returns once a session of that name waits for a lock."""
    deadline = time.monotonic() + 30
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        while not admin.execute(
            "SELECT FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database() AND wait_event_type = 'Lock'",
            [application_name],
        ).fetchall():
            assert time.monotonic() < deadline, f"{application_name} waits for no lock"
            time.sleep(0.01)
