"""Everything that has a retention is counted and deleted once it is old, and kept while it is young."""

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly
from tests.integration.history import running
from tests.integration.history.test_retention import age_all, anchored, count, settle_all
from tests.integration.test_maintenance import store_delivered

from control_plane.operations.history.retention import Retention
from control_plane.ops.maintenance import Maintenance
from control_plane.platform.expiry import EXPIRING, count_expiring, days_ago, delete_expired
from control_plane.platform.settings import MaintenanceSettings
from control_plane.platform.telemetry import Telemetry

AGES = {
    "decisions": ("decisions", "closed_at"),
    "events": ("events", "ingested_at"),
    "dead_letters": ("dead_letters", "resolved_at"),
    "raw_payloads": ("raw_payloads", "fetched_at"),
    "processed_events": ("processed_events", "processed_at"),
    "delivery_failures": ("delivery_failures", "failed_at"),
    "consume_failures": ("consume_failures", "failed_at"),
    "audit": ("api_audit", "at"),
    "repeated_looks": ("repeated_looks", "observed_at"),
}
ROWS = {
    "dead_letters": "INSERT INTO dead_letters"
    " (kind, subscription, delivery_attempts, reason, queue, message_id, body, resolution, resolved_at, resolved_by,"
    " resolved_because) SELECT 'consumer', 'signal_lab', 5, 'no JSON', 'market-ticks-dlq', 'm' || number, 'x',"
    " 'discarded', now(), 'kim', 'noise' FROM generate_series(1, 3) AS number",
    "raw_payloads": "INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)"
    " SELECT gen_random_uuid(), 'fake', now(), gen_random_uuid(), '{}' FROM generate_series(1, 3)",
    "consume_failures": "INSERT INTO consume_failures (subscription, message_id, attempt, error)"
    " SELECT 'signal_lab', 'm' || number, 1, 'no luck' FROM generate_series(1, 3) AS number",
    "audit": "INSERT INTO api_audit (token, address, agent, route, reason, idempotency_key, before, after, status)"
    """ SELECT 'kim', '::1', 'test', 'PUT /v1/holds', 'why', 'k' || number, '{"held": false}', '{"held": true}', 200"""
    " FROM generate_series(1, 3) AS number",
    "repeated_looks": "INSERT INTO repeated_looks (entity_id, source, event_type, series, occurred_at, observed_at)"
    " SELECT 'S' || number, 'fake', 'MARKET_TICK_INGESTED', '1m', now(), now() FROM generate_series(1, 3) AS number",
}


@pytest.fixture
def store_three(
    app: Connection[Any], owner: Connection[Any], make_world: Callable[..., World]
) -> Callable[[str], None]:
    """Stores three rows of a name that nothing needs any more."""

    def store(what: str) -> None:
        if what == "decisions":
            world = make_world(deciding=toy.deciding())
            for entity in "ABC":
                world.detect(anomaly(entity=entity))
                world.run()
            anchored(world)
            settle_all(owner)
        elif what in ROWS:
            owner.execute(ROWS[what].encode())
        else:
            store_delivered(app, 3)

    return store


@pytest.mark.parametrize("what", [*EXPIRING, "repeated_looks"])
def test_what_is_old_is_counted_and_deleted(
    owner: Connection[Any], maintain: Connection[Any], store_three: Callable[[str], None], what: str
) -> None:
    store_three(what)
    table, column = AGES[what]
    instant = days_ago(maintain, 365)
    assert count(owner, table) == 3
    assert count_expiring(maintain, what, before=instant, most=10).rows == 0
    assert delete_expired(maintain, what, before=instant, batch_size=10) == 0
    age_all(owner, table, column)
    found = count_expiring(maintain, what, before=instant, most=10)
    assert (found.rows, len(found.sample), found.first_at is not None) == (3, 3, True)
    assert found.last_id is not None
    rest = count_expiring(maintain, what, before=instant, after_at=found.last_at, after_id=found.last_id, most=10)  # type: ignore[arg-type]
    assert rest.rows == 0
    assert [delete_expired(maintain, what, days=365, batch_size=2) for _ in range(3)] == [2, 1, 0]
    assert count(owner, table) == 0


def test_letters_without_a_message_go_by_the_days_of_events(
    owner: Connection[Any], maintain: Connection[Any], store_three: Callable[[str], None]
) -> None:
    store_three("dead_letters")
    owner.execute(
        "INSERT INTO dead_letters (kind, subscription, delivery_attempts, reason, queue, message_id, body,"
        " dead_lettered_at) VALUES ('consumer', 'signal_lab', 5, 'no JSON', 'market-ticks-dlq', 'open', 'x',"
        " now() - interval '400 days')"
    )
    owner.execute("UPDATE dead_letters SET resolved_at = now() - interval '400 days' WHERE message_id IN ('m1', 'm2')")
    environ = {
        "DATABASE_URL": "postgresql://acp_maintain@localhost/acp", "DECISION_RETENTION_DAYS": "",
        "EVENT_RETENTION_DAYS": "365",
    }  # fmt: skip
    settings = MaintenanceSettings.from_environ(environ)
    report = Maintenance(retention_days=settings.retention_days, telemetry=Telemetry("test")).run(
        maintain, remaining_seconds=lambda: 60.0
    )
    assert (report.deleted_dead_letters, report.finished) == (2, True)
    left = owner.execute("SELECT message_id FROM dead_letters ORDER BY message_id").fetchall()
    assert left == [("m3",), ("open",)]


def test_an_audit_is_planned_and_deleted(
    owner: Connection[Any], maintain: Connection[Any], store_three: Callable[[str], None]
) -> None:
    store_three("audit")
    age_all(owner, "api_audit", "at")
    ended = running.run(owner, maintain, Retention(), {"days": {"audit": 365, "consume_failures": 365}})
    assert (ended.total, ended.done, count(owner, "api_audit")) == (3, 3, 0)
