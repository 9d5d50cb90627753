"""What each function's handler does, on a real Postgres."""

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from psycopg import Connection
from tests.conftest import MIGRATIONS
from tests.integration.functions.invoked import (
    FUNCTIONS,
    NOWHERE,
    Load,
    count,
    failures,
    look,
    metrics,
    record,
    record_of,
    tick,
)

from control_plane.ingestion.store import store_events
from control_plane.model.contract import SourceFetchFailed
from control_plane.model.errors import ConfigurationError, DatabaseUnavailable, MalformedInvocation
from control_plane.ops.migrations import read_migrations
from control_plane.ops.subscriptions import SubscriptionError
from control_plane.platform.database import connect
from market_replay import Fault, serve

# What the handlers do


def test_ingestion_stores_what_the_market_answers_once(load: Load, database: Any, app: Connection[Any]) -> None:
    with serve() as market:
        ingestion = load(
            "ingestion",
            DATABASE_URL=database.url("acp_ingest"),
            SYMBOLS=" aapl, MSFT ,aapl",
            MARKET_DATA_URL=market.url,
        )
        first = ingestion()
        assert first["symbols"] == ["AAPL", "MSFT"]
        assert first["failed_symbols"] == []
        assert first["fetched"] == first["ingested"] == count(app, "events") == count(app, "outbox") > 0
        second = ingestion()
        assert second["duplicates"] > 0
        assert second["fetched"] == second["ingested"] + second["duplicates"] + second["stale"] + second["rejected"]
        assert second.keys() == {
            *("trace_id", "symbols", "fetched", "ingested", "duplicates", "stale", "rejected", "failed_symbols")
        }
        assert first["ingested"] + second["ingested"] == count(app, "events") == count(app, "outbox")
    assert count(app, "raw_payloads") == 4
    assert app.execute("SELECT DISTINCT source FROM events").fetchall() == [("yfinance-replay",)]
    [line] = [
        line for line in ingestion.logs if line["message"] == "ingested" and line["trace_id"] == first["trace_id"]
    ]
    assert line["ingested"] == first["ingested"]


def test_ingestion_takes_the_events_symbols_and_names_those_that_failed(
    load: Load, database: Any, app: Connection[Any]
) -> None:
    with serve() as market:
        market.faults.put("IBM", Fault(status=429))
        ingestion = load("ingestion", DATABASE_URL=database.url("acp_ingest"), MARKET_DATA_URL=market.url)
        answer = ingestion({"symbols": ["msft", "IBM", "NOSUCH"]})
    assert answer["symbols"] == ["MSFT", "IBM", "NOSUCH"]
    assert answer["failed_symbols"] == ["IBM", "NOSUCH"]
    assert answer["ingested"] > 0
    kinds = app.execute(
        "SELECT entity_id, payload_json ->> 'kind' FROM events WHERE event_type = 'SOURCE_FETCH_FAILED' ORDER BY 1"
    ).fetchall()
    assert kinds == [("IBM", "rate_limited"), ("NOSUCH", "unknown_symbol")]
    warnings = [line for line in ingestion.logs if line["level"] == "WARNING"]
    assert [line["trace_id"] for line in warnings] == [answer["trace_id"]] * 2


def test_ingestion_stores_a_piece_of_a_backfill_and_says_why_a_symbol_failed(
    load: Load, database: Any, app: Connection[Any]
) -> None:
    today = datetime.now(UTC)
    piece = {
        "operation_id": "00000000-0000-4000-8000-000000000007",
        "symbols": ["IBM", "NOSUCH"],
        "since": (today - timedelta(days=8)).isoformat(),
        "until": (today - timedelta(days=3)).isoformat(),
        "interval": "1d",
        "publish": False,
    }
    with serve() as market:
        ingestion = load("ingestion", DATABASE_URL=database.url("acp_ingest"), MARKET_DATA_URL=market.url)
        first, again = ingestion(piece), ingestion(piece)
    assert first["trace_id"] == again["trace_id"]
    assert [failure["kind"] for failure in first["failures"]] == ["unknown_symbol"]
    assert first["ingested"] == again["duplicates"] == count(app, "events") >= 5
    assert count(app, "pending_deliveries") == 0
    ingestion.fails(MalformedInvocation, "publish", event={"operation_id": piece["operation_id"]})


def test_ingestion_stops_asking_a_source_after_the_configured_failures(
    load: Load, database: Any, app: Connection[Any]
) -> None:
    with serve() as market:
        market.faults.put("*", Fault(status=429))
        settings = {"MARKET_DATA_URL": market.url, "SYMBOLS": "AAPL,MSFT"}
        settings |= {"BREAKER_FAILURE_THRESHOLD": "2", "BREAKER_COOL_DOWN_SECONDS": "3600"}
        ingestion = load("ingestion", DATABASE_URL=database.url("acp_ingest"), **settings)
        for _ in range(2):
            assert ingestion()["failed_symbols"] == ["AAPL", "MSFT"]
        market.faults.clear()
        assert ingestion()["failed_symbols"] == ["AAPL", "MSFT"]
        app.execute("UPDATE circuit_breakers SET retry_at = retry_at - interval '1 hour'")
        again = ingestion()
    assert again["failed_symbols"] == []
    assert again["ingested"] > 0
    said = [line["source"] for line in ingestion.logs if line["message"] == "the source's breaker is open"]
    assert said == ["yfinance-replay"] * 2  # One run opened the breaker, and one found it open.
    assert count(app, "circuit_breakers") == 1


def test_relay_delivers_its_own_and_leaves_unknown_subscriptions(
    load: Load, database: Any, app: Connection[Any], endpoint_url: str
) -> None:
    failure = replace(look(), payload=SourceFetchFailed(symbol="IBM", kind="malformed", reason="no JSON"), series="")
    with app.transaction():
        *events, unknown = store_events(app, [], [*(look(minute=minute) for minute in range(12)), failure]).events
    sqs = boto3.client("sqs", endpoint_url=endpoint_url)
    queue = sqs.create_queue(QueueName=f"ticks-{uuid.uuid4()}")["QueueUrl"]
    relay = load(
        "relay",
        DATABASE_URL=database.url("acp_relay"),
        CLOUD_ENDPOINT_URL=endpoint_url,
        SUBSCRIPTION_QUEUE_URLS=json.dumps({"signal_lab": queue}),
    )
    answer = relay()
    assert {name: answer[name] for name in ("claimed", "published", "failed", "dead_lettered", "released")} == {
        "claimed": 12,
        "published": 12,
        "failed": 0,
        "dead_lettered": 0,
        "released": 0,
    }
    bodies = []
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        bodies += [json.loads(message["Body"]) for message in messages]
    sqs.close()
    assert sorted(body["event_id"] for body in bodies) == sorted(str(event.event_id) for event in events)
    assert app.execute("SELECT event_id, subscription FROM outbox_states WHERE state = 'pending'").fetchall() == [
        (unknown.event_id, "system_events")
    ]
    assert [line["error"] for line in relay.logs if "SUBSCRIPTION_QUEUE_URLS" in line.get("error", "")]


def test_signal_lab_sends_back_only_what_it_could_not_consume(
    load: Load, database: Any, app: Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, broken = tick(1.0), tick(2.0, minute=1), tick(3.0, minute=2)
    message = broken.to_message()
    message["payload"]["price"] = "3.0"
    signal_lab = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    answer = signal_lab(
        {
            "Records": [
                record_of(first, 1),
                record(json.dumps(message), 2, event_id=str(broken.event_id), trace_id=str(broken.trace_id)),
                record("<html>", 3, trace_id="the-trace"),
                record_of(first, 4),
                record_of(second, 5),
            ]
        }
    )
    assert failures(answer) == ["00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000003"]
    assert {row[0] for row in app.execute("SELECT event_id FROM processed_events")} == {
        first.event_id,
        second.event_id,
    }
    assert app.execute("SELECT price FROM signal_lab_latest_prices").fetchall() == [(2.0,)]
    contract_breaking, not_json = signal_lab.errors
    assert contract_breaking["message"] == "ContractViolation"
    assert contract_breaking["trace_id"] == str(broken.trace_id)
    assert contract_breaking["event_id"] == str(broken.event_id)
    assert contract_breaking["message_id"] == "00000000-0000-4000-8000-000000000002"
    assert contract_breaking["attempt"] == "2"
    assert "price" in contract_breaking["error"]
    assert "'3.0'" in contract_breaking["error"]
    assert not_json["trace_id"] == "the-trace"
    assert "is not JSON" in not_json["error"]
    consumed = [line for line in signal_lab.logs if line.get("state") in {"consumed", "duplicate"}]
    assert [(line["event_id"], line["state"]) for line in consumed] == [
        (str(first.event_id), "consumed"),
        (str(first.event_id), "duplicate"),
        (str(second.event_id), "consumed"),
    ]
    assert {(line["topic"], line["subscription"]) for line in consumed} == {("market.ticks", "signal_lab")}
    assert metrics(capsys) == {"EventsConsumed": 2, "DuplicateDeliveries": 1, "ConsumeFailures": 2}


def test_signal_lab_reports_every_message_of_a_batch_that_failed(load: Load, database: Any) -> None:
    signal_lab = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    answer = signal_lab({"Records": [record("", 1), record("null", 2), record("[]", 3)]})
    assert len(failures(answer)) == len(signal_lab.errors) == 3
    assert failures(signal_lab({"Records": [record_of(tick())]})) == []


def test_signal_lab_goes_on_when_its_connection_is_cut(
    load: Load, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    owner.execute("""
        CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'
    """)
    owner.execute("""
        CREATE TRIGGER cut BEFORE INSERT ON signal_lab_bars
        FOR EACH ROW WHEN (NEW.entity_id = 'CUT') EXECUTE FUNCTION cut()
    """)
    events = [tick(entity="AAPL"), tick(entity="CUT"), tick(entity="MSFT")]
    signal_lab = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    answer = signal_lab({"Records": [record_of(event, number) for number, event in enumerate(events)]})
    assert failures(answer) == ["00000000-0000-4000-8000-000000000001"]
    assert [line["event_id"] for line in signal_lab.errors] == [str(events[1].event_id)]
    processed = {row[0] for row in app.execute("SELECT event_id FROM processed_events")}
    assert processed == {events[0].event_id, events[2].event_id}


def test_signal_lab_asks_once_for_a_lost_postgres_per_batch(
    load: Load, database: Any, app: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        """A database that is there for the first look and the first message, and no longer."""

        asked = 0

        def connection(self) -> Connection[Any]:
            return app

        def same_connection(self) -> Connection[Any]:
            self.asked += 1
            if self.asked > 1:
                raise DatabaseUnavailable("no route to host")
            return app

    lost = Lost()
    signal_lab = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    signal_lab.module.database().close()
    monkeypatch.setattr(signal_lab.module, "database", lambda: lost)
    events = [tick(minute=minute) for minute in range(4)]
    answer = signal_lab({"Records": [record_of(event, number) for number, event in enumerate(events)]})
    assert failures(answer) == [f"00000000-0000-4000-8000-00000000000{number}" for number in (1, 2, 3)]
    assert [line["event_id"] for line in signal_lab.errors] == [str(event.event_id) for event in events[1:]]
    assert lost.asked == 2
    monkeypatch.undo()


def test_migration_brings_an_empty_database_up_and_then_changes_nothing(
    load: Load, empty_database: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = len(read_migrations(MIGRATIONS))
    migration = load("migration", DATABASE_URL=empty_database.owner_url, SUBSCRIPTIONS='{"signal_lab": "market.ticks"}')
    unchanged = {"added": [], "removed": [], "backfilled": 0, "dead_lettered": 0}
    assert migration() == {
        "applied": list(range(1, newest + 1)),
        "version": newest,
        "subscriptions": unchanged | {"added": ["signal_lab"]},
    }
    assert metrics(capsys) == {"MigrationsApplied": newest}
    assert migration() == {"applied": [], "version": newest, "subscriptions": unchanged}
    with connect(empty_database.app_url, application_name="test") as connection:
        assert count(connection, "outbox") == 0


def test_migration_has_the_migrations_that_the_repository_has() -> None:
    assert read_migrations(FUNCTIONS / "migration" / "migrations") == read_migrations(MIGRATIONS)


def test_migration_brings_the_subscriptions_in_line(
    load: Load, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    with app.transaction():
        store_events(app, [], [look(minute=minute) for minute in range(3)])
    wanted = {"signal_lab": "market.ticks", "detector": {"topic": "market.ticks", "from": "beginning"}}
    migration = load("migration", DATABASE_URL=database.owner_url, SUBSCRIPTIONS=json.dumps(wanted))
    assert migration()["subscriptions"] == {
        "added": ["detector"], "removed": ["system_events"], "backfilled": 3, "dead_lettered": 0
    }  # fmt: skip
    assert count(app, "pending_deliveries") == 6
    [line] = [line for line in migration.logs if line["message"] == "migrated"]
    assert line["subscriptions"]["backfilled"] == 3


def test_migration_without_subscriptions_changes_none(load: Load, database: Any, app: Connection[Any]) -> None:
    answer = load("migration", DATABASE_URL=database.owner_url)()
    assert answer["subscriptions"] == {"added": [], "removed": [], "backfilled": 0, "dead_lettered": 0}
    assert app.execute("SELECT count(*) FROM subscriptions WHERE removed_at IS NULL").fetchall() == [(2,)]


def test_a_subscription_that_would_change_its_topic_is_refused(load: Load, database: Any) -> None:
    migration = load("migration", DATABASE_URL=database.owner_url, SUBSCRIPTIONS='{"signal_lab": "system.events"}')
    migration.fails(SubscriptionError, "signal_lab is for topic market.ticks", "another name")


@pytest.mark.parametrize(
    "text",
    [
        "market.ticks",
        "[]",
        "{}",
        '{"signal_lab": ""}',
        '{"signal_lab": null}',
        '{"signal_lab": "ticks"}',
        '{"Signal Lab": "market.ticks"}',
        '{"signal_lab": {"from": "beginning"}}',
        '{"signal_lab": {"topic": "market.ticks", "from": "yesterday"}}',
        '{"signal_lab": {"topic": "market.ticks", "from": []}}',
        '{"signal_lab": {"topic": "market.ticks", "form": "beginning"}}',
    ],
)
def test_subscriptions_that_are_none_are_named_with_the_remedy(load: Load, text: str) -> None:
    migration = load("migration", SUBSCRIPTIONS=text)
    migration.fails(ConfigurationError, "SUBSCRIPTIONS is", '"from": "beginning"', "neither DATABASE_URL")


def test_maintenance_deletes_events_only_with_a_retention(
    load: Load, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    app.execute(
        "INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)"
        " VALUES (gen_random_uuid(), 'fake', now() - interval '50 days', gen_random_uuid(), '{}')"
    )
    nothing = {
        "deleted_events": 0, "deleted_raw_payloads": 0, "deleted_repeated_looks": 0, "finished": True,
        "pinned_horizon": None, "deleted_decisions": 0, "deleted_processed_events": 0, "deleted_delivery_failures": 0,
        "deleted_consume_failures": 0, "deleted_audit": 0, "deleted_kept_answers": 0, "deleted_dead_letters": 0,
    }  # fmt: skip
    assert load("maintenance", DATABASE_URL=database.url("acp_maintain"), EVENT_RETENTION_DAYS="")() == nothing
    forgetful = load("maintenance", DATABASE_URL=database.url("acp_maintain"), EVENT_RETENTION_DAYS="40")
    assert forgetful({"time": "2026-01-05T12:00:00Z"}) == nothing | {"deleted_raw_payloads": 1}
    [line] = [line for line in forgetful.logs if line["message"] == "maintained"]
    assert (line["deleted_raw_payloads"], line["finished"]) == (1, True)
    assert count(app, "raw_payloads") == 0


@pytest.mark.parametrize(
    ("value", "remedy"),
    [("0", "from 30 to 36500"), ("29", "from 30 to 36500"), ("never", "a number from 30"), ("40.5", "a whole number")],
)
def test_a_wrong_setting_of_maintenance_is_named_with_its_remedy(load: Load, value: str, remedy: str) -> None:
    maintenance = load("maintenance", DATABASE_URL=NOWHERE, EVENT_RETENTION_DAYS=value)
    maintenance.fails(ConfigurationError, "EVENT_RETENTION_DAYS", remedy)


def test_an_error_is_not_logged_under_the_last_invocations_trace(load: Load, database: Any) -> None:
    with serve() as market:
        ingestion = load("ingestion", DATABASE_URL=database.url("acp_ingest"), MARKET_DATA_URL=market.url)
        ingestion()
    ingestion.fails(ConfigurationError, event={"symbols": []})
    assert "trace_id" not in ingestion.errors[0]
    assert ingestion.errors[0]["function_request_id"]
