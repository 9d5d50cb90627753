"""What a superuser changes behind the back of the record is found by an audit."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from tests.conftest import TEMPLATE, TestDatabase
from tests.conftest import _database as fresh_database
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly

from control_plane.decisions.audit import Audit, audit
from control_plane.decisions.chain import StoredStep, step_hash
from control_plane.decisions.timers import anchor
from control_plane.platform.telemetry import Telemetry
from local_cloud.postgres import PostgresServer

EDITS = int(os.environ.get("ACP_AUDIT_EDITS", "200"))
"""How many random ones: 10,000 by `ACP_AUDIT_EDITS=10000 pytest --timeout 3600 "
"tests/integration/decisions/test_audit.py`."""

COVERED = {
    "decisions": (
        "domain playbook playbook_version pins_sha256 anomaly_kind source entity_id series occurred_at "
        "trigger_event_id trace_id "
        "is_shadow state deadline budget_micros opened_at closed_at head_seq head_hash anchored_seq superseded_by"
    ),
    "decision_steps": "parent kind author at input_sha256 output_sha256 cost_micros body prev_hash hash",
    "agent_calls": (
        "step_seq agent agent_version attempt request_sha256 reserved_micros intended_at deadline fence "
        "claimed_by lease_until "
        "outcome answer_sha256 error cost_micros ended_at"
    ),
    "budget_reservations": "scope day micros spent_micros settled_at",
    "budgets": "reserved_micros spent_micros overrun_micros",
    "verdicts": (
        "decision_id proposal_seq action_sha256 verdict is_shadow approval_id policy_sha256 "
        "schema_sha256 request_sha256 reasons errors judged_at"
    ),
    "approval_requests": "decision_id action_sha256 requested_at expires_at proposed_by shown",
    "approvals": "decision_id action_sha256 is_given decided_by reason decided_at expires_at",
    "actions": "decision_id idempotency_key domain action_type account action_sha256 verdict_id event_id "
    "released_at expires_at",
    "executions": "outcome reason effect executed_at",
    "outcomes": "state observed observed_at",
    "agent_scores": "agent agent_version forecast probability happened brier scored_at",
    "anchors": "prev_root heads root",
}
COLUMNS = [(table, column) for table, columns in COVERED.items() for column in columns.split()]
DELETED = [*COVERED, "artifacts"]
NEW_VALUE = {
    "text": "{c} || 'x'",
    "uuid": "gen_random_uuid()",
    "bytea": "sha256(coalesce({c}, '') || '\\x01')",
    "boolean": "NOT {c}",
    "timestamp with time zone": "coalesce({c}, now()) + interval '1 microsecond'",
    "integer": "coalesce({c}, 0) + 1",
    "bigint": "coalesce({c}, 0) + 1",
    "double precision": "CASE WHEN {c} > 0.5 THEN {c} - 0.01 ELSE {c} + 0.01 END",
    "date": "{c} + 1",
    "jsonb": "CASE jsonb_typeof({c}) WHEN 'array' THEN {c} || '[1]' ELSE {c} || '{{\"x\": 1}}' END",
}


class Log:
    """Keeps the fields of log lines, as a search of the log returns them."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, message: str, **fields: Any) -> None:
        assert message == "anchored"
        self.lines.append(json.loads(json.dumps(fields)))


@dataclass
class Tampered:
    """A superuser's connection within a transaction that is rolled back, and the anchors' log lines."""

    connection: Connection[Any]
    lines: list[dict[str, Any]]

    def findings(self, *, with_log: bool = True) -> set[str]:
        return {finding.where for finding in audit(self.connection, self.lines if with_log else ()).findings}


def history(world: World) -> list[dict[str, Any]]:
    """Decisions of every kind, all anchored."""
    world.verdict = "needs_approval"
    world.detect(anomaly(entity="A"))
    world.run()
    world.approve(world.record().decision.decision_id)
    world.verdict = "permitted"
    world.detect(anomaly(entity="B"))
    world.run()
    world.verdict = "refused"
    world.detect(anomaly(entity="C"))
    world.run()
    telemetry = Telemetry("test")
    telemetry.logger = Log()  # type: ignore[assignment]
    assert anchor(world.decide, telemetry) == 3
    return telemetry.logger.lines  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def tampered(postgres: PostgresServer) -> Iterator[Tampered]:
    """Every test rolls back what it changes, so that one history is enough."""
    with contextmanager(fresh_database)(postgres, template=TEMPLATE) as database:
        world = World(database, toy.deciding(checker={"costs": 30}))
        lines = history(world)
        world.close()
        yield from superuser(database, lines)


def superuser(database: TestDatabase, lines: list[dict[str, Any]]) -> Iterator[Tampered]:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET timezone = 'UTC'")
        for name, table in connection.execute(
            "SELECT conname, conrelid::regclass::text FROM pg_constraint WHERE contype IN ('c', 'u') "
            "AND connamespace = 'public'::regnamespace"
        ).fetchall():
            connection.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"'.encode())  # a superuser stops at nothing
        yield Tampered(connection, lines)


def change(connection: Connection[Any], table: str, column: str, luck: random.Random) -> bool:
    """Changes one column of one row; returns whether that made a difference."""
    rows = connection.execute(f"SELECT ctid, {column} FROM {table} ORDER BY ctid".encode()).fetchall()
    place, old = luck.choice(rows)
    row = connection.execute(
        "SELECT data_type FROM information_schema.columns WHERE table_schema = 'public' AND table_name = %s AND "
        "column_name = %s",
        [table, column],
    ).fetchone()
    assert row is not None
    value = NEW_VALUE[row[0]].format(c=column)
    if (table, column) == ("decision_steps", "body"):
        value = "convert_to(convert_from(body, 'UTF8') || ' ', 'UTF8')"
    if (table, column) == ("decisions", "state"):
        value = "CASE state WHEN 'scored' THEN 'executed' ELSE 'scored' END"
    if row[0] == "text" and old is None:
        value = "'x'"
    if row[0] in ("uuid", "bytea", "boolean") and old is None:
        value = {"uuid": "gen_random_uuid()", "bytea": "sha256('')", "boolean": "true"}[row[0]]
    new = connection.execute(
        f"UPDATE {table} SET {column} = {value} WHERE ctid = %s RETURNING {column}".encode(), [place]
    ).fetchone()
    assert new is not None
    return bool(new[0] != old)


def test_an_untouched_record_has_no_findings(tampered: Tampered) -> None:
    result = audit(tampered.connection, tampered.lines)
    assert result.findings == []
    assert (result.decisions, result.unanchored_steps) == (3, 0)
    assert result.steps > 50


def test_python_hashes_a_step_as_postgres_does(tampered: Tampered) -> None:
    rows = tampered.connection.execute(
        "SELECT decision_id, seq, parent, kind, author, at, input_sha256, output_sha256, cost_micros, body, "
        "prev_hash, hash, "
        "step_hash(prev_hash, decision_id, seq, parent, kind, author, at, input_sha256, output_sha256, "
        "cost_micros, body) "
        "FROM decision_steps"
    ).fetchall()
    for *columns, in_postgres in rows:
        step = StoredStep(*columns)
        assert step_hash(step, step.prev_hash) == step.hash == in_postgres


@pytest.mark.timeout(600)
def test_a_change_of_any_column_is_found(tampered: Tampered) -> None:
    unseen = []
    for table, column in COLUMNS:
        with tampered.connection.transaction(force_rollback=True):
            if change(tampered.connection, table, column, random.Random(1)) and not tampered.findings():
                unseen.append((table, column))
    assert unseen == []


@pytest.mark.parametrize("table", DELETED)
def test_a_row_that_is_deleted_is_found(tampered: Tampered, table: str) -> None:
    count = tampered.connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert count is not None
    assert count[0] > 0
    for place in range(0, count[0], max(1, count[0] // 5)):
        with tampered.connection.transaction(force_rollback=True):
            tampered.connection.execute(
                f"DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} ORDER BY ctid OFFSET %s LIMIT 1)".encode(),
                [place],
            )
            assert tampered.findings()


def test_a_decision_that_is_deleted_whole_is_found(tampered: Tampered) -> None:
    connection = tampered.connection
    with connection.transaction(force_rollback=True):
        connection.execute("DELETE FROM executions")
        connection.execute("DELETE FROM budget_reservations")
        connection.execute("DELETE FROM budgets")
        for table in (
            "actions", "approvals", "approval_requests", "verdicts", "agent_calls", "outcomes", "agent_scores",
            "timers", "decision_steps", "decisions",
        ):  # fmt: skip
            connection.execute(f"DELETE FROM {table}".encode())
        assert tampered.findings(with_log=False) == {"decisions"}
        connection.execute("DELETE FROM anchors")
        assert tampered.findings() == {"anchors", "decisions"}


def rewrite_chain(connection: Connection[Any], luck: random.Random) -> None:
    """Changes one step of a decision, and hashes it and all that follow again."""
    row = connection.execute("SELECT decision_id, head_seq FROM decisions ORDER BY random() LIMIT 1").fetchone()
    assert row is not None
    decision_id, head = row
    seq = luck.randint(0, head)
    connection.execute(
        "UPDATE decision_steps SET at = at + interval '1 millisecond' WHERE decision_id = %s AND seq = %s",
        [decision_id, seq],
    )
    for number in range(seq, head + 1):
        connection.execute(
            "UPDATE decision_steps AS step SET prev_hash = before.prev, hash = step_hash("
            "before.prev, step.decision_id, step.seq, parent, kind, author, at, input_sha256, output_sha256, "
            "cost_micros, body) "
            "FROM (SELECT coalesce((SELECT hash FROM decision_steps WHERE decision_id = %(id)s AND seq = "
            "%(seq)s - 1), '') AS prev) "
            "AS before WHERE decision_id = %(id)s AND seq = %(seq)s",
            {"id": decision_id, "seq": number},
        )
    connection.execute(
        "UPDATE decisions SET head_hash = (SELECT hash FROM decision_steps WHERE decision_id = %(id)s AND seq = "
        "%(seq)s) "
        "WHERE decision_id = %(id)s",
        {"id": decision_id, "seq": head},
    )


def test_a_chain_that_is_rewritten_whole_is_found(tampered: Tampered) -> None:
    with tampered.connection.transaction(force_rollback=True):
        rewrite_chain(tampered.connection, random.Random(2))
        assert "decision_steps" in tampered.findings(with_log=False)


def test_anchors_that_are_rewritten_too_are_found_by_the_log(tampered: Tampered) -> None:
    connection = tampered.connection
    with connection.transaction(force_rollback=True):
        rewrite_chain(connection, random.Random(3))
        connection.execute(
            "UPDATE anchors SET heads = now.heads, root = sha256(prev_root || convert_to(now.heads, 'UTF8')) FROM ("
            "SELECT string_agg(format('%s %s %s', decision_id, head_seq, encode(head_hash, 'hex')), E'\\n' "
            "ORDER BY decision_id) "
            "AS heads FROM decisions) AS now"
        )
        assert "anchors" in tampered.findings()


def test_what_is_newer_than_its_anchor_is_stated(make_world: Callable[..., World]) -> None:
    world = make_world()
    lines = history(world)
    world.detect(anomaly(entity="D"))
    world.run()
    result = audit(world.owner, lines)
    assert result.findings == []
    assert result.unanchored_steps == len(world.records()[-1].steps)


def test_a_line_of_the_log_that_is_none_is_named(tampered: Tampered) -> None:
    assert audit(tampered.connection, [{"anchor_id": "many"}]).findings[0].where == "log"


def test_an_anchor_whose_line_was_never_logged_is_no_finding(make_world: Callable[..., World]) -> None:
    world = make_world()
    lines = history(world)
    world.detect(anomaly(entity="D"))
    world.run()
    world.decide.execute("SELECT anchor_heads(500)")  # and then the function died
    assert audit(world.owner, lines).findings == []


def swap(connection: Connection[Any], table: str, column: str, luck: random.Random) -> bool:
    """Exchanges a column of two rows; returns whether that made a difference."""
    rows = connection.execute(f"SELECT ctid, {column} FROM {table} ORDER BY ctid".encode()).fetchall()
    if len(rows) < 2:
        return False
    (one, of_one), (two, of_two) = luck.sample(rows, 2)
    query = sql.SQL("UPDATE {t} SET {c} = (SELECT {c} FROM {t} WHERE ctid = {a}) WHERE ctid = {b}")
    names = {"t": sql.Identifier(table), "c": sql.Identifier(column)}
    kept = connection.execute(
        sql.SQL("CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT {c} AS old FROM {t} WHERE ctid = {a}").format(
            a=one, **names
        )
    )
    assert kept is not None
    connection.execute(query.format(a=two, b=one, **names))
    connection.execute(sql.SQL("UPDATE {t} SET {c} = (SELECT old FROM kept) WHERE ctid = {b}").format(b=two, **names))
    return bool(of_one != of_two)


@pytest.mark.timeout(3600)
def test_random_edits_deletions_and_swaps_are_all_found(tampered: Tampered) -> None:
    luck = random.Random(20)
    connection, unseen = tampered.connection, []
    for number in range(EDITS):
        with connection.transaction(force_rollback=True):
            table, column = luck.choice(COLUMNS)
            how = luck.choice(("change", "change", "delete", "swap", "rewrite"))
            match how:
                case "change":
                    is_made = change(connection, table, column, luck)
                case "delete":
                    deleted = connection.execute(
                        f"DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} ORDER BY random() LIMIT "
                        f"1)".encode()
                    )
                    is_made = deleted.rowcount == 1
                case "swap":
                    is_made = swap(connection, table, column, luck)
                case _:
                    rewrite_chain(connection, luck)
                    is_made = True
            if is_made and not audit(connection, tampered.lines).findings:
                unseen.append((number, how, table, column))
    assert unseen == []


def test_an_audit_reads_as_the_readers_role(make_world: Callable[..., World], database: TestDatabase) -> None:
    world = make_world()
    lines = history(world)
    with psycopg.connect(database.url("acp_reader"), autocommit=True) as reader:
        reader.execute("SET timezone = 'UTC'")
        result: Audit = audit(reader, lines)
    assert result.findings == []
