"""Policies are tried on the newest verdicts, however many there are."""

from typing import Any

import psycopg
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds

from control_plane.decisions.retrial import QUERIES


def test_the_newest_recorded_requests_are_found_by_an_index(app: Connection[Any], database: TestDatabase) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")  # not all that they refer to is of interest here
        admin.execute(
            "INSERT INTO decisions (decision_id, domain, playbook, playbook_version, pins_sha256, source, entity_id,"
            " series, occurred_at, anomaly_kind, trigger_event_id, trace_id, deadline, budget_micros, opened_at)"
            " SELECT md5(number::text)::uuid, 'finance', 'p', '1', '', 's', 'e', '1m', now(), 'return',"
            " gen_random_uuid(), gen_random_uuid(), now(), 0, now() FROM generate_series(1, 5000) AS number"
        )
        admin.execute(
            "INSERT INTO verdicts (verdict_id, decision_id, proposal_seq, verdict, is_shadow, policy_sha256,"
            " schema_sha256, request_sha256, reasons, errors, judged_at)"
            " SELECT gen_random_uuid(), md5(number::text)::uuid, 3, 'refused', false, '', '',"
            " CASE WHEN number % 2 = 0 THEN sha256(number::text::bytea) END, '[]', '[]',"
            " now() - make_interval(secs => number) FROM generate_series(1, 5000) AS number"
        )
        admin.execute(
            "INSERT INTO artifacts (sha256, kind, bytes)"
            " SELECT sha256(number::text::bytea), 'request', number::text::bytea"
            " FROM generate_series(1, 5000) AS number"
        )
        admin.execute("ANALYZE artifacts, decisions, verdicts")
    steps = seeds.steps(seeds.plan(app, QUERIES["recorded_requests"], {"domain": "finance", "limit": 20}))
    [verdicts] = [step for step in steps if step.get("Relation Name") == "verdicts"]
    assert (verdicts["Index Name"], verdicts["Actual Rows"]) == ("verdicts_to_try_again", 20)
