"""What each database role may do: exactly what its functions' statements do, and nothing that forges a record."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection, errors
from tests.conftest import MIGRATIONS, PASSWORD, ROLES, TEMPLATE, TestDatabase
from tests.conftest import _database as new_database
from tests.integration import seeds
from tests.integration.test_queries import QUERIES

from control_plane.model.lifecycle import Accepted
from control_plane.ops.migrations import migrate, read_migrations
from control_plane.ops.status import read_status
from control_plane.outbox import claims
from control_plane.platform.breakers import hold
from control_plane.platform.database import check_schema, connect
from local_cloud.postgres import PostgresServer

INGEST, RELAY, CONSUME, READER, MAINTAIN, DETECT, DECIDE, AGENT, GATEKEEPER, ACTION, COMMAND = ROLES
EVERYBODY = set(ROLES)
NOBODY: set[str] = set()

WHO_CONSUMES = {CONSUME, DETECT, DECIDE, AGENT, GATEKEEPER, ACTION}
READERS_OF_DECISIONS = {READER, DECIDE, GATEKEEPER, COMMAND}
READERS_OF_EVENTS = {READER, DECIDE, GATEKEEPER}
READERS_OF_THE_ACCOUNT = {READER, CONSUME, DECIDE, GATEKEEPER, ACTION}
READERS_OF_BARS = {READER, DETECT, DECIDE, GATEKEEPER, ACTION}


def _each(roles: set[str], package: str, names: str) -> dict[str, set[str]]:
    return {f"{package}.{name}": roles for name in names.split()}


_SHARED = {
    "control_plane.platform.session": EVERYBODY,
    "control_plane.platform.mend_session": EVERYBODY,
    "control_plane.platform.limit_statements": EVERYBODY,
    "control_plane.platform.session_role": EVERYBODY,
    "control_plane.ingestion.database_time": EVERYBODY,
    "control_plane.ingestion.lock_entities": EVERYBODY,
    "control_plane.ops.horizon_holder": EVERYBODY,
    **_each({AGENT}, "control_plane.decisions", "claim_call model_is_off answer_call"),
    **_each({COMMAND}, "control_plane.decisions", "answer_approval set_switch"),
    **_each(
        {GATEKEEPER},
        "control_plane.decisions",
        "lock_decision switched_off record_verdict ask_approval record_shadow_verdict",
    ),
    # The trigger says so: nobody releases what has no verdict, and this statement on no rows has none.
    "control_plane.decisions.release_action": NOBODY,
    **_each({DECIDE, GATEKEEPER}, "control_plane.decisions", "keep_artifact store_artifacts"),
    **_each({DECIDE, READER}, "control_plane.decisions", "has_timer budget_used"),
    **_each({READER}, "control_plane.decisions", "audited_rows audited_strays audited_anchors audited_budgets"),
    **_each(
        READERS_OF_DECISIONS,
        "control_plane.decisions",
        "decisions_of_anomaly decision_facts tree_of_steps verdict_exists judged_decision judged_steps "
        "judged_artifacts judged_without_shadow approval_of_action open_approval_requests approval_request switches "
        "recorded_requests count_verdicts approvals_waiting expired_actions decision audited_decisions audited_steps",
    ),
    "control_plane.decisions.list_decisions": READERS_OF_DECISIONS - {COMMAND},
    "control_plane.decisions.artifacts": {*READERS_OF_DECISIONS, ACTION},
    **_each(EVERYBODY, "control_plane.decisions", "limit_lock_waits clock lock_account lock_anomaly who_asks now"),
    **_each(EVERYBODY, "domains.finance.detector", "lock_entity clock"),
    **_each(READERS_OF_BARS, "domains.finance.detector", "bars_around first_bars_from actions_between market_at"),
    **_each({DETECT, READER}, "domains.finance.detector", "window told_between"),
    **_each(READERS_OF_BARS, "domains.finance.deciding", "bars_between horizon_end corporate_actions"),
    "domains.finance.deciding.bars_until": READERS_OF_BARS - {DETECT},
    "domains.finance.deciding.has_all_bars": READERS_OF_BARS,
    "domains.finance.deciding.bars_of_entity": READERS_OF_BARS,
    "domains.finance.deciding.lock_episodes": EVERYBODY,
    **_each(
        {*READERS_OF_EVENTS, DETECT}, "domains.finance.deciding", "newest_episodes stored_episodes nearest_episodes"
    ),
    **_each(READERS_OF_THE_ACCOUNT, "domains.finance.deciding", "paper_account paper_positions"),
    **_each(READERS_OF_THE_ACCOUNT, "domains.finance", "held_quantity judged_account"),
    "domains.finance.live_releases": READERS_OF_DECISIONS,
    **_each(READERS_OF_EVENTS, "domains.finance", "judged_bar judged_actions"),
    "control_plane.decisions.is_withdrawn": READERS_OF_EVENTS,
    "control_plane.decisions.overlooked_anomalies": {READER, DECIDE},
    "control_plane.decisions.untaken_calls": {READER, DECIDE, GATEKEEPER},
    "control_plane.decisions.stored_event": READERS_OF_EVENTS,
    "control_plane.platform.breakers": {INGEST, RELAY, READER, COMMAND},
    "control_plane.platform.oldest_pending_age": {RELAY, READER},
    "control_plane.platform.count_pending": {RELAY, READER},
    **_each({COMMAND}, "control_plane.platform", "hold_breaker resume_breaker forget_breaker"),
    **_each({INGEST, RELAY, COMMAND}, "control_plane.platform", "probe_breaker give_back_probe"),
    **_each({READER, COMMAND}, "control_plane.api", "use_token token tokens subscription subscriptions"),
    **_each({COMMAND}, "control_plane.api", "make_token revoke_token begin_change end_change"),
    **_each(READERS_OF_EVENTS, "control_plane.api", "events events_by_prefix"),
    "control_plane.api.event_states": {READER},
    "control_plane.api.anomalies": {DETECT, READER},
    "control_plane.api.artifact": {*READERS_OF_DECISIONS, ACTION},
    "control_plane.api.decisions_by_prefix": READERS_OF_DECISIONS - {COMMAND},
    "control_plane.api.decisions": READERS_OF_DECISIONS - {COMMAND},
    "control_plane.api.decisions_of_event": READERS_OF_DECISIONS - {COMMAND},
    "control_plane.api.deliveries_of_operation": {READER},
    **_each(READERS_OF_DECISIONS, "control_plane.api", "open_approvals approval switch shadow_counts shadow_pairs"),
    **_each({READER}, "control_plane.api", "audit"),
    "control_plane.flow.fold": {MAINTAIN},
    "control_plane.flow.now": EVERYBODY,
    "control_plane.flow.events": READERS_OF_EVENTS,
    "control_plane.flow.breakers": {INGEST, RELAY, READER, COMMAND},
    **_each({READER, COMMAND}, "control_plane.flow", "open_dead_letters newest_dead_letters"),
    "control_plane.flow.spending": {READER, DECIDE},
    "control_plane.flow.operations": {COMMAND, MAINTAIN, READER},
    **_each(READERS_OF_DECISIONS, "control_plane.flow", "open_decisions open_actions waiting_approvals switches_off"),
    "control_plane.ops.delete_kept_answers": {MAINTAIN},
    "control_plane.ingestion.newest_occurrence": {*READERS_OF_EVENTS, INGEST},
    "control_plane.ingestion.chain_heads": {INGEST, READER},
    "control_plane.ingestion.piece_of_file": {INGEST, READER},
    "control_plane.operations.backfill.pieces_of_file": {MAINTAIN, READER, INGEST},
    "control_plane.operations.backfill.keep_piece": {COMMAND},
    "control_plane.operations.backfill.forget_pieces": {MAINTAIN, COMMAND},
    "control_plane.operations.backfill.present": EVERYBODY,
    "control_plane.ingestion.raw_payloads_in_order": {READER},  # A person runs a rebuild, and it stores nothing.
    "control_plane.outbox.open_subscriptions": {RELAY, READER},
    "control_plane.outbox.settled_before": {RELAY, READER},
    "control_plane.outbox.is_current": {RELAY},
    "control_plane.ops.lingering_relay": {RELAY, READER},
    "control_plane.decisions.insert_decision_events": {DETECT, DECIDE, GATEKEEPER},
    "domains.finance.paper_account.fill_orders": {ACTION, CONSUME},
    **_each(READERS_OF_THE_ACCOUNT, "domains.finance.paper_account", "newest_bar account_currency audited_balances"),
    "domains.finance.paper_account.audited_orders": READERS_OF_EVENTS,
    "domains.finance.paper_account.released_action": {*READERS_OF_DECISIONS, ACTION},
    # Every consumer says why it failed; DeadLetterFunction alone stores what was given up on.
    "control_plane.consumers.record_failure": WHO_CONSUMES,
    "control_plane.consumers.store_dead_letters": {MAINTAIN},
    "control_plane.platform.count_open_dead_letters": {RELAY, READER, COMMAND},
    "control_plane.ops.discard_dead_letters": {COMMAND},
    **_each({READER, COMMAND}, "control_plane.ops", "count_dead_letters open_letters_of_queues select_dead_letters"),
    "control_plane.ops.dead_letter_content": {READER},
    **_each({MAINTAIN}, "control_plane.platform", "delete_expired count_expiring retention_waits_for"),
    "control_plane.platform.days_ago": EVERYBODY,
    **_each(
        {MAINTAIN},
        "control_plane.operations.history",
        "count_erasable erase_step finish_erasure plan_rebuild begin_rebuild rebuild_events compare_rebuild "
        "judge_rebuild swap_rebuild",
    ),
    **_each({COMMAND}, "control_plane.operations.history", "accept_rebuild end_rebuild"),
    "control_plane.operations.history.rebuild_state": {MAINTAIN, COMMAND, READER},
    "control_plane.platform.use_schemas": EVERYBODY,
    **_each({CONSUME, DETECT}, "control_plane.consumers", "is_rebuilding spoil_rebuild"),
    "domains.finance.forget": {MAINTAIN},
    "control_plane.decisions.audited_tombstones": {READER},
    **_each({READER, COMMAND, MAINTAIN}, "control_plane.ops", "count_stalled_operations active_operations"),
    "control_plane.ops.events_by_type": READERS_OF_EVENTS,
    **_each(
        {READER},
        "control_plane.tracing",
        "traced_events begin_traces due_traces advance_traces traces_behind",
    ),
    **_each(READERS_OF_EVENTS, "control_plane.tracing", "events_to_export traced_decisions"),
    "control_plane.ops.playbooks_of_open_decisions": READERS_OF_DECISIONS,
    **_each(
        {READER},
        "control_plane.ops",
        "event_timeline recent_messages deliveries_by_state stranded_deliveries processed_by_consumer dead_letters "
        "subscriptions unprocessed_deliveries",
    ),
}
_OPERATIONS = {
    **_each(
        {COMMAND},
        "control_plane.operations",
        "request_operation start_operation set_operation_rate withdraw_replay lock_operation pause_operation "
        "resume_operation cancel_operation",
    ),
    **_each(
        {COMMAND, MAINTAIN, READER},
        "control_plane.operations",
        "operation operations active_operations next_step_at count_operations",
    ),
    **_each(EVERYBODY, "control_plane.operations", "database_now oldest_writer queue_for_operation"),
    "control_plane.operations.newest_letter": {COMMAND, MAINTAIN, READER},
    **_each({COMMAND, MAINTAIN, READER}, "control_plane", "operations.subscriptions_of ops.subscriptions"),
    "control_plane.consumers.mark_replayed": {CONSUME},
}
_SHARED |= _OPERATIONS
_OF_PACKAGES = {
    "control_plane.flow": {READER},
    "control_plane.operations": {MAINTAIN},
    "control_plane.consumers": {CONSUME, DETECT, ACTION},
    "control_plane.ingestion": {INGEST},
    "control_plane.ops": NOBODY,  # These are run by people and MigrationFunction, as the owner.
    "control_plane.outbox": {RELAY},
    "control_plane.platform": {INGEST, RELAY},
    "domains.finance": {CONSUME},
    "domains.finance.paper_account": {ACTION},
    "control_plane.decisions": {DECIDE},
    "domains.finance.detector": {DETECT},
    "domains.finance.deciding": {DECIDE},
}


def allowed(name: str) -> set[str]:
    """Returns the roles that may execute a named query: those whose functions do, and the reader if it only reads."""
    return _SHARED[name] if name in _SHARED else _OF_PACKAGES[name.rpartition(".")[0]]


@pytest.fixture
def connections(database: TestDatabase) -> Iterator[dict[str, Connection[Any]]]:
    """An autocommit connection as each role."""
    opened = {role: connect(database.url(role), application_name="test") for role in ROLES}
    yield opened
    for connection in opened.values():
        connection.close()


@pytest.fixture
def stored(app: Connection[Any]) -> None:
    store_of_every_kind(app)


@dataclass(frozen=True)
class Shared:
    """One database for many tests that roll back whatever they may do, with a connection as each role."""

    connections: dict[str, Connection[Any]]
    owner: Connection[Any]


@pytest.fixture(scope="module")
def shared(postgres: PostgresServer) -> Iterator[Shared]:
    with contextmanager(new_database)(postgres, template=TEMPLATE) as database, ExitStack() as opened:
        with connect(database.app_url, application_name="test") as app:
            store_of_every_kind(app)
        yield Shared(
            {role: opened.enter_context(connect(database.url(role), application_name="test")) for role in ROLES},
            opened.enter_context(connect(database.owner_url, application_name="test")),
        )


def store_of_every_kind(app: Connection[Any]) -> None:
    """Stores a delivered message, a dead-lettered one with its failures, one in flight, and a pending one."""
    seeds.store(app, seeds.ticks(1))
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    seeds.store(app, [seeds.tick(1)])
    seeds.give_up(app)
    seeds.store(app, [seeds.tick(2)])
    seeds.claim(app)
    seeds.store(app, [seeds.tick(3)])
    app.execute("INSERT INTO processed_events (consumer, event_id) SELECT 'signal_lab', event_id FROM events LIMIT 1")
    hold(app, "signal_lab", by="Ada")


def snapshot(owner: Connection[Any]) -> dict[str, list[Any]]:
    """Returns all rows of the tables that record something."""
    tables = (
        "raw_payloads", "events", "outbox", "pending_deliveries", "deliveries", "dead_letters", "delivery_failures",
        "consume_failures",
        "processed_events", "operations", "subscriptions", "schema_migrations", "circuit_breakers", "relay_handover",
        "flow_deltas", "flow_minutes", "flow_totals",
    )  # fmt: skip
    return {
        table: owner.execute(f"SELECT to_jsonb(row)::text FROM {table} AS row ORDER BY 1".encode()).fetchall()
        for table in tables
    }


# What the functions do


def may_execute(connection: Connection[Any], name: str) -> bool:
    """Whether the role may execute a named query.

    The query is planned with the role's privileges and begins to run, on no rows.
    """
    query = QUERIES[name]
    connection.execute("DEALLOCATE ALL")  # A rollback keeps what was prepared.
    try:
        with connection.transaction(force_rollback=True):
            if query.sql.startswith("LOCK "):
                connection.execute(query.sql)
            else:
                names = seeds.prepare(connection, query)
                nulls = f"({', '.join(['NULL'] * len(names))})" if names else ""
                connection.execute(f"EXECUTE checked{nulls}".encode())
    except errors.InsufficientPrivilege:
        return False
    except psycopg.Error:
        return True  # It is permitted, and then refused for its nulls.
    return True


@pytest.mark.parametrize("name", QUERIES)
def test_a_named_query_is_for_its_functions_roles_alone(shared: Shared, name: str) -> None:
    assert {role for role, connection in shared.connections.items() if may_execute(connection, name)} == allowed(name)


# What no function does

COLUMNS = "event_type, schema_version, trace_id, payload_json"


@dataclass(frozen=True)
class Statement:
    """One statement, and the roles that may execute it."""

    sql: str
    roles: frozenset[str] = frozenset()


def only(sql: str, *roles: str) -> Statement:
    return Statement(sql, frozenset(roles))


TABLES = {
    # For each table: who may read all of it, insert, update, delete.
    "raw_payloads": {READER},
    "events": {READER, DECIDE, GATEKEEPER},
    "outbox": {READER},
    "deliveries": {READER},
    "dead_letters": {READER, COMMAND},
    "consume_failures": {READER},
    "delivery_failures": {READER},
    "operations": {READER, COMMAND, MAINTAIN},
    "operation_items": {READER, MAINTAIN},
    "forgotten_processing": {READER},
    "subscriptions": {READER, COMMAND},
    "delivery_states": {READER},
    "outbox_states": {READER},
    "repeated_looks": {READER, INGEST},
    "circuit_breakers": {READER, INGEST, RELAY, COMMAND},
    "backfill_pieces": {READER, INGEST},
    "trace_cursor": {READER},
    "waiting_traces": {READER},
    "signal_lab_bars": {READER, CONSUME, ACTION, DECIDE, GATEKEEPER},
    "signal_lab_latest_prices": {READER, CONSUME},
    "signal_lab_returns": {READER},
    "signal_lab_risk": {READER},
    "schema_migrations": EVERYBODY,
    "pending_deliveries": NOBODY,  # Nobody may read a claim's token.
    "relay_handover": {RELAY},
    "processed_events": {READER},
    "artifacts": {READER, DECIDE, GATEKEEPER, COMMAND},
    "decisions": {READER, DECIDE, GATEKEEPER, COMMAND},
    "decision_steps": {READER, DECIDE, GATEKEEPER, COMMAND},
    "agent_calls": {READER, DECIDE, GATEKEEPER},
    "budgets": {READER, DECIDE},
    "budget_reservations": {READER},
    "verdicts": {READER, DECIDE, GATEKEEPER, COMMAND},
    "approval_requests": {READER, DECIDE, GATEKEEPER, COMMAND},
    "approvals": {READER, DECIDE, GATEKEEPER, COMMAND},
    "switches": {READER, DECIDE, GATEKEEPER, COMMAND},
    "switch_changes": {READER, COMMAND},
    "switch_lock": NOBODY,
    "api_tokens": NOBODY,  # Nobody may read a token's digest.
    "api_audit": {READER},
    "idempotency_keys": NOBODY,
    "actions": {READER, DECIDE, GATEKEEPER, ACTION, COMMAND},
    "executions": {READER, DECIDE, GATEKEEPER, ACTION, COMMAND},
    "outcomes": {READER, DECIDE},
    "agent_scores": {READER, DECIDE},
    "timers": {READER, DECIDE},
    "anchors": {READER},
    "detector_bars": READERS_OF_BARS,
    "detector_findings": {DETECT, READER},
    "detector_told": {DETECT, READER},
    "detector_anomalies": READERS_OF_BARS - {DETECT},
    "detector_corporate_actions": READERS_OF_BARS,
    "detector_market": READERS_OF_BARS,
    "episodes": {*READERS_OF_EVENTS, DETECT},
    "signal_lab_corporate_actions": {READER, CONSUME},
    "signal_lab_adjustments": {READER},
    "paper_accounts": READERS_OF_THE_ACCOUNT,
    "paper_positions": READERS_OF_THE_ACCOUNT,
    "paper_orders": READERS_OF_THE_ACCOUNT,
    "decision_tombstones": {READER},
    "removed_spending": {READER},
    "erasures": {READER},
    "rebuilds": {READER, MAINTAIN, COMMAND},
    "rebuildable": {READER},
    "flow_deltas": {READER},
    "flow_minutes": {READER},
    "flow_totals": {READER},
    "flow_counts": {READER},
    "expirable_decisions": NOBODY,
    "expirable_events": NOBODY,
    "expirable_raw_payloads": NOBODY,
    "expirable_processed_events": NOBODY,
    "expirable_delivery_failures": NOBODY,
    "expirable_dead_letters": NOBODY,
}
VIEWS = {
    "delivery_states", "outbox_states", "signal_lab_returns", "signal_lab_risk", "signal_lab_adjustments",
    "detector_market", "detector_anomalies", "expirable_decisions", "expirable_events", "expirable_raw_payloads",
    "expirable_processed_events", "expirable_delivery_failures", "expirable_dead_letters", "flow_counts",
}  # fmt: skip
DATA = [name for name in TABLES if name not in VIEWS]

READS = [only(f"SELECT * FROM {table}", *roles) for table, roles in TABLES.items()] + [
    only("SELECT claim_token FROM pending_deliveries"),
    only("SELECT outbox_id, last_error FROM pending_deliveries", READER),
    only("SELECT token FROM relay_handover", RELAY),
    only("SELECT payload_json FROM outbox", READER),
    only("SELECT payload_json FROM events", *READERS_OF_EVENTS),
    only("SELECT consumer FROM processed_events", READER, DECIDE),
    only("SELECT rolpassword FROM pg_authid"),
    only("SELECT * FROM pg_read_file('postgresql.conf')"),
]

DELETERS = {
    "relay_handover": {RELAY},
    "detector_findings": {DETECT},
    "operation_items": {MAINTAIN},
    "circuit_breakers": {COMMAND},
}
DELETES = [only(f"DELETE FROM {table}", *DELETERS.get(table, NOBODY)) for table in DATA] + [
    only(f"TRUNCATE {table} CASCADE") for table in DATA
]

FORGERIES = [
    # Traces that nobody exports: the cursor moves by its function alone
    only("INSERT INTO trace_cursor (stored_by, seq) VALUES ('9', 9)"),
    only("UPDATE trace_cursor SET seq = seq + 1"),
    only("INSERT INTO waiting_traces (kind, id) VALUES ('event', gen_random_uuid())"),
    only("UPDATE waiting_traces SET look_at = 'infinity'"),
    only("SELECT * FROM begin_traces(false)", READER),
    only("SELECT advance_traces('1'::xid8, 0, '1'::xid8, 0, '{}', '{}', '{}', '{}')", READER),
    # Delivered without a claim
    only("INSERT INTO deliveries (outbox_id, subscription, delivery_attempts, message_id) VALUES (4, 'x', 1, 'm')"),
    only("UPDATE deliveries SET message_id = 'forged'"),
    only("UPDATE deliveries SET delivered_at = now()"),
    only("UPDATE pending_deliveries SET claim_token = gen_random_uuid(), claimed_by = 'me', delivery_attempts = 1"),
    only("UPDATE pending_deliveries SET claim_token = NULL, claimed_by = NULL"),
    only("UPDATE pending_deliveries SET delivery_attempts = 99"),
    only("UPDATE pending_deliveries SET delivery_attempts = 0"),
    only("UPDATE pending_deliveries SET next_attempt_at = 'infinity'"),
    only("UPDATE pending_deliveries SET next_attempt_at = now()"),
    only("UPDATE pending_deliveries SET last_error = 'forged'"),
    only("UPDATE pending_deliveries SET suspect_since = now()"),
    only("UPDATE pending_deliveries SET subscription = 'x'"),
    only("UPDATE pending_deliveries SET outbox_id = 1"),
    only("UPDATE pending_deliveries SET promised_at = now()"),
    only("UPDATE pending_deliveries SET operation_id = gen_random_uuid()"),
    only("SELECT FROM pending_deliveries FOR UPDATE"),
    # Opening a delivery again, or promising a message to another subscription
    only("INSERT INTO pending_deliveries (outbox_id, subscription) VALUES (1, 'signal_lab')"),
    only("INSERT INTO pending_deliveries (outbox_id, subscription, payload_bytes) VALUES (1, 'x', 1)"),
    only("INSERT INTO pending_deliveries (outbox_id, subscription, operation_id) VALUES (1, 'x', gen_random_uuid())"),
    only("INSERT INTO pending_deliveries (outbox_id, subscription, promised_at) VALUES (1, 'x', now())"),
    only("INSERT INTO subscriptions (name, topic) VALUES ('mine', 'market.ticks')"),
    only("UPDATE subscriptions SET removed_at = now()"),
    only("UPDATE subscriptions SET topic = 'system.events'"),
    # Messages that differ from their event
    only(f"INSERT INTO outbox (event_id, topic, {COLUMNS}) SELECT event_id, 'a.b', {COLUMNS} FROM events"),
    only("INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
         " SELECT event_id, 'system.events', 'FORGED', 9, gen_random_uuid(), '{}' FROM events LIMIT 1"),
    only("UPDATE outbox SET payload_json = '{}'"),
    only("UPDATE outbox SET topic = 'a.b'"),
    only("INSERT INTO events (event_id, event_type, source, occurred_at, ingested_at, schema_version, trace_id,"
         " payload_json) VALUES (gen_random_uuid(), 'FORGED', 'x', now(), now(), 1, gen_random_uuid(), '{}')"),
    only("UPDATE events SET occurred_at = now()"),
    only("UPDATE events SET payload_json = '{}'"),
    only("SELECT event_id FROM events FOR UPDATE"),
    only("INSERT INTO raw_payloads (id, seq, source, trace_id, payload_json) OVERRIDING SYSTEM VALUE"
         " VALUES (gen_random_uuid(), 1, 'x', gen_random_uuid(), '{}')"),
    only("INSERT INTO raw_payloads (id, source, trace_id, payload_json)"
         " VALUES (gen_random_uuid(), 'x', gen_random_uuid(), '{}')", INGEST),
    only("UPDATE raw_payloads SET payload_json = '{}'"),
    only("INSERT INTO repeated_looks (entity_id, source, event_type, series, occurred_at, observed_at)"
         " VALUES ('A', 'x', 'X', '', now(), now())", INGEST),
    only("UPDATE repeated_looks SET observed_at = now()", INGEST),
    only("UPDATE repeated_looks SET source = 'forged'"),
    # Records of dead letters, failures and processing
    only("INSERT INTO dead_letters (outbox_id, subscription, promised_at, delivery_attempts, reason)"
         " VALUES (4, 'signal_lab', now(), 1, 'forged')"),
    only("UPDATE dead_letters SET resolution = 'discarded', resolved_at = now(), resolved_by = 'me'"),
    only("UPDATE dead_letters SET reason = 'forged'"),
    only("INSERT INTO delivery_failures (outbox_id, subscription, attempt, claimed_by, error)"
         " VALUES (4, 'signal_lab', 1, 'relay', 'forged')"),
    only("UPDATE delivery_failures SET error = 'forged'"),
    only("INSERT INTO processed_events (consumer, event_id) VALUES ('x', gen_random_uuid())", CONSUME, DETECT, ACTION),
    only("INSERT INTO processed_events (consumer, event_id, processed_at) VALUES ('x', gen_random_uuid(), now())"),
    only("UPDATE processed_events SET consumer = 'x'"),
    only("UPDATE processed_events SET processed_at = now()"),
    only("INSERT INTO operations (operation_id, kind, filter, state, requested_by)"
         " VALUES (gen_random_uuid(), 'redrive', '{}', 'done', 'me')"),
    only("UPDATE operations SET requested_by = 'me'"),
    only("INSERT INTO schema_migrations VALUES (99, 'x', 'x')"),
    only("UPDATE schema_migrations SET version = 99"),
    # People's holds
    only("UPDATE circuit_breakers SET held_by = NULL", COMMAND),
    only("UPDATE circuit_breakers SET held_reason = 'forged'", COMMAND),
    only("UPDATE circuit_breakers SET held_by = 'me', state = 'open', opened_at = now()", COMMAND),
    only("INSERT INTO circuit_breakers (name, state, opened_at, held_by) VALUES ('x', 'open', now(), 'me')", COMMAND),
    only("UPDATE circuit_breakers SET name = 'x'"),
    only("UPDATE circuit_breakers SET guarded_at = now()", INGEST, RELAY),
    # Tokens, the audit and kept answers: by the owner's functions alone
    only("INSERT INTO api_tokens (name, sha256, scopes, created_by)"
         " VALUES ('x', decode(repeat('00', 32), 'hex'), '{admin}', 'x')"),
    only("UPDATE api_tokens SET scopes = '{admin}'"),
    only("UPDATE api_tokens SET last_used_at = now()"),
    only("SELECT sha256 FROM api_tokens"),
    only("SELECT name, scopes, last_used_at FROM api_tokens", READER, COMMAND),
    only("INSERT INTO api_audit (token, address, agent, route, reason, idempotency_key, status)"
         " VALUES ('x', '', '', 'x', '', '', 200)"),
    only("UPDATE api_audit SET token = 'x'"),
    only("INSERT INTO idempotency_keys (token, key, request_sha256)"
         " VALUES ('x', 'x', decode(repeat('00', 32), 'hex'))"),
    only("UPDATE idempotency_keys SET body = '{}'"),
    only("SELECT * FROM use_api_token('x')", READER, COMMAND),
    only("SELECT make_api_token('root', 'x', decode(repeat('00', 32), 'hex'), '{read}', NULL)", COMMAND),
    only("SELECT revoke_api_token('root', 'x')", COMMAND),
    only("SELECT * FROM begin_api_change('root', 'x', decode(repeat('00', 32), 'hex'))", COMMAND),
    only("SELECT end_api_change('root', 'x', '', '', 'x', '', NULL, NULL, 200, NULL)", COMMAND),
    only("SELECT delete_kept_answers(1)", MAINTAIN),
    only("SELECT check_is_api()"),
    only("SELECT who_commands('root', 'approve')"),
    # Effects
    only("UPDATE signal_lab_bars SET price = 1", CONSUME),
    only("UPDATE signal_lab_latest_prices SET price = 1", CONSUME),
    only("INSERT INTO relay_handover (token, name) VALUES (gen_random_uuid(), 'me')", RELAY),
    only("UPDATE relay_handover SET name = 'me'", RELAY),
    # Decisions: no step, call, verdict, approval, switch or execution but by the owner's functions
    only("UPDATE decisions SET state = 'released'"),
    only("UPDATE decisions SET deadline = 'infinity'"),
    only("UPDATE decisions SET head_hash = ''"),
    only("UPDATE decisions SET is_shadow = false"),
    only("INSERT INTO decision_steps (decision_id, seq, kind, author, at, body, prev_hash, hash)"
         " VALUES (gen_random_uuid(), 0, 'opened', 'engine', now(), '{}', '', '')"),
    only("UPDATE decision_steps SET body = '{}'"),
    only("INSERT INTO agent_calls (call_id, decision_id, step_seq, agent, agent_version, attempt, request_sha256,"
         " deadline)"
         " VALUES (gen_random_uuid(), gen_random_uuid(), 0, 'x', '1', 1, '', now())"),
    only("UPDATE agent_calls SET outcome = 'answered', ended_at = now()"),
    only("UPDATE budgets SET limit_micros = 1"),
    only("INSERT INTO budgets (scope, day, limit_micros) VALUES ('all', now(), 1)"),
    only("DELETE FROM budget_reservations"),
    only("INSERT INTO verdicts (verdict_id, decision_id, proposal_seq, verdict, is_shadow, reasons, errors)"
         " VALUES (gen_random_uuid(), gen_random_uuid(), 0, 'refused', false, '[]', '[]')"),
    only("UPDATE verdicts SET verdict = 'permitted'"),
    only("INSERT INTO approval_requests (approval_id, decision_id, action_sha256, expires_at, proposed_by, shown)"
         " VALUES (gen_random_uuid(), gen_random_uuid(), '', 'infinity', 'x', 'x')"),
    only("INSERT INTO approvals (approval_id, decision_id, action_sha256, is_given, decided_by, expires_at)"
         " VALUES (gen_random_uuid(), gen_random_uuid(), '', true, 'kim', 'infinity')"),
    only("UPDATE approvals SET is_given = true"),
    only("INSERT INTO switches (scope, is_off, set_by) VALUES ('all', false, 'x')"),
    only("UPDATE switches SET is_off = false"),
    only("DELETE FROM switches"),
    only("INSERT INTO switch_changes (scope, is_off, set_by, reason) VALUES ('all', false, 'x', '')"),
    only("SELECT FROM switch_lock FOR UPDATE"),
    only("INSERT INTO actions (action_id, decision_id, idempotency_key, domain, action_type, account,"
         " action_sha256, verdict_id, event_id, released_at, expires_at) VALUES (gen_random_uuid(),"
         " gen_random_uuid(), 'x', 'x', 'x', 'x', '', gen_random_uuid(), gen_random_uuid(), now(), 'infinity')"),
    only("UPDATE actions SET expires_at = 'infinity'"),
    only("INSERT INTO executions (action_id, outcome) VALUES (gen_random_uuid(), 'executed')"),
    only("UPDATE executions SET outcome = 'failed'"),
    only("INSERT INTO anchors (prev_root, heads, root) VALUES ('', 'x', '')"),
    only("INSERT INTO timers (decision_id, kind, due_at) VALUES (gen_random_uuid(), 'retry', now())"),
    only("UPDATE timers SET fired_at = now()"),
    only("UPDATE artifacts SET kind = 'x'"),
    only("INSERT INTO artifacts (sha256, kind, bytes) VALUES (sha256('x'), 'x', 'x')", DECIDE, GATEKEEPER),
    only("UPDATE outcomes SET observed = '{}'"),
    only("UPDATE agent_scores SET brier = 0"),
    only("UPDATE episodes SET entity_id = 'x'"),
    # What the detector keeps
    only("UPDATE detector_findings SET entity_id = 'x'", DETECT),
    only("UPDATE detector_told SET entity_id = 'x'", DETECT),
    only("UPDATE detector_bars SET entity_id = 'x'", DETECT),
    only("UPDATE detector_corporate_actions SET entity_id = 'x'", DETECT),
    only("UPDATE signal_lab_corporate_actions SET entity_id = 'x'", CONSUME),
    # The paper account
    only("UPDATE paper_accounts SET cash_micros = 1", ACTION, CONSUME),
    only("UPDATE paper_accounts SET opening_cash_micros = 1"),
    only("UPDATE paper_positions SET quantity_micros = 1", ACTION, CONSUME),
    only("UPDATE paper_orders SET quantity_micros = 1"),
    only("UPDATE paper_orders SET side = 'buy'"),
    only("DELETE FROM paper_orders"),
    # The owner's functions
    only("SELECT * FROM write_events('[]')"),
    only("SELECT * FROM insert_decision_events('[]')", DETECT, DECIDE, GATEKEEPER),
    only("SELECT * FROM write_decision_events('[]')"),
    only("SELECT open_decision(gen_random_uuid(), 'd', 'p', '1', '', 'k', 's', 'e', '', now(), gen_random_uuid(),"
         " gen_random_uuid(), false, now(), 0)", DECIDE),
    only("SELECT advance_decision(gen_random_uuid(), 1, 'note', NULL, '{}', NULL, NULL, NULL, 30)", DECIDE),
    only("SELECT set_timer(gen_random_uuid(), 1, 'retry', now())", DECIDE),
    only("SELECT intend_call(gen_random_uuid(), 1, gen_random_uuid(), 0, 'a', '1', 1, '', 0, now(), 'all', 0)", DECIDE),
    only("SELECT end_lost_calls(gen_random_uuid(), 1)", DECIDE),
    only("SELECT record_verdict(gen_random_uuid(), gen_random_uuid(), 0, NULL, 'refused', false, NULL, NULL,"
         " NULL, NULL, '[]', '[]')", GATEKEEPER),
    only("SELECT record_shadow_verdict(gen_random_uuid(), NULL, NULL, 'refused', 'refused', '[]', '[]')", GATEKEEPER),
    only("SELECT set_switch('all', true, '', '{}')", COMMAND),
    only("SELECT record_execution(gen_random_uuid(), 'failed', '', '{}', '{}')", ACTION),
    only("SELECT check_fence(gen_random_uuid(), 1)"),
    only("SELECT step_hash('', gen_random_uuid(), 0, NULL, 'x', 'x', now(), NULL, NULL, 0, '')"),
    only("SELECT as_body('{}')"),
    only("SELECT state_may_follow('opened', 'gathering')"),
    only("SELECT append_step(gen_random_uuid(), 'x', 'x', NULL, '{}')"),
    only("SELECT claim_decision(gen_random_uuid(), 'me', 30)", DECIDE),
    only("SELECT leave_decision(gen_random_uuid(), 1, 1)", DECIDE),
    only("SELECT end_call(gen_random_uuid(), 'failed', 'x', NULL, NULL, 0, 0, 0, NULL)"),
    only("SELECT settle_reservation(gen_random_uuid(), 0, NULL, now())"),
    only("SELECT lock_decision(gen_random_uuid())", GATEKEEPER),
    only("SELECT join_decision(gen_random_uuid(), gen_random_uuid(), false, '{}')", DECIDE),
    only("SELECT * FROM claim_call(gen_random_uuid(), 'me', 30)", AGENT),
    only("SELECT answer_call(gen_random_uuid(), 1, 'failed', NULL, NULL, 0, 0, 0, NULL, '{}')", AGENT),
    only("SELECT model_is_off('x')", AGENT),
    only("SELECT switched_off(gen_random_uuid(), 'x')", GATEKEEPER),
    only("SELECT ask_approval(gen_random_uuid(), gen_random_uuid(), '', now(), 'x')", GATEKEEPER),
    only("SELECT answer_approval(gen_random_uuid(), '', true, '', '{}')", COMMAND),
    only("SELECT begin_execution(gen_random_uuid())", ACTION),
    only("SELECT dismiss_anomaly(gen_random_uuid())", DECIDE),
    only("SELECT * FROM fire_timers(1)", DECIDE),
    only("SELECT expire_action(gen_random_uuid(), '', '{}')", DECIDE),
    only("SELECT * FROM anchor_heads(1)", DECIDE),
    only("SELECT * FROM insert_events('[]')", INGEST),
    only("SELECT * FROM claim_deliveries(gen_random_uuid(), 'me', '{}', '{}', '{}', '{}', '{}', 30, 5, 4, 'x')", RELAY),
    only("SELECT * FROM settle_deliveries('me', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')", RELAY),
    only("SELECT others_were_delivered(1, 'signal_lab', gen_random_uuid())", RELAY),
    only("SELECT record_consume_failure('x', 'm', NULL, NULL, 1, 'e')", *WHO_CONSUMES),
    only("INSERT INTO consume_failures (subscription, message_id, attempt, error) VALUES ('x', 'm', 1, 'e')"),
    only("SELECT * FROM store_dead_letters('[]')", MAINTAIN),
    only("SELECT json_of('{}')"),
    only("SELECT * FROM discard_dead_letters('{}', 'why', 'root', '{}')", COMMAND),
    # What leaves the record
    only("SELECT delete_expired('events', now() - interval '30 days', 1)", MAINTAIN),
    only("SELECT retention_waits_for()", MAINTAIN),
    only("SELECT * FROM count_expiring('events', now() - interval '30 days', '-infinity', '', 1)", MAINTAIN),
    only("SELECT * FROM count_erasable(gen_random_uuid())", MAINTAIN),
    only("SELECT * FROM erase_step(gen_random_uuid(), 1)", MAINTAIN),
    only("SELECT finish_erasure(gen_random_uuid(), '{}')", MAINTAIN),
    only("SELECT forget_finance(gen_random_uuid(), '{}')", MAINTAIN),
    only("SELECT erased_places('{}', '{}', '{}', '{}', '{}')", INGEST),
    only("SELECT check_retention(now(), 1)"),
    only("SELECT remove_events('{}', true)"),
    only("SELECT remove_decisions('{}', 'retention', NULL)"),
    only("SELECT expiring('events', now(), now(), '', 1)"),
    only("SELECT scrub_erased(gen_random_uuid(), '{}')"),
    only("SELECT erasure_key('x', 'x', NULL, NULL, NULL)"),
    only("SELECT is_erased('x', 'x', NULL, NULL, NULL)"),
    only("SELECT erasure_filter(gen_random_uuid(), '{}')"),
    only("SELECT erasable_events('{}', now(), 1)"),
    only("SELECT erasable_decisions('{}', now(), 1)"),
    only("INSERT INTO erasures (operation_id, about, key_sha256, is_refused, requested_by)"
         " VALUES (gen_random_uuid(), 'entity', '', true, 'me')"),
    only("UPDATE erasures SET is_refused = false"),
    only("INSERT INTO decision_tombstones (decision_id, head_seq, head_hash, cause)"
         " VALUES (gen_random_uuid(), 1, '', 'retention')"),
    only("UPDATE decision_tombstones SET head_hash = ''"),
    only("UPDATE removed_spending SET spent_micros = 0"),
    # What is made again
    only("SELECT is_rebuilding('signal_lab')", CONSUME, DETECT),
    only("SELECT spoil_rebuild('signal_lab', 'x')", CONSUME, DETECT),
    only("SELECT plan_rebuild('signal_lab')", MAINTAIN),
    only("SELECT begin_rebuild(gen_random_uuid())", MAINTAIN),
    only("SELECT rebuild_events(gen_random_uuid(), 'a.b', '{}', 0, 1)", MAINTAIN),
    only("SELECT compare_rebuild(gen_random_uuid())", MAINTAIN),
    only("SELECT judge_rebuild(gen_random_uuid(), true)", MAINTAIN),
    only("SELECT swap_rebuild(gen_random_uuid())", MAINTAIN),
    only("SELECT accept_rebuild(gen_random_uuid(), 'root')", COMMAND),
    only("SELECT end_rebuild(gen_random_uuid())", COMMAND),
    only("SELECT lock_rebuild(gen_random_uuid())"),
    only("INSERT INTO rebuilds (consumer, operation_id, until_seq) VALUES ('x', gen_random_uuid(), 1)"),
    only("UPDATE rebuilds SET is_equal = true"),
    only("INSERT INTO rebuildable (table_name, consumer) VALUES ('events', 'x')"),
    only("CREATE TABLE shadow.mine (id integer)"),
    only("CREATE TABLE retired.mine (id integer)"),
    only("SELECT refuse_message('x', 'check_violation')"),
    only("SELECT * FROM insert_unpromised_events('[]')", INGEST),
    only("SELECT keep_backfill_piece(repeat('a', 64), 1, encode(sha256('[1]'), 'hex'), 1, '[1]')", COMMAND),
    only("SELECT forget_backfill_pieces(repeat('a', 64))", COMMAND, MAINTAIN),
    only("SELECT delivered_since('signal_lab', now())"),
    # Operations: people command them, the engine makes their steps, and the owner's functions do what they are for
    only("INSERT INTO operations (operation_id, kind, filter, requested_by)"
         " VALUES (gen_random_uuid(), 'redrive', '{}', 'me')"),
    only("INSERT INTO operations (operation_id, kind, filter, requested_by, plan_hash)"
         " VALUES (gen_random_uuid(), 'redrive', '{}', 'me', 'x')"),
    only("UPDATE operations SET plan = '{}'", MAINTAIN),
    only("UPDATE operations SET plan_hash = 'x'", MAINTAIN),
    only("UPDATE operations SET started_by = 'me'"),
    only("UPDATE operations SET state = 'running'", MAINTAIN),
    only("UPDATE operations SET rate = 1"),
    only("UPDATE operations SET reason = 'forged'"),
    only("SELECT request_operation(gen_random_uuid(), 'redrive', '', '{}', NULL, 'root', 'why')", COMMAND),
    only("SELECT lock_operation(gen_random_uuid())", COMMAND),
    only("SELECT start_operation(gen_random_uuid(), 'x', 'root', 'why', NULL)", COMMAND),
    only("SELECT pause_operation(gen_random_uuid(), 'root')", COMMAND),
    only("SELECT resume_operation(gen_random_uuid(), 'root')", COMMAND),
    only("SELECT set_operation_rate(gen_random_uuid(), 'root', 1)", COMMAND),
    only("SELECT cancel_operation(gen_random_uuid(), 'root', 0)", COMMAND),
    only("SELECT is_stalled(operation) FROM operations AS operation", COMMAND, MAINTAIN, READER),
    only("SELECT who_operates('root', 'redrive')"),
    only("SELECT check_command(gen_random_uuid(), 'root', '{planned}')"),
    only("UPDATE operations SET filter = '{}'"),
    only("UPDATE operations SET kind = 'retention'"),
    only("DELETE FROM operations"),
    only("INSERT INTO operation_items (operation_id, item) VALUES (gen_random_uuid(), 1)"),
    only("SELECT lock_operation_at_work(gen_random_uuid(), 'replay', 'running')"),
    only("SELECT * FROM freeze_letters(gen_random_uuid(), 0, 1, 1)", MAINTAIN),
    only("SELECT * FROM redrive_letters(gen_random_uuid(), 1, 0)", MAINTAIN),
    only("SELECT * FROM messages_in_window('{}', '{}', 0, 1)"),
    only("SELECT * FROM freeze_window('market.ticks')", MAINTAIN),
    only("SELECT processed_since('signal_lab')", MAINTAIN),
    only("DELETE FROM forgotten_processing"),
    only("SELECT * FROM plan_replay(gen_random_uuid(), 0, 1, 1)", MAINTAIN),
    only("SELECT * FROM promise_replay(gen_random_uuid(), 0, 1, 1, now(), 1)", MAINTAIN),
    only("SELECT withdraw_replay(gen_random_uuid())", COMMAND),
    only("INSERT INTO processed_events (consumer, event_id, operation_id)"
         " VALUES ('x', gen_random_uuid(), gen_random_uuid())", CONSUME),
    # Counting what did not happen; a consumer and ingestion count what is theirs, one after the other
    only("INSERT INTO flow_deltas (stage, name, outcome) VALUES ('outbox', 'x', 'published')"),
    only("UPDATE flow_deltas SET n = 0"),
    only("INSERT INTO flow_minutes (minute, stage, name, outcome, n) VALUES (now(), 'outbox', 'x', 'published', 1)"),
    only("UPDATE flow_minutes SET n = 0"),
    only("INSERT INTO flow_totals (stage, name, outcome, n, newest_at) VALUES ('outbox', 'x', 'published', 1, now())"),
    only("UPDATE flow_totals SET n = 0"),
    only("SELECT count_consumed('x', gen_random_uuid(), true, false)", CONSUME, DETECT, ACTION),
    only("SELECT count_fetches('x', 1, 1)", INGEST),
    only("SELECT fold_flow(1)", MAINTAIN),
    only("SELECT flow_bounds()", READER),
    only("SELECT flow_bucket(1)"),
]  # fmt: skip

POWERS = [
    only("CREATE TABLE mine (id integer)"),
    only("CREATE SCHEMA mine"),
    only("CREATE VIEW mine AS SELECT 1"),
    only("CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'"),
    only("CREATE ROLE mine"),
    only("ALTER TABLE events ADD COLUMN mine integer"),
    only("ALTER TABLE events DISABLE TRIGGER events_are_immutable"),
    only("ALTER TABLE events OWNER TO CURRENT_USER"),
    only("ALTER FUNCTION settle_deliveries SECURITY INVOKER"),
    only("CREATE INDEX mine ON events (source)"),
    only("DROP TABLE outbox"),
    only("DROP TRIGGER events_are_immutable ON events"),
    only("DROP FUNCTION settle_deliveries"),
    only("CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"),
    only("SET session_replication_role = 'replica'"),
    only("SET ROLE acp_owner"),
    only("SET SESSION AUTHORIZATION acp_owner"),
    *(only(f"SET ROLE {role}", role) for role in ROLES),
    only("ALTER ROLE acp_owner PASSWORD 'mine'"),
    only("ALTER ROLE acp_owner SET work_mem = '1MB'"),
    only("ALTER ROLE CURRENT_USER SUPERUSER"),
    only("ALTER ROLE CURRENT_USER CREATEROLE"),
    only("ALTER ROLE ALL SET work_mem = '1MB'"),
    only("GRANT acp_owner TO CURRENT_USER"),
    only("GRANT acp_relay TO acp_ingest"),
    only("LOCK TABLE outbox IN SHARE ROW EXCLUSIVE MODE"),
    only("LOCK TABLE pending_deliveries IN EXCLUSIVE MODE"),
    only("COPY (SELECT 1) TO PROGRAM 'true'"),
]
STATEMENTS = [*READS, *DELETES, *FORGERIES, *POWERS]


def may(connection: Connection[Any], statement: Statement) -> bool:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.sql.encode())
    except errors.InsufficientPrivilege:
        return False
    except psycopg.Error:
        return True  # It is permitted, and then refused for its values.
    return True


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.sql[:60])
def test_a_statement_is_for_its_roles_alone(shared: Shared, statement: Statement) -> None:
    before = snapshot(shared.owner)
    assert {role for role, connection in shared.connections.items() if may(connection, statement)} == statement.roles
    assert snapshot(shared.owner) == before


def test_the_table_has_at_least_a_hundred_statements() -> None:
    assert len({statement.sql for statement in STATEMENTS}) >= 100


def test_no_role_may_make_temporary_tables(empty_database: TestDatabase) -> None:
    # This is a privilege of the database, which a clone does not inherit from its template.
    with connect(empty_database.owner_url, application_name="test") as owner:
        migrate(owner, read_migrations(MIGRATIONS))
    for role in ROLES:
        with (
            connect(empty_database.url(role), application_name="test") as connection,
            pytest.raises(errors.InsufficientPrivilege),
        ):
            connection.execute("CREATE TEMPORARY TABLE mine (id integer)")


def test_the_catalog_grants_nothing_beside_the_table(owner: Connection[Any]) -> None:
    """A new table or owner's function must be in the lists above."""
    tables = owner.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
    )
    assert {row[0] for row in tables} == TABLES.keys()
    functions = owner.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prorettype <> 'trigger'::regtype"
    )
    assert [name for (name,) in functions if not any(f"{name}(" in statement.sql for statement in FORGERIES)] == []


def test_owners_functions_are_sealed(owner: Connection[Any]) -> None:
    """Each runs with a search_path of its own, which ends with the caller's tables, and runs no text as SQL.

    Those of rebuilds do: with names of the table rebuildable and definitions of the catalogue, which are the owner's.
    """
    rebuilding = {"plan_rebuild", "begin_rebuild", "compare_rebuild", "swap_rebuild", "end_rebuild"}
    functions = owner.execute(
        "SELECT proname, proconfig, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef"
    ).fetchall()
    assert len(functions) >= 32
    for name, settings, source in functions:
        assert "search_path=pg_catalog, public, pg_temp" in settings, name
        assert name in rebuilding or not re.search(r"\bexecute\b", source, re.IGNORECASE), name


def test_everybody_may_execute_no_function(owner: Connection[Any]) -> None:
    owner.execute("CREATE FUNCTION made_later() RETURNS integer LANGUAGE sql RETURN 1")
    functions = owner.execute(
        "SELECT proname FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS granted"
        " WHERE pronamespace = 'public'::regnamespace AND granted.grantee = 0"
    )
    assert functions.fetchall() == []


# Claims


def claim_as(connection: Connection[Any], *, lease_seconds: float = 30) -> claims.Claim:
    return claims.claim(
        connection,
        token=uuid4(),
        claimed_by="me",
        lanes=seeds.limits(100),
        lease_seconds=lease_seconds,
        max_attempts=5,
    )


def test_a_relay_cannot_take_what_another_has_claimed(
    connections: dict[str, Connection[Any]], app: Connection[Any]
) -> None:
    seeds.store(app, seeds.ticks(3))
    assert len(seeds.claim(app, rows=2).rows) == 2
    assert len(claim_as(connections[RELAY]).rows) == 1
    assert claim_as(connections[RELAY]).rows == []


def test_a_relay_settles_its_own_claim_alone(connections: dict[str, Connection[Any]], app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.claim(app, rows=1)
    mine = claim_as(connections[RELAY])
    states = [row["state"] for row in seeds.deliveries(app).values()]
    assert states == ["in_flight", "in_flight"]
    connections[RELAY].execute(
        "SELECT settle_deliveries('me', ids, subs, ops, tokens, states, messages, errors, delays, suspect) FROM ("
        " SELECT array_agg(id) AS ids, array_agg('signal_lab'::text) AS subs, array_agg(NULL::uuid) AS ops,"
        " array_agg(%s::uuid) AS tokens, array_agg('published'::text) AS states, array_agg('forged'::text) AS messages,"
        " array_agg(NULL::text) AS errors, array_agg(0.0::float8) AS delays, array_agg(false) AS suspect FROM outbox"
        ") AS all_messages",
        [mine.token],
    )
    assert sorted(row["state"] for row in seeds.deliveries(app).values()) == ["delivered", "in_flight"]


def test_a_claim_without_a_token_is_refused(connections: dict[str, Connection[Any]], app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(1))
    with pytest.raises(errors.CheckViolation):
        claims.claim(
            connections[RELAY],
            token=None,  # type: ignore[arg-type]  # what a forger would give
            claimed_by="me",
            lanes=seeds.limits(1),
            lease_seconds=30,
            max_attempts=5,
        )


# Events


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace('"series"', '"series_"'), id="a field's name"),
        pytest.param(lambda text: text.replace('{"event_id"', '{"extra":1,"event_id"'), id="a further field"),
        pytest.param(lambda text: text.replace('"revision":0', '"revision":0,"revision":1'), id="a field twice"),
        pytest.param(lambda text: "{}", id="no field"),
    ],
)
def test_a_message_that_is_not_its_event_is_refused(
    connections: dict[str, Connection[Any]], owner: Connection[Any], change: Any
) -> None:
    message = json.dumps(seeds.event(seeds.ticks(1)[0].payload).to_message(), separators=(",", ":"))
    changed = change(message)
    assert changed != message
    given = f'[{{"topic": "market.ticks", "message": {changed}}}]'
    with pytest.raises(errors.CheckViolation, match="not those of an event"):
        connections[INGEST].execute("SELECT * FROM insert_events(%s::json)", [given])
    connections[INGEST].execute("SELECT * FROM insert_events(%s::json)", [given.replace(changed, message)])
    assert seeds.counts(owner) == (0, 1, 1)


# What the functions of a role do with it


def test_the_status_is_read_by_the_reader(connections: dict[str, Connection[Any]], stored: None) -> None:
    status = read_status(connections[READER])
    assert {row.state for row in status.deliveries} == {"delivered", "dead_lettered", "in_flight", "pending"}


def test_a_hold_outlives_whatever_a_relay_writes(connections: dict[str, Connection[Any]], stored: None) -> None:
    with pytest.raises(errors.CheckViolation):
        connections[RELAY].execute("UPDATE circuit_breakers SET state = 'closed' WHERE name = 'signal_lab'")


# Making the roles


def test_a_missing_role_is_named_with_its_remedy(tmp_path: Any) -> None:
    with PostgresServer(tmp_path / "data", password=PASSWORD, fsync=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute(f"CREATE ROLE acp_owner LOGIN PASSWORD '{PASSWORD}'".encode())
            admin.execute("CREATE ROLE acp_relay")
            admin.execute("CREATE DATABASE control_plane OWNER acp_owner")
        url = server.url("acp_owner", "control_plane", PASSWORD)
        with connect(url, application_name="test") as owner:
            with pytest.raises(errors.UndefinedObject) as refused:
                migrate(owner, read_migrations(MIGRATIONS))
            text = str(refused.value)
            assert "acp_consume, acp_ingest, acp_maintain, acp_reader" in text
            assert "acp_relay" not in text
            assert "CREATE ROLE acp_consume LOGIN PASSWORD" in text
            with psycopg.connect(server.url(), autocommit=True) as admin:
                for role in EVERYBODY - {"acp_relay"}:
                    admin.execute(f"CREATE ROLE {role}".encode())
            migrate(owner, read_migrations(MIGRATIONS))
            check_schema(owner)
