"""What the database itself refuses, whatever the code does."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, errors
from psycopg.rows import dict_row
from tests.integration import operating_guards, seeds
from tests.integration.decisions import guards

from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NotSent, NoVerdict, Outcome, QueueFault
from control_plane.ops.dead_letters import DeadLetterFilter, redrive
from control_plane.outbox import claims

IMMUTABLE = ("events", "raw_payloads", "outbox", "deliveries")
TOKEN = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def stored(app: Connection[Any]) -> UUID:
    """Stores an event, its raw payload, its message and its delivery; returns the event's id."""
    (event_id,) = seeds.store(app, seeds.ticks(1))
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    app.execute(
        "INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)"
        " VALUES (%s, 'fake', now(), %s, '{}')",
        [uuid4(), uuid4()],
    )
    return event_id


@pytest.fixture
def pending(app: Connection[Any]) -> UUID:
    """Stores a pending message; returns its event's id."""
    (event_id,) = seeds.store(app, seeds.ticks(1))
    return event_id


def in_the_retention_step(connection: Connection[Any], *statements: str) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL control_plane.retention = 'on'")
        for statement in statements:
            connection.execute(statement.encode())


def change(statement: str, table: str) -> str:
    """Returns a statement that would change a table: {column} is one of its columns."""
    column = {"outbox": "topic = 'a.b'", "deliveries": "message_id = 'forged'"}.get(table, "source = 'forged'")
    return statement.format(table=table, column=column)


CHANGES = ["UPDATE {table} SET {column}", "DELETE FROM {table}", "TRUNCATE {table} CASCADE"]


# Settlements


def settle_as(
    connection: Connection[Any], claim: claims.Claim, token: UUID | None, *, disposition: str = "published"
) -> list[Any]:
    """Settles a claim's only message under a given token; returns what took effect."""
    [row] = claim.rows
    return connection.execute(
        "SELECT * FROM settle_deliveries('me', %(ids)s, %(subscriptions)s, %(operations)s::uuid[], %(tokens)s::uuid[],"
        " %(dispositions)s, %(message_ids)s, %(errors)s, %(delays)s::float[], %(suspect)s)",
        {
            "ids": [row.outbox_id],
            "subscriptions": [row.subscription],
            "operations": [row.operation_id],
            "tokens": [token],
            "dispositions": [disposition],
            "message_ids": ["m"],
            "errors": ["forged"],
            "delays": [0.0],
            "suspect": [False],
        },
    ).fetchall()


@pytest.mark.parametrize("disposition", ["published", "dead_lettered", "exhausted", "failed", "released"])
def test_nothing_is_settled_without_the_claims_token(app: Connection[Any], pending: UUID, disposition: str) -> None:
    claim = seeds.claim(app)
    for token in (uuid4(), None):
        assert settle_as(app, claim, token, disposition=disposition) == []
    row = seeds.deliveries(app)[pending]
    assert (row["state"], row["claim_token"], row["last_error"]) == ("in_flight", claim.token, None)
    assert seeds.failed_attempts(app) == []
    assert len(settle_as(app, claim, claim.token, disposition=disposition)) == 1


def test_an_unclaimed_delivery_cannot_be_settled(app: Connection[Any], pending: UUID) -> None:
    claim = seeds.claim(app)
    seeds.settle(app, claim, NotSent())
    for token in (claim.token, None):
        assert settle_as(app, claim, token) == []
    assert seeds.deliveries(app)[pending]["state"] == "pending"


def test_a_superseded_claim_changes_nothing(app: Connection[Any], pending: UUID) -> None:
    superseded = seeds.claim(app)
    seeds.pass_time(app)
    seeds.claim(app)  # This claim finds that the lease ran out.
    current = seeds.claim(app)
    assert seeds.settle(app, superseded, Accepted("late")) == []
    assert seeds.settle(app, current, Accepted("m")) == [pending]
    assert seeds.settle(app, current, Accepted("again")) == []
    assert seeds.deliveries(app)[pending]["message_id"] == "m"


# Immutability, even for the owner


@pytest.mark.parametrize("table", IMMUTABLE)
@pytest.mark.parametrize("statement", CHANGES)
def test_a_trigger_refuses_the_owners_changes_and_names_the_remedy(
    owner: Connection[Any], app: Connection[Any], stored: UUID, table: str, statement: str
) -> None:
    with pytest.raises(errors.RestrictViolation, match="refused: its rows are immutable") as refused:
        owner.execute(change(statement, table).encode())
    assert "A correction is a new event" in str(refused.value.diag.message_hint)
    assert seeds.counts(app) == (1, 1, 1)


@pytest.mark.parametrize("table", IMMUTABLE)
@pytest.mark.parametrize("statement", [CHANGES[0], CHANGES[2]])
def test_retention_may_delete_and_nothing_else(
    owner: Connection[Any], stored: UUID, table: str, statement: str
) -> None:
    with pytest.raises(errors.RestrictViolation):
        in_the_retention_step(owner, change(statement, table))


def test_permission_to_delete_ends_with_the_retention_step(
    owner: Connection[Any], app: Connection[Any], stored: UUID
) -> None:
    tables = ("deliveries", "outbox", "events", "raw_payloads")
    in_the_retention_step(owner, *(f"DELETE FROM {table}" for table in tables))
    assert seeds.counts(app) == (0, 0, 0)
    seeds.store(app, seeds.ticks(1))
    with pytest.raises(errors.RestrictViolation):
        owner.execute("DELETE FROM events")


def test_an_event_is_not_deleted_from_under_its_message(owner: Connection[Any], stored: UUID) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        in_the_retention_step(owner, "DELETE FROM events")


# For each CHECK, a row that only this CHECK refuses

SOUND: dict[str, dict[str, object]] = {
    "raw_payloads": {
        "id": TOKEN, "source": "fake", "fetched_at": seeds.FIRST_BAR, "trace_id": TOKEN, "payload_json": "{}",
    },
    "events": {
        "event_id": TOKEN, "event_type": "A_THING_HAPPENED", "source": "fake", "occurred_at": seeds.FIRST_BAR,
        "ingested_at": seeds.FIRST_BAR, "schema_version": 1, "trace_id": TOKEN, "payload_json": "{}",
    },
    "subscriptions": {"name": "detector", "topic": "market.ticks"},
    "operations": {"operation_id": TOKEN, "kind": "redrive", "filter": "{}", "requested_by": "kim"},
    "outbox": {
        "event_id": None, "topic": "a.b", "event_type": "A_THING_HAPPENED", "schema_version": 1, "trace_id": TOKEN,
        "payload_json": "{}",
    },
    "pending_deliveries": {"outbox_id": 99, "subscription": "detector"},
    "deliveries": {"outbox_id": 99, "subscription": "detector", "delivery_attempts": 1, "message_id": "m"},
    "dead_letters": {
        "outbox_id": 99, "subscription": "detector", "promised_at": seeds.FIRST_BAR, "delivery_attempts": 0,
        "reason": "no luck",
    },
    "consume_failures": {"subscription": "detector", "message_id": "m", "attempt": 1, "error": "e"},
    "delivery_failures": {
        "outbox_id": 99, "subscription": "detector", "attempt": 1, "claimed_by": "r", "error": "e",
    },
    "processed_events": {"consumer": "c", "event_id": TOKEN},
    "circuit_breakers": {"name": "q"},
    "relay_handover": {"token": TOKEN, "name": "r"},
    "flow_deltas": {"stage": "outbox", "name": "detector", "outcome": "published", "bucket": 0, "seconds": 0.001},
}  # fmt: skip
"""For each table, a row that it accepts."""
OF_QUEUE: dict[str, object] = {"kind": "consumer", "queue": "q", "message_id": "m", "body": b"{}"}
"""What makes a dead letter one that a consumer left."""
REFUSED: list[tuple[str, str, dict[str, object]]] = [
    ("raw_payloads", "raw_payloads_source_check", {"source": ""}),
    ("raw_payloads", "raw_payloads_entity_id_check", {"entity_id": ""}),
    ("raw_payloads", "raw_payloads_are_bounded", {"payload_json": f'"{"x" * 16 * 1024 * 1024}"'}),
    ("events", "events_event_type_check", {"event_type": "market_tick"}),
    ("events", "events_source_check", {"source": ""}),
    ("events", "events_entity_id_check", {"entity_id": ""}),
    ("events", "events_entity_type_check", {"entity_type": ""}),
    ("events", "events_revision_check", {"revision": -1}),
    ("events", "events_schema_version_check", {"schema_version": 0}),
    ("events", "events_payload_json_check", {"payload_json": "[]"}),
    ("subscriptions", "subscriptions_name_check", {"name": "Signal Lab"}),
    ("subscriptions", "subscriptions_topic_check", {"topic": "ticks"}),
    ("flow_deltas", "flow_deltas_n_check", {"n": 0}),
    ("flow_deltas", "flow_deltas_seconds_check", {"seconds": -1}),
    ("flow_deltas", "flow_deltas_are_measured_or_not", {"bucket": None}),
    ("operations", "operations_kind_check", {"kind": "repair"}),
    ("operations", "operations_filter_check", {"filter": "[]"}),
    ("operations", "operations_plan_check", {"plan": "[]"}),
    ("operations", "operations_progress_check", {"progress": "[]"}),
    ("operations", "operations_state_check", {"state": "begun"}),
    ("operations", "operations_rate_check", {"rate": 0}),
    ("operations", "operations_requested_by_check", {"requested_by": ""}),
    ("operations", "operations_subscription_check", {"subscription": "Signal Lab"}),
    ("operations", "operations_started_by_check", {"started_by": ""}),
    ("operations", "operations_failures_check", {"failures": -1}),
    ("operations", "operations_error_check", {"error": ""}),
    ("operations", "operations_planned_with_a_hash", {"state": "planned"}),
    ("operations", "operations_end_is_dated", {"state": "done"}),
    ("operations", "operations_failed_with_an_error", {"state": "failed", "finished_at": seeds.FIRST_BAR}),
    ("outbox", "outbox_topic_check", {"topic": "Market Ticks"}),
    ("outbox", "outbox_payload_json_check", {"payload_json": "[]"}),
    ("pending_deliveries", "pending_deliveries_subscription_check", {"subscription": ""}),
    ("pending_deliveries", "pending_deliveries_payload_bytes_check", {"payload_bytes": -1}),
    ("pending_deliveries", "pending_deliveries_delivery_attempts_check", {"delivery_attempts": -1}),
    ("pending_deliveries", "pending_deliveries_claim_is_whole", {"claim_token": TOKEN, "delivery_attempts": 1}),
    ("pending_deliveries", "pending_deliveries_claim_is_an_attempt", {"claim_token": TOKEN, "claimed_by": "r"}),
    ("deliveries", "deliveries_delivery_attempts_check", {"delivery_attempts": 0}),
    ("dead_letters", "dead_letters_delivery_attempts_check", {"delivery_attempts": -1}),
    ("dead_letters", "dead_letters_reason_check", {"reason": ""}),
    (
        "dead_letters",
        "dead_letters_resolution_check",
        {"resolution": "lost", "resolved_at": seeds.FIRST_BAR, "resolved_by": "kim"},
    ),
    (
        "dead_letters",
        "dead_letters_resolution_is_whole",
        {"resolution": "discarded", "resolved_at": seeds.FIRST_BAR, "resolved_because": "why"},
    ),
    (
        "dead_letters",
        "dead_letters_discarded_for_a_reason",
        {"resolution": "discarded", "resolved_at": seeds.FIRST_BAR, "resolved_by": "kim", "resolved_because": ""},
    ),
    ("dead_letters", "dead_letters_kind_check", OF_QUEUE | {"kind": "other"}),
    ("dead_letters", "dead_letters_queue_check", OF_QUEUE | {"queue": ""}),
    ("dead_letters", "dead_letters_message_id_check", OF_QUEUE | {"message_id": ""}),
    ("dead_letters", "dead_letters_body_check", OF_QUEUE | {"body": b"x" * (2**20 + 1)}),
    ("dead_letters", "dead_letters_attributes_check", OF_QUEUE | {"attributes": "[]"}),
    ("dead_letters", "dead_letters_of_a_delivery", {"promised_at": None}),
    ("dead_letters", "dead_letters_of_a_queue", OF_QUEUE | {"body": None}),
    ("dead_letters", "dead_letters_of_a_subscription", OF_QUEUE | {"subscription": None}),
    ("consume_failures", "consume_failures_subscription_check", {"subscription": ""}),
    ("consume_failures", "consume_failures_message_id_check", {"message_id": ""}),
    ("consume_failures", "consume_failures_attempt_check", {"attempt": -1}),
    ("consume_failures", "consume_failures_error_check", {"error": ""}),
    (
        "dead_letters",
        "dead_letters_redriven_by_an_operation",
        {"resolution": "redriven", "resolved_at": seeds.FIRST_BAR, "resolved_by": "kim"},
    ),
    ("delivery_failures", "delivery_failures_attempt_check", {"attempt": 0}),
    ("delivery_failures", "delivery_failures_error_check", {"error": ""}),
    ("processed_events", "processed_events_consumer_check", {"consumer": ""}),
    ("circuit_breakers", "circuit_breakers_name_check", {"name": ""}),
    ("circuit_breakers", "circuit_breakers_state_check", {"state": "ajar", "opened_at": seeds.FIRST_BAR}),
    ("circuit_breakers", "circuit_breakers_open_since", {"state": "open"}),
    (
        "circuit_breakers",
        "circuit_breakers_held_open",
        {"state": "half_open", "opened_at": seeds.FIRST_BAR, "held_by": "kim"},
    ),
    ("circuit_breakers", "circuit_breakers_reason_held", {"held_reason": "nobody's"}),
    (
        "circuit_breakers",
        "circuit_breakers_reason_held",
        {"state": "open", "opened_at": seeds.FIRST_BAR, "held_by": "kim", "held_reason": ""},
    ),
    ("circuit_breakers", "circuit_breakers_consecutive_failures_check", {"consecutive_failures": -1}),
    ("relay_handover", "relay_handover_only_one_check", {"only_one": False}),
    ("relay_handover", "relay_handover_name_check", {"name": ""}),
    *operating_guards.REFUSED,
]
"""Table, constraint, what is wrong with the row."""


@pytest.mark.parametrize(("table", "constraint", "wrong"), REFUSED, ids=[constraint for _, constraint, _ in REFUSED])
def test_a_row_that_makes_no_sense_is_refused(
    owner: Connection[Any], stored: UUID, table: str, constraint: str, wrong: dict[str, object]
) -> None:
    def insert(values: dict[str, object]) -> None:
        columns, places = ", ".join(values), ", ".join(["%s"] * len(values))
        owner.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})".encode(), list(values.values()))

    sound = (SOUND | operating_guards.SOUND)[table] | ({"event_id": stored} if table == "outbox" else {})
    with pytest.raises(errors.CheckViolation) as refused:
        insert(sound | wrong)
    assert refused.value.diag.constraint_name == constraint
    insert(sound)  # Without that flaw, the row would be accepted.


def test_every_check_refuses_its_row(app: Connection[Any]) -> None:
    checks = app.execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
    )
    assert {row[0] for row in checks} == {constraint for _, constraint, _ in (*REFUSED, *guards.REFUSED)}


# One message per event and topic, one delivery per message, subscription and operation


def test_an_event_is_one_message_per_topic(app: Connection[Any], stored: UUID) -> None:
    def promise(topic: str) -> None:
        app.execute(
            "INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
            " VALUES (%s, %s, 'A_THING_HAPPENED', 1, gen_random_uuid(), '{}')",
            [stored, topic],
        )

    with pytest.raises(errors.UniqueViolation):
        promise("market.ticks")
    promise("system.events")


@pytest.mark.parametrize("table", ["pending_deliveries", "deliveries", "dead_letters"])
def test_a_message_is_delivered_once_per_subscription_and_operation(owner: Connection[Any], table: str) -> None:
    def insert(subscription: str, operation_id: str | None) -> None:
        row = SOUND[table] | {"subscription": subscription, "operation_id": operation_id}
        columns, places = ", ".join(row), ", ".join(["%s"] * len(row))
        owner.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})".encode(), list(row.values()))

    insert("signal_lab", None)
    insert("detector", None)
    insert("signal_lab", TOKEN)
    for operation_id in (None, TOKEN):
        with pytest.raises(errors.UniqueViolation):
            insert("signal_lab", operation_id)


def test_a_message_needs_its_event(app: Connection[Any]) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        app.execute(
            "INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
            " VALUES (%s, 'a.b', 'A_THING_HAPPENED', 1, gen_random_uuid(), '{}')",
            [uuid4()],
        )


# The state that outbox_states derives


def test_a_delivery_that_was_never_tried_is_pending(app: Connection[Any], pending: UUID) -> None:
    assert seeds.deliveries(app)[pending]["state"] == "pending"


def test_a_claimed_delivery_is_in_flight_until_its_lease_ends(app: Connection[Any], pending: UUID) -> None:
    seeds.claim(app)
    row = seeds.deliveries(app)[pending]
    assert (row["state"], row["delivery_attempts"], row["claimed_by"]) == ("in_flight", 1, "relay-1")
    assert 0 < row["wait"] <= 30
    seeds.pass_time(app)
    assert seeds.deliveries(app)[pending]["state"] == "pending"


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Accepted("m-1"), "delivered"),
        (Failed("once more"), "retrying"),
        (QueueFault("throttled"), "retrying"),
        (NoVerdict("nonsense"), "retrying"),
        (NotSent(), "pending"),
        (MessageFault("too large"), "dead_lettered"),
    ],
)
def test_a_settled_delivery_is_in_the_state_of_its_outcome(
    app: Connection[Any], pending: UUID, outcome: Outcome, state: str
) -> None:
    seeds.settle(app, seeds.claim(app), outcome)
    assert seeds.deliveries(app)[pending]["state"] == state


def test_a_redriven_letter_and_its_successor_have_separate_states(
    app: Connection[Any], owner: Connection[Any], pending: UUID
) -> None:
    seeds.settle(app, seeds.claim(app), MessageFault("too large"))
    operation_id = redrive(owner, DeadLetterFilter(subscription="signal_lab"), requested_by="kim").operation_id
    with app.cursor(row_factory=dict_row) as cursor:
        states = cursor.execute(
            "SELECT operation_id, state, last_error FROM outbox_states ORDER BY operation_id NULLS FIRST"
        ).fetchall()
    assert states == [
        {"operation_id": None, "state": "redriven", "last_error": "too large"},
        {"operation_id": operation_id, "state": "pending", "last_error": None},
    ]


# What claim and settle read


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
def test_claim_and_settle_read_due_rows_alone(app: Connection[Any], owner: Connection[Any], plans: str) -> None:
    seeds.store_delivered(owner, 50_000)
    owner.execute(
        "INSERT INTO pending_deliveries (outbox_id, subscription, next_attempt_at)"
        " SELECT outbox_id, 'detector', now() + interval '1 hour' FROM deliveries"
    )
    seeds.store(app, seeds.ticks(50))
    owner.execute("ANALYZE")
    app.execute(f"SET plan_cache_mode = {plans}".encode())
    with app.transaction():
        claim = seeds.claim(app, rows=20)
        settled = seeds.settle(app, claim, Accepted("m"))
        read = app.execute(
            "SELECT relname, seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables"
            " WHERE relname IN ('pending_deliveries', 'outbox', 'deliveries')"
        ).fetchall()
    assert len(claim.rows) == len(settled) == 20
    assert {name: seq_scans for name, seq_scans, _ in read} == {"pending_deliveries": 0, "outbox": 0, "deliveries": 0}
    assert max(fetched for _, _, fetched in read) <= 100
