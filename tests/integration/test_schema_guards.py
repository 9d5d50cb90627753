"""What the database itself refuses, whatever the code does."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, errors
from tests.conftest import MIGRATIONS, TestDatabase
from tests.integration import seeds
from tests.integration.fakes import Clock, FakePublisher, RecordingTelemetry

from control_plane.model.lifecycle import Accepted, Failed, MessageFault, Outcome, QueueFault
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.outbox import ledger, relay, store
from control_plane.platform.breakers import BreakerPolicy
from control_plane.platform.database import connect

IMMUTABLE = ("events", "raw_payloads")
QUEUE = "http://queues/ticks"


@pytest.fixture
def stored(app: Connection[Any]) -> UUID:
    """An event, its raw payload and its promise; returns the event's id."""
    (event_id,) = seeds.promise(app, seeds.ticks(1))
    app.execute(
        "INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)"
        " VALUES (%s, 'fake', now(), %s, '{}')",
        [uuid4(), uuid4()],
    )
    return event_id


def in_the_retention_step(connection: Connection[Any], *statements: str) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL control_plane.retention = 'on'")
        for statement in statements:
            connection.execute(statement.encode())


# Privileges


@pytest.mark.parametrize("table", IMMUTABLE)
@pytest.mark.parametrize("change", ["UPDATE {} SET source = 'forged'", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_the_functions_role_may_not_change_what_is_immutable(
    app: Connection[Any], stored: UUID, table: str, change: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        app.execute(change.format(table).encode())
    with pytest.raises(errors.InsufficientPrivilege):
        in_the_retention_step(app, change.format(table))
    assert seeds.counts(app) == (1, 1, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id integer)",
        "CREATE SCHEMA mine",
        "CREATE VIEW mine AS SELECT 1",
        "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE ROLE mine",
        "ALTER TABLE events ADD COLUMN mine integer",
        "ALTER TABLE events DISABLE TRIGGER events_are_immutable",
        "ALTER TABLE events OWNER TO acp_app",
        "CREATE INDEX mine ON events (source)",
        "DROP TABLE outbox",
        "DROP TRIGGER events_are_immutable ON events",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "SET session_replication_role = 'replica'",
        "DELETE FROM outbox",
        "DELETE FROM delivery_failures",
        "DELETE FROM processed_events",
        "UPDATE processed_events SET consumer = 'x'",
        "INSERT INTO schema_migrations VALUES (99, 'x', 'x')",
        "SET ROLE acp_owner",
    ],
)
def test_the_functions_role_may_define_nothing_and_delete_nothing(app: Connection[Any], statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        app.execute(statement.encode())


def test_the_functions_role_may_not_make_temporary_tables(empty_database: TestDatabase) -> None:
    # A privilege of the database, which a clone does not inherit from its template.
    with connect(empty_database.owner_url, application_name="test") as owner:
        migrate(owner, read_migrations(MIGRATIONS))
    with connect(empty_database.app_url, application_name="test") as app, pytest.raises(errors.InsufficientPrivilege):
        app.execute("CREATE TEMPORARY TABLE mine (id integer)")


# Immutability, for the owner too


@pytest.mark.parametrize("table", IMMUTABLE)
@pytest.mark.parametrize("change", ["UPDATE {} SET source = 'forged'", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_the_owner_too_is_refused_a_change_and_told_the_way(
    owner: Connection[Any], app: Connection[Any], stored: UUID, table: str, change: str
) -> None:
    with pytest.raises(errors.RestrictViolation, match=f"on {table} refused: its rows are immutable") as refused:
        owner.execute(change.format(table).encode())
    assert "A correction is a new event" in str(refused.value.diag.message_hint)
    assert seeds.counts(app) == (1, 1, 1)


@pytest.mark.parametrize("table", IMMUTABLE)
@pytest.mark.parametrize("change", ["UPDATE {} SET source = 'forged'", "TRUNCATE {} CASCADE"])
def test_retention_may_delete_and_nothing_else(owner: Connection[Any], stored: UUID, table: str, change: str) -> None:
    with pytest.raises(errors.RestrictViolation):
        in_the_retention_step(owner, change.format(table))


def test_the_retention_step_deletes_and_its_permission_ends_with_it(
    owner: Connection[Any], app: Connection[Any], stored: UUID
) -> None:
    in_the_retention_step(owner, "DELETE FROM outbox", "DELETE FROM events", "DELETE FROM raw_payloads")
    assert seeds.counts(app) == (0, 0, 0)
    seeds.promise(app, seeds.ticks(1))
    with pytest.raises(errors.RestrictViolation):
        owner.execute("DELETE FROM events")


def test_an_event_is_not_deleted_from_under_its_promise(owner: Connection[Any], stored: UUID) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        in_the_retention_step(owner, "DELETE FROM events")


# CHECKs: for each a row that it refuses, which would be accepted but for it

TOKEN = "'00000000-0000-0000-0000-000000000001'"
REFUSED_ROWS = {
    "outbox_one_end": "delivered_at = now(), message_id = 'm', delivery_attempts = 1, dead_lettered_at = now(),"
    " last_error = NULL",
    "outbox_settled_has_no_claim": f"delivered_at = now(), message_id = 'm', delivery_attempts = 1,"
    f" claim_token = {TOKEN}, claimed_by = 'r'",
    "outbox_claim_is_whole": f"claim_token = {TOKEN}, delivery_attempts = 1",
    "outbox_claim_is_an_attempt": f"claim_token = {TOKEN}, claimed_by = 'r'",
    "outbox_delivered_by_an_attempt": "delivered_at = now(), message_id = 'm'",
    "outbox_delivered_has_message": "delivered_at = now(), delivery_attempts = 1",
    "outbox_delivered_has_no_error": "delivered_at = now(), message_id = 'm', delivery_attempts = 1, last_error = 'e'",
    "outbox_dead_letter_has_reason": "dead_lettered_at = now()",
    "outbox_topic_check": "topic = 'Market Ticks'",
    "outbox_payload_json_check": "payload_json = '[]'",
    "outbox_delivery_attempts_check": "delivery_attempts = -1",
}


@pytest.mark.parametrize(
    "column", ["event_id = gen_random_uuid()", "topic = 'a.b'", "payload_json = '{}'", "created_at = now()"]
)
def test_the_app_cannot_change_what_was_promised(app: Connection[Any], stored: UUID, column: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        app.execute(f"UPDATE outbox SET {column}".encode())


@pytest.mark.parametrize("constraint", REFUSED_ROWS)
def test_an_impossible_outbox_row_is_refused(owner: Connection[Any], stored: UUID, constraint: str) -> None:
    with pytest.raises(errors.CheckViolation) as refused:
        owner.execute(f"UPDATE outbox SET {REFUSED_ROWS[constraint]}".encode())
    violated = str(refused.value.diag.constraint_name)
    # A row with two ends must also lack what one of them demands; the database names the first that it breaks.
    assert violated == constraint or (constraint == "outbox_one_end" and violated == "outbox_dead_letter_has_reason")


def test_every_check_of_the_outbox_has_a_row_that_it_refuses(app: Connection[Any]) -> None:
    checks = app.execute("SELECT conname FROM pg_constraint WHERE conrelid = 'outbox'::regclass AND contype = 'c'")
    assert {row[0] for row in checks} == set(REFUSED_ROWS)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("events", {"event_type": "market_tick"}),
        ("events", {"source": ""}),
        ("events", {"entity_id": ""}),
        ("events", {"entity_type": ""}),
        ("events", {"schema_version": 0}),
        ("events", {"payload_json": "[]"}),
        ("raw_payloads", {"source": ""}),
        ("delivery_failures", {"error": ""}),
        ("delivery_failures", {"attempt": 0}),
        ("processed_events", {"consumer": ""}),
        ("replays", {"requested_by": ""}),
        ("replays", {"filter": "[]"}),
        ("replays", {"event_count": -1}),
        ("circuit_breakers", {"name": ""}),
        ("circuit_breakers", {"state": "ajar"}),
        ("circuit_breakers", {"state": "open"}),
        ("circuit_breakers", {"consecutive_failures": -1}),
    ],
)
def test_what_makes_no_sense_is_refused(app: Connection[Any], stored: UUID, table: str, row: dict[str, object]) -> None:
    (outbox_id,) = (promise["id"] for promise in seeds.outbox(app).values())
    sound: dict[str, dict[str, object]] = {
        "events": {
            "event_id": uuid4(), "event_type": "A_THING_HAPPENED", "source": "fake", "occurred_at": seeds.FIRST_BAR,
            "ingested_at": seeds.FIRST_BAR, "schema_version": 1, "trace_id": uuid4(), "payload_json": "{}",
        },
        "raw_payloads": {
            "id": uuid4(), "source": "fake", "fetched_at": seeds.FIRST_BAR, "trace_id": uuid4(), "payload_json": "{}",
        },
        "delivery_failures": {"outbox_id": outbox_id, "attempt": 1, "claimed_by": "r", "error": "e"},
        "processed_events": {"consumer": "c", "event_id": stored},
        "replays": {"replay_id": uuid4(), "requested_by": "me", "filter": "{}", "event_count": 0},
        "circuit_breakers": {"name": "q"},
    }  # fmt: skip

    def insert(values: dict[str, object]) -> None:
        columns, places = ", ".join(values), ", ".join(["%s"] * len(values))
        app.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})".encode(), list(values.values()))

    with pytest.raises(errors.CheckViolation):
        insert(sound[table] | row)
    insert(sound[table])  # but for that, it would have been taken


# One promise per event, topic and replay


def test_an_event_is_promised_once_per_topic_and_replay(app: Connection[Any], stored: UUID) -> None:
    def promise(topic: str, replay_id: UUID | None) -> None:
        app.execute(
            "INSERT INTO outbox (event_id, topic, replay_id, payload_json) VALUES (%s, %s, %s, '{}')",
            [stored, topic, replay_id],
        )

    replay_id = uuid4()
    app.execute(
        "INSERT INTO replays (replay_id, requested_by, filter, event_count) VALUES (%s, 'me', '{}', 1)", [replay_id]
    )
    with pytest.raises(errors.UniqueViolation):
        promise("market.ticks", None)
    promise("market.ticks", replay_id)
    promise("system.events", None)
    with pytest.raises(errors.UniqueViolation):
        promise("market.ticks", replay_id)


def test_a_promise_needs_its_event(app: Connection[Any]) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        app.execute("INSERT INTO outbox (event_id, topic, payload_json) VALUES (%s, 'a.b', '{}')", [uuid4()])


# The derived state


def claim(app: Connection[Any]) -> store.Claim:
    return store.claim(
        app,
        token=uuid4(),
        claimed_by="r",
        lanes=seeds.lanes(10),
        max_bytes=relay.CLAIM_BYTES,
        lease_seconds=30,
        max_attempts=2,
    )


def test_a_row_that_was_never_tried_is_pending(app: Connection[Any], stored: UUID) -> None:
    assert seeds.outbox(app)[stored]["state"] == "pending"


def test_a_claimed_row_is_in_flight_until_its_lease_ends_and_then_pending(app: Connection[Any], stored: UUID) -> None:
    claim(app)
    row = seeds.outbox(app)[stored]
    assert (row["state"], row["delivery_attempts"]) == ("in_flight", 1)
    assert 0 < row["wait"] <= 30
    seeds.pass_time(app)
    assert seeds.outbox(app)[stored]["state"] == "pending"


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Accepted("m-1"), "delivered"),
        (Failed("once more"), "retrying"),
        (QueueFault("throttled"), "retrying"),
        (MessageFault("too large"), "dead_lettered"),
    ],
)
def test_a_settled_row_is_in_the_state_of_its_outcome(
    app: Connection[Any], database: TestDatabase, stored: UUID, outcome: Outcome, state: str
) -> None:
    clock = Clock()
    relay.Relay(
        connection=lambda: app,
        publisher=FakePublisher(QUEUE, script=lambda _message: outcome, clock=clock),
        queue_urls={"market.ticks": QUEUE},
        policy=ledger.RelayPolicy(10, 30, 2, 1, BreakerPolicy(1, 30)),
        telemetry=RecordingTelemetry(),
        name="r",
        monotonic=clock.monotonic,
        sleep=clock.sleep,
    ).run(remaining_seconds=lambda: 60)
    assert seeds.outbox(app)[stored]["state"] == state


# The claim's plan


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
def test_claim_and_settle_look_at_open_rows_alone_however_many_are_settled(
    app: Connection[Any], owner: Connection[Any], plans: str
) -> None:
    with owner.transaction():
        owner.execute(
            "INSERT INTO events (event_id, event_type, source, occurred_at, ingested_at, schema_version, trace_id,"
            " payload_json) SELECT gen_random_uuid(), 'A_THING_HAPPENED', 'fake', now(), now(), 1, gen_random_uuid(),"
            " '{}' FROM generate_series(1, 50000)"
        )
        owner.execute(
            "INSERT INTO outbox (event_id, topic, payload_json, delivery_attempts, delivered_at, message_id)"
            " SELECT event_id, 'market.ticks', '{}', 1, now(), 'm' FROM events"
        )
    seeds.promise(app, seeds.ticks(50))
    owner.execute("ANALYZE")
    app.execute(f"SET plan_cache_mode = {plans}".encode())
    claimed_by = {"claimed_by": "r", "claim_token": uuid4()}
    claim_plan = seeds.plan(
        app,
        store.QUERIES["claim"],
        claimed_by
        | {"topics": ["market.ticks"], "since": [store.BEGINNING], "limits": [20]}
        | {"claim_bytes": 2**20, "lease_seconds": 30.0, "max_attempts": 5},
    )
    claimed = [row["id"] for row in seeds.outbox(app).values() if row["state"] == "in_flight"]
    settle_plan = seeds.plan(
        app,
        store.QUERIES["settle"],
        claimed_by
        | {
            "ids": claimed,
            "claim_tokens": [claimed_by["claim_token"]] * 20,
            "dispositions": ["published"] * 20,
            "message_ids": ["m"] * 20,
            "errors": [None] * 20,
            "delays_seconds": [0.0] * 20,
        },
    )
    backlog_plan = seeds.plan(app, store.QUERIES["backlog"], {})
    assert len(claimed) == 20
    assert "outbox_claimable" in claim_plan
    assert "outbox_claimable" in backlog_plan
    for used in (claim_plan, settle_plan, backlog_plan):
        assert "Seq Scan" not in used
    assert sum(row["state"] == "delivered" for row in seeds.outbox(app).values()) == 50_020
