"""Takes messages their whole way with the functions' own code and SQL, from migration to reading."""

from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import Connection
from tests.conftest import SUBSCRIPTIONS
from tests.integration.seeds import FIRST_BAR, deliveries, look, ticks

from control_plane.ingestion.store import LookOutcome, RawPayload, store_events
from control_plane.model.contract import SourceFetchFailed
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.subscriptions import sync_subscriptions
from control_plane.outbox import claims
from control_plane.platform.database import Database
from domains import EVENT_TYPES
from domains.finance import signal_lab
from domains.finance.events import MarketTick

MIGRATIONS = Path(__file__).parents[2] / "db" / "migrations"
PRICE = 0.1 + 0.2
"""A price whose shortest exact form has 17 digits."""


def functions_database(url: str, *, check_schema: bool = True) -> Database:
    return Database(lambda: url, application_name="test", check_schema=check_schema)


def bring_up(owner_url: str) -> None:
    """Migrates a database as MigrationFunction does."""
    database = functions_database(owner_url, check_schema=False)
    try:
        migrate(database.connection(), read_migrations(MIGRATIONS))
        sync_subscriptions(database.connection(), SUBSCRIPTIONS)
    finally:
        database.close()


def run_through(connection: Connection[Any], owner: Connection[Any]) -> None:
    """Takes messages from a source to SignalLab, and compares what was stored with what was given."""
    raw = RawPayload(uuid4(), "fake", None, FIRST_BAR, None, FIRST_BAR, UUID(int=1), {"price": PRICE, "path": "a\\b"})
    tick = MarketTick(price=PRICE, open=1.0, high=1.0, low=0.1, volume=7, currency="USD", interval="1m")
    looks = [
        look(tick),
        *ticks(2, entity_id="MSFT"),
        look(SourceFetchFailed(symbol="A", kind="malformed", reason="NULL")),
    ]
    looks.append(look(SourceFetchFailed(symbol="B", kind="malformed", reason="no entity"), entity_id=None))
    with connection.transaction():
        stored = store_events(connection, [raw], looks)
    assert {one.outcome for one in stored.looks} == {LookOutcome.NEW}
    with connection.transaction():
        again = store_events(connection, [], looks)
    assert {one.outcome for one in again.looks} == {LookOutcome.DUPLICATE}
    assert connection.execute("SELECT payload_json, entity_id, observed_at FROM raw_payloads").fetchall() == [
        (raw.payload, None, FIRST_BAR)
    ]

    claim = claims.claim(
        connection,
        token=uuid4(),
        claimed_by="test",
        lanes=dict.fromkeys(SUBSCRIPTIONS, claims.LaneLimits(100, 2**40, 10)),
        lease_seconds=60,
        max_attempts=5,
    )
    claimed = [(row.outbox_id, row.subscription, claim.token, row.body, row.due_at) for row in claim.rows]
    assert len(claimed) == len(looks)
    assert {row[4].utcoffset() for row in claimed} == {timedelta()}
    settled = connection.execute(
        "SELECT subscription, disposition FROM settle_deliveries('test', %s, %s, %s::uuid[], %s, %s, %s, %s, %s, %s)",
        [
            [row[0] for row in claimed],
            [row[1] for row in claimed],
            [None for _ in claimed],
            [row[2] for row in claimed],
            ["failed", *("published" for _ in claimed[1:])],
            [None, *(f"message {row[0]}" for row in claimed[1:])],
            ["a \\ failure", *(None for _ in claimed[1:])],
            [0.5 for _ in claimed],
            [False for _ in claimed],
        ],
    ).fetchall()
    assert len(settled) == len(looks)
    states = sorted(row["state"] for row in deliveries(owner).values())
    assert states == ["delivered"] * (len(looks) - 1) + ["retrying"]

    for _, subscription, _, body, _ in claimed:
        event = EVENT_TYPES.parse_event(body or "")
        if subscription == "signal_lab":
            assert signal_lab.consume(connection, event)
            assert not signal_lab.consume(connection, event)
    kept = connection.execute(
        "SELECT price, occurred_at FROM signal_lab_latest_prices WHERE entity_id = 'AAPL'"
    ).fetchone()
    assert kept == (PRICE, FIRST_BAR)
    assert kept[1].tzinfo is not None
    assert kept[1].astimezone(UTC).isoformat() == kept[1].isoformat()
    with pytest.raises(psycopg.errors.RestrictViolation):
        owner.execute("DELETE FROM events")
