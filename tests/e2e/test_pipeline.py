"""The main job: what the schedules ingest is relayed and consumed, and every fault on the way is visible and mended."""

import json
import socket
import uuid
from datetime import UTC
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.e2e.clouds import Differences
from tests.e2e.conftest import LocalCloud, Market, wait_for

SYMBOLS = {"AAPL", "GOOG", "IBM", "MSFT"}


def test_schedules_alone_carry_every_symbol_to_the_consumer(local_cloud: LocalCloud) -> None:
    ((begun,),) = local_cloud.query("SELECT now()")  # bars that other tests ingested are older

    def consumed() -> bool:
        rows = local_cloud.query(
            "SELECT DISTINCT entity_id, source FROM events JOIN processed_events USING (event_id)"
            " WHERE ingested_at > %s AND event_type = 'MARKET_TICK_INGESTED'",
            begun,
        )
        return {row for row in rows if row[0] in SYMBOLS} == {(symbol, "yfinance-replay") for symbol in SYMBOLS}

    wait_for(consumed, seconds=240, what="four symbols ingested, relayed and consumed by the schedules")
    wait_for(local_cloud.settled, seconds=60, what="every message delivered and every tick consumed")


def test_each_scheduled_relay_takes_over_from_the_one_before_it(local_cloud: LocalCloud) -> None:
    # The relay lingers for longer than its schedule's period.
    wait_for(
        lambda: any(line.get("message") == "handed_over" for line in local_cloud.log("RelayFunction")),
        seconds=200,
        what="a relay that handed over to the next one",
    )
    wait_for(
        lambda: json.loads(local_cloud.acp("status", "--json").stdout)["lingering_relay"],
        seconds=30,
        what="the next one lingering",
    )


def test_the_cloud_can_only_be_reached_on_loopback(local_cloud: LocalCloud) -> None:
    urls = [local_cloud.environ[name] for name in ("AWS_ENDPOINT_URL", "DATABASE_URL", "MARKET_DATA_URL")]
    for port in [urlsplit(url).port for url in urls]:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        # Nothing listens on this address; only a server that listens on every address would answer.
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection(("127.0.0.2", port), timeout=5)


def test_an_events_timeline_can_be_read_by_its_id(local_cloud: LocalCloud) -> None:
    event_id = _consumed_event(local_cloud)
    traced = local_cloud.acp("trace", str(event_id), "--json")
    assert traced.returncode == 0, traced.stderr
    timeline = json.loads(traced.stdout)
    assert timeline["event"]["event_id"] == str(event_id)
    assert timeline["raw_payload"]["trace_id"] == timeline["event"]["trace_id"]
    assert ("signal_lab", "delivered") in [(one["subscription"], one["state"]) for one in timeline["deliveries"]]
    assert "signal_lab" in [processing["consumer"] for processing in timeline["processing"]]
    shown = local_cloud.acp("trace", str(event_id))
    assert shown.returncode == 0
    assert "signal_lab" in shown.stdout


def test_a_repeated_bar_is_one_event_a_corrected_bar_another(local_cloud: LocalCloud, market: Market) -> None:
    first, ok = local_cloud.invoke("IngestionFunction", {"symbols": ["MSFT"]})
    assert ok, first
    minute = local_cloud.query(
        "SELECT max(occurred_at) FROM events WHERE entity_id = 'MSFT' AND event_type = 'MARKET_TICK_INGESTED'"
    )[0][0]

    def versions() -> int:
        # A corrected price may be an anomaly, which is an event about the same instant.
        statement = (
            "SELECT count(*) FROM events"
            " WHERE entity_id = 'MSFT' AND occurred_at = %s AND event_type = 'MARKET_TICK_INGESTED'"
        )
        count: int = local_cloud.query(statement, minute)[0][0]
        return count

    again, ok = local_cloud.invoke("IngestionFunction", {"symbols": ["MSFT"]})
    assert ok, again
    assert again["duplicates"] >= 1
    assert versions() == 1
    market.break_symbol("MSFT", {"correct": {"minute": minute.astimezone(UTC).isoformat(), "close": 1.25}})
    for _ in range(2):
        corrected, ok = local_cloud.invoke("IngestionFunction", {"symbols": ["MSFT"]})
        assert ok, corrected
    assert versions() == 2


def test_a_failing_symbol_becomes_an_event_and_stops_no_other(local_cloud: LocalCloud, market: Market) -> None:
    market.break_symbol("IBM", {"status": 429})
    ran = local_cloud.acp("ingest", "AAPL", "IBM", "NOSUCHSYMBOL")
    assert ran.returncode == 1
    assert "IBM" in ran.stdout + ran.stderr
    assert "NOSUCHSYMBOL" in ran.stdout + ran.stderr
    kinds = dict(
        local_cloud.query(
            """
            SELECT DISTINCT ON (entity_id) entity_id, payload_json ->> 'kind' FROM events
            WHERE event_type = 'SOURCE_FETCH_FAILED' ORDER BY entity_id, ingested_at DESC
            """
        )
    )
    assert kinds["IBM"] == "rate_limited"
    assert kinds["NOSUCHSYMBOL"] == "unknown_symbol"


def test_a_bar_breaking_the_contract_is_reported_with_its_payload(local_cloud: LocalCloud, market: Market) -> None:
    market.break_symbol("GOOG", {"nan": True})
    result, ok = local_cloud.invoke("IngestionFunction", {"symbols": ["GOOG"]})
    assert ok, result
    assert result["rejected"] == 1
    assert result["failed_symbols"] == []
    ((payload, raw_payload_id),) = local_cloud.query(
        "SELECT payload_json, raw_payload_id FROM events WHERE event_type = 'SIGNAL_REJECTED' AND entity_id = 'GOOG'"
    )
    assert payload["field"].startswith("payload.")
    assert raw_payload_id is not None


def test_a_message_for_an_unknown_subscription_waits_and_is_named(local_cloud: LocalCloud) -> None:
    outbox_id = _store_message(local_cloud, {"for": "nobody"}, subscription="nobody")
    try:
        for _ in range(2):
            result, ok = local_cloud.invoke("RelayFunction", {"linger_seconds": 0})
            assert ok, result
        state = "SELECT state, delivery_attempts FROM outbox_states WHERE subscription = 'nobody'"
        assert local_cloud.query(state) == [("pending", 0)]
        status = json.loads(local_cloud.acp("status", "--json").stdout)
        assert [problem for problem in status["problems"] if problem.startswith("1 pending for nobody")]
    finally:
        with psycopg.connect(local_cloud.environ["DATABASE_OWNER_URL"]) as owner:
            owner.execute("DELETE FROM pending_deliveries WHERE outbox_id = %s", [outbox_id])


def test_an_oversized_message_is_dead_lettered_and_delays_no_other(local_cloud: LocalCloud) -> None:
    outbox_id = _store_message(local_cloud, {"padding": "x" * 1_048_576}, subscription="system_events")
    _, ok = local_cloud.invoke("RelayFunction", {"linger_seconds": 0})
    assert ok
    given_up = "SELECT last_error FROM outbox_states WHERE id = %s AND state = 'dead_lettered'"
    reason = wait_for(lambda: local_cloud.query(given_up, outbox_id), seconds=30, what="it dead-lettered")[0][0]
    assert "too large" in reason


def test_the_migration_function_changes_nothing_the_second_time(local_cloud: LocalCloud) -> None:
    report, ok = local_cloud.invoke("MigrationFunction", {})
    assert ok, report
    assert report["applied"] == []


def test_a_functions_error_names_the_culprit_to_its_invoker(local_cloud: LocalCloud, differences: Differences) -> None:
    error, ok = local_cloud.invoke("IngestionFunction", {"symbols": "AAPL"})
    assert not ok
    assert error["errorType"] == (
        "ConfigurationError" if differences.reports_the_type_of_an_error else "Runtime.HandlerError"
    )
    assert "symbols of the event is 'AAPL'" in error["errorMessage"]


def _consumed_event(cloud: LocalCloud) -> uuid.UUID:
    rows = cloud.query(
        "SELECT event_id FROM processed_events WHERE consumer = 'signal_lab' ORDER BY processed_at LIMIT 1"
    )
    event_id: uuid.UUID = rows[0][0]
    return event_id


def _store_message(cloud: LocalCloud, body: dict[str, str], *, subscription: str) -> int:
    """Stores a message of system.events with a body of its own, pending for one subscription; returns its id."""
    event_id = uuid.uuid4()
    with psycopg.connect(cloud.environ["DATABASE_OWNER_URL"]) as connection:
        connection.execute(
            "INSERT INTO events (event_id, event_type, source, entity_id, occurred_at, ingested_at, schema_version,"
            " trace_id, payload_json) VALUES (%(event_id)s, 'MADE_BY_HAND', 'test', %(entity_id)s, now(), now(), 1,"
            " %(event_id)s, '{}')",
            {"event_id": event_id, "entity_id": str(event_id)},
        )
        row = connection.execute(
            "INSERT INTO outbox (event_id, topic, event_type, schema_version, trace_id, payload_json)"
            " VALUES (%(event_id)s, 'system.events', 'MADE_BY_HAND', 1, %(event_id)s, %(body)s) RETURNING id",
            {"event_id": event_id, "body": json.dumps(body | {"event_id": str(event_id)})},
        ).fetchone()
        assert row is not None
        connection.execute(
            "INSERT INTO pending_deliveries (outbox_id, subscription) VALUES (%s, %s)", [row[0], subscription]
        )
    outbox_id: int = row[0]
    return outbox_id
