"""What the API is asked for most looks up what it shows, and reads no whole table, however large it has become."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TEMPLATE
from tests.conftest import _database as new_database
from tests.integration import seeds

from control_plane.flow.folding import QUERIES as FLOW
from control_plane.ops.timeline import LARGEST_SHOWN_PAYLOAD, QUERIES
from control_plane.platform.database import connect
from local_cloud.postgres import PostgresServer

EACH = 20_000
"""How many messages are given up on for one subscription; twice as many are delivered to another."""
ANY_LETTER: dict[str, Any] = dict.fromkeys(
    ("ids", "kind", "subscription", "event_id", "trace_id", "since", "until", "reason", "below")
)


@pytest.fixture(scope="module")
def much(postgres: PostgresServer) -> Iterator[Connection[Any]]:
    """The owner's connection to a database that all tests here share: none changes anything."""
    with (
        contextmanager(new_database)(postgres, template=TEMPLATE) as database,
        connect(database.owner_url, application_name="test") as connection,
    ):
        seeds.store_delivered(connection, 2 * EACH)
        connection.execute(
            "INSERT INTO dead_letters (outbox_id, subscription, promised_at, delivery_attempts, reason)"
            " SELECT outbox_id, 'system_events', delivered_at, 3, 'no luck' FROM deliveries"
            " ORDER BY outbox_id LIMIT %s",
            [EACH],
        )
        connection.execute(
            "INSERT INTO processed_events (consumer, event_id)"
            " SELECT 'signal_lab', event_id FROM outbox ORDER BY id DESC LIMIT %s",
            [EACH],
        )
        connection.execute("ANALYZE")
        yield connection


def rows_read(plan: str) -> int:
    """Returns how many rows a plan's scans read, those that they threw away included."""
    return sum(
        (step["Actual Rows"] + step.get("Rows Removed by Filter", 0)) * step["Actual Loops"]
        for step in seeds.steps(plan)
        if "Relation Name" in step
    )


def test_a_page_of_dead_letters_reads_no_whole_outbox(much: Connection[Any]) -> None:
    plan = seeds.plan(much, QUERIES["dead_letters"], ANY_LETTER | {"with_resolved": False, "limit": 51})
    assert 51 <= rows_read(plan) <= 3 * 51


def test_the_lag_of_consumers_reads_what_belongs_to_the_newest_messages(much: Connection[Any]) -> None:
    plan = seeds.plan(much, QUERIES["unprocessed_deliveries"], {"limit": 1000})
    assert 1000 <= rows_read(plan) <= 5 * 1000


def test_the_flow_reads_no_more_dead_letters_than_it_counts(much: Connection[Any]) -> None:
    for query in ("subscriptions", "open_dead_letters"):
        assert 990 <= rows_read(seeds.plan(much, FLOW[query], {})) <= 2 * 1000  # Postgres rounds rows for each loop


@pytest.mark.parametrize("table", ["deliveries", "dead_letters"])
def test_a_timeline_reads_what_belongs_to_its_event(much: Connection[Any], table: str) -> None:
    ((event_id,),) = much.execute(
        f"SELECT outbox.event_id FROM outbox JOIN {table} AS given ON given.outbox_id = outbox.id LIMIT 1".encode()
    ).fetchall()
    plan = seeds.plan(much, QUERIES["event_timeline"], {"event_id": event_id, "largest_payload": LARGEST_SHOWN_PAYLOAD})
    assert 3 <= rows_read(plan) <= 30
