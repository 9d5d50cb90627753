"""Each function's app.py as Lambda runs it: from its file, set by the environment, on a real Postgres."""

import importlib.util
import io
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from moto import mock_aws
from moto.server import ThreadedMotoServer
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict
from tests.conftest import HELPERS_GRANTS, ROLES, SUBSCRIPTIONS

from control_plane.ingestion.store import Look, store_events
from control_plane.model.contract import Event, SourceFetchFailed, new_event
from control_plane.model.errors import (
    ConfigurationError,
    ControlPlaneError,
    DatabaseUnavailable,
    SchemaVersionMismatch,
)
from control_plane.ops.migrations import MigrationError, migrate, read_migrations
from control_plane.ops.subscriptions import SubscriptionError, sync_subscriptions
from control_plane.platform.aws import SecretUnavailable
from control_plane.platform.database import connect
from domains.finance.events import MarketTick
from local_cloud.net import free_port
from local_cloud.postgres import PostgresServer
from market_replay import Fault, serve

FUNCTIONS = Path(__file__).parents[2] / "functions"
MIGRATIONS = Path(__file__).parents[2] / "db" / "migrations"
NAMES = ["ingestion", "relay", "signal_lab", "migration", "maintenance"]
PASSWORD = "test-password"
NOWHERE = f"postgresql://acp_test:{PASSWORD}@127.0.0.1:1/database"
"""For what is refused before the database is asked."""
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@dataclass
class FakeContext:
    """What Lambda gives a handler: docs.aws.amazon.com/lambda/latest/dg/python-context.html."""

    function_name: str = "function"
    function_version: str = "$LATEST"
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:123456789012:function:function"
    memory_limit_in_mb: str = "512"
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    log_group_name: str = "/aws/lambda/function"
    log_stream_name: str = "2026/01/05/[$LATEST]0123456789abcdef0123456789abcdef"
    identity: None = None
    client_context: None = None

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


class Function:
    """One warm environment: a function's module, and what it logged."""

    def __init__(self, name: str) -> None:
        path = FUNCTIONS / name / "app.py"
        spec = importlib.util.spec_from_file_location(f"app_of_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self._output = io.StringIO()
        # The logger outlives the module, and so does the stream that it was first given.
        self.module.telemetry.logger.registered_handler.setStream(self._output)

    def __call__(self, event: Any = None) -> dict[str, Any]:
        result = self.module.handler({} if event is None else event, FakeContext())
        answer: dict[str, Any] = json.loads(json.dumps(result))  # as Lambda answers
        return answer

    @property
    def output(self) -> str:
        return self._output.getvalue()

    @property
    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [line for line in self.logs if line["level"] in {"ERROR", "CRITICAL"}]

    def forget_logs(self) -> None:
        self._output.seek(0)
        self._output.truncate()

    def fails(self, error: type[ControlPlaneError], *texts: str, event: Any = None) -> str:
        """Invokes it, expecting an error with these texts: raised, logged once, its trace of no interest."""
        self.forget_logs()
        with pytest.raises(error) as caught:
            self(event)
        message = str(caught.value)
        for text in texts:
            assert text in message
        assert [(line["message"], line["error"]) for line in self.errors] == [(error.__name__, message)]
        assert "exception" not in self.errors[0]
        assert PASSWORD not in self.output + message
        return message

    def close(self) -> None:
        if self.module.database.cache_info().currsize:
            self.module.database().close()
        health = getattr(self.module, "health", None)
        if health is not None and health.cache_info().currsize:
            health().close()


type Load = Callable[..., Function]

VARIABLES = """
    DATABASE_URL DATABASE_SECRET_ARN CLOUD_ENDPOINT_URL SUBSCRIPTION_QUEUE_URLS SYMBOLS MARKET_DATA_URL
    MAX_DELIVERY_ATTEMPTS RELAY_LINGER_SECONDS RELAY_CLAIM_SIZE RELAY_PUBLISH_CONCURRENCY LEASE_SECONDS
    BREAKER_FAILURE_THRESHOLD BREAKER_COOL_DOWN_SECONDS EVENT_RETENTION_DAYS SUBSCRIPTIONS
""".split()  # noqa: SIM905 - as a list it takes a line each
NEEDED = {
    "ingestion": {"SYMBOLS": "AAPL"},
    "relay": {"SUBSCRIPTION_QUEUE_URLS": '{"signal_lab": "http://127.0.0.1:1/queue"}'},
    "signal_lab": {},
    "migration": {},
    "maintenance": {},
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Loads a function into an environment of its own: what it needs, and the variables given."""
    with ExitStack() as stack:

        def load(name: str, **variables: str) -> Function:
            for variable in VARIABLES:
                monkeypatch.delenv(variable, raising=False)
            for variable, value in (NEEDED[name] | variables).items():
                monkeypatch.setenv(variable, value)
            function = Function(name)
            stack.callback(function.close)
            return function

        yield load


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    """SQS over HTTP, as the relay speaks to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def cloud() -> Iterator[None]:
    """SQS and Secrets Manager, within the process."""
    with mock_aws():
        yield


def tick(price: float = 100.0, *, minute: int = 0, entity: str = "AAPL") -> Event:
    payload = MarketTick(price=price, open=price, high=price, low=price, volume=10, currency="USD", interval="1m")
    return new_event(
        payload,
        source="yfinance",
        entity_id=entity,
        entity_type="equity",
        occurred_at=NOON + timedelta(minutes=minute),
        observed_at=NOON + timedelta(hours=1),
        ingested_at=NOON + timedelta(hours=1),
        trace_id=uuid.uuid4(),
        series="1m",
    )


def look(*, minute: int = 0) -> Look:
    """A look that becomes such a tick."""
    event = tick(minute=minute)
    return Look(
        MarketTick(**event.payload),
        source=event.source,
        entity_id=event.entity_id,
        entity_type=event.entity_type,
        occurred_at=event.occurred_at,
        observed_at=event.observed_at,
        trace_id=event.trace_id,
        series=event.series,
    )


def record(body: str, number: int = 1, **attributes: str) -> dict[str, Any]:
    """An SQS record as an event source mapping delivers it."""
    return {
        "messageId": f"00000000-0000-4000-8000-{number:012}",
        "receiptHandle": f"receipt-{number}",
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": "2",
            "SentTimestamp": "1767618000000",
            "SenderId": "AIDAEXAMPLE",
            "ApproximateFirstReceiveTimestamp": "1767618000100",
        },
        "messageAttributes": {
            name: {"stringValue": value, "stringListValues": [], "binaryListValues": [], "dataType": "String"}
            for name, value in attributes.items()
        },
        "md5OfBody": "0" * 32,
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:market-ticks",
        "awsRegion": "us-east-1",
    }


def record_of(event: Event, number: int = 1) -> dict[str, Any]:
    return record(json.dumps(event.to_message()), number, event_id=str(event.event_id), trace_id=str(event.trace_id))


def failures(answer: dict[str, Any]) -> list[str]:
    return [item["itemIdentifier"] for item in answer["batchItemFailures"]]


def count(connection: Connection[Any], table: str) -> int:
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
    assert row is not None
    number: int = row[0]
    return number


# What they do


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


def test_ingestion_takes_the_events_own_symbols_and_names_the_one_it_could_not_have(
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


def test_ingestion_leaves_a_source_alone_that_fails_as_often_as_it_is_told(
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
    assert said == ["yfinance-replay"] * 2  # by the run that opened it, and by the one that found it open
    assert count(app, "circuit_breakers") == 1


def test_relay_delivers_what_is_its_and_leaves_what_it_does_not_know(
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


def test_signal_lab_sends_back_only_what_it_could_not_consume_and_says_why_once(
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


def test_signal_lab_answers_a_batch_of_which_nothing_could_be_consumed(load: Load, database: Any) -> None:
    signal_lab = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    answer = signal_lab({"Records": [record("", 1), record("null", 2), record("[]", 3)]})
    assert len(failures(answer)) == len(signal_lab.errors) == 3
    assert failures(signal_lab({"Records": [record_of(tick())]})) == []


def test_signal_lab_goes_on_with_the_next_message_when_its_connection_is_cut(
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


def test_signal_lab_asks_for_a_lost_postgres_once_and_fails_the_rest_of_the_batch_at_once(
    load: Load, database: Any, app: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        """There for the first look and the first message."""

        asked = 0

        def connection(self) -> Connection[Any]:
            self.asked += 1
            if self.asked > 2:
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
    assert lost.asked == 3
    monkeypatch.undo()


def metrics(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Sums of what was flushed since the last look, by name."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    names = [(line, metric["Name"]) for line in lines for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]]
    return {name: sum(line[name]) for line, name in names}


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


def test_maintenance_forgets_events_only_where_it_is_asked_to(
    load: Load, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    app.execute(
        "INSERT INTO raw_payloads (id, source, fetched_at, trace_id, payload_json)"
        " VALUES (gen_random_uuid(), 'fake', now() - interval '50 days', gen_random_uuid(), '{}')"
    )
    nothing = {
        "deleted_events": 0, "deleted_raw_payloads": 0, "deleted_repeated_looks": 0, "finished": True,
        "pinned_horizon": None,
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


def test_an_error_of_the_next_invocation_is_not_logged_under_the_trace_of_the_last(load: Load, database: Any) -> None:
    with serve() as market:
        ingestion = load("ingestion", DATABASE_URL=database.url("acp_ingest"), MARKET_DATA_URL=market.url)
        ingestion()
    ingestion.fails(ConfigurationError, event={"symbols": []})
    assert "trace_id" not in ingestion.errors[0]
    assert ingestion.errors[0]["function_request_id"]


# What they refuse


@pytest.mark.parametrize("name", NAMES)
def test_neither_url_nor_secret_is_an_error_that_names_both(load: Load, name: str) -> None:
    load(name).fails(ConfigurationError, "neither DATABASE_URL nor DATABASE_SECRET_ARN is set")
    load(name, DATABASE_URL=" ", DATABASE_SECRET_ARN="").fails(ConfigurationError, "neither DATABASE_URL")


@pytest.mark.parametrize("name", NAMES)
def test_both_url_and_secret_is_an_error_that_names_both(load: Load, name: str) -> None:
    function = load(name, DATABASE_URL=NOWHERE, DATABASE_SECRET_ARN="arn:aws:secretsmanager:x")
    function.fails(ConfigurationError, "both DATABASE_URL and DATABASE_SECRET_ARN are set", "keep one")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "url",
    [
        f"mysql://acp_test:{PASSWORD}@127.0.0.1:3306/database",
        f"http://acp_test:{PASSWORD}@127.0.0.1/database?ssl=1",
        f"postgresql://acp_test:{PASSWORD}%zz@127.0.0.1/database",
        # Not encoded, an @ or a / ends the password early for libpq, and the rest of it begins the host or database.
        f"postgresql://acp_test:x@{PASSWORD}@127.0.0.1/database",
        f"postgresql://acp_test:{PASSWORD}/x@127.0.0.1/database",
        f"postgresql://acp_test:x/{PASSWORD}@127.0.0.1/database",
        PASSWORD,
    ],
)
def test_a_url_that_is_none_is_named_and_not_shown(load: Load, name: str, url: str) -> None:
    load(name, DATABASE_URL=url).fails(ConfigurationError, "DATABASE_URL cannot be read", "postgresql://user:password@")


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_password_is_an_error_that_names_whose(load: Load, database: Any, name: str) -> None:
    function = load(name, DATABASE_URL=database.app_url.replace(PASSWORD, f"not-{PASSWORD}"))
    function.fails(DatabaseUnavailable, "acp_test@127.0.0.1:", "password authentication failed")


@pytest.mark.parametrize("name", NAMES)
def test_a_port_where_nothing_listens_is_an_error_that_names_it(load: Load, name: str) -> None:
    url = f"postgresql://acp_test:{PASSWORD}@127.0.0.1:{free_port()}/database"
    load(name, DATABASE_URL=url).fails(DatabaseUnavailable, url.partition(f":{PASSWORD}@")[2], "Connection refused")


@pytest.mark.parametrize("host", ["no..where", "n" * 64])
def test_a_host_that_no_name_server_could_be_asked_for_is_named(load: Load, host: str) -> None:
    function = load("signal_lab", DATABASE_URL=f"postgresql://acp_test:{PASSWORD}@{host}/database")
    function.fails(DatabaseUnavailable, f"acp_test@{host}:5432/database")


def test_a_database_that_does_not_exist_is_named(load: Load, database: Any) -> None:
    function = load("signal_lab", DATABASE_URL=database.url("acp_consume").replace(database.name, "nowhere"))
    function.fails(DatabaseUnavailable, '"nowhere" does not exist')


@pytest.mark.parametrize("name", ["ingestion", "relay", "signal_lab", "maintenance"])
@pytest.mark.parametrize("version", range(len(read_migrations(MIGRATIONS))))
def test_a_schema_that_is_behind_is_refused_each_time_until_it_is_migrated(
    load: Load, empty_database: Any, name: str, version: int
) -> None:
    migrations = read_migrations(MIGRATIONS)
    with connect(empty_database.owner_url, application_name="test") as owner:
        if version:
            migrate(owner, migrations[:version])
        function = load(name, DATABASE_URL=empty_database.app_url)
        texts = [f"at version {version}", f"needs {len(migrations)}", "scripts/acp db migrate", "MigrationFunction"]
        event = {"Records": [record_of(tick())]} if name == "signal_lab" else {}
        for _ in range(2):
            function.fails(SchemaVersionMismatch, *texts, event=event)
        if name == "signal_lab":
            migrate(owner, migrations)
            assert failures(function(event)) == []


@pytest.mark.parametrize("name", ["ingestion", "relay", "signal_lab", "maintenance"])
def test_a_database_of_the_older_layout_is_refused(
    load: Load, database: Any, owner: Connection[Any], name: str
) -> None:
    owner.execute("UPDATE schema_migrations SET name = 'events_and_outbox'")
    function = load(name, DATABASE_URL=database.app_url)
    event = {"Records": [record_of(tick())]} if name == "signal_lab" else {}
    function.fails(SchemaVersionMismatch, "older layout", "new, empty database", "scripts/acp down", event=event)


def test_migration_refuses_a_database_of_the_older_layout(load: Load, database: Any, owner: Connection[Any]) -> None:
    owner.execute("UPDATE schema_migrations SET name = 'events_and_outbox'")
    load("migration", DATABASE_URL=database.owner_url).fails(MigrationError, "older layout", "scripts/acp down")


@pytest.mark.parametrize("symbols", ["", " , ,"])
def test_no_symbols_are_an_error_that_names_the_variable(load: Load, symbols: str) -> None:
    load("ingestion", DATABASE_URL=NOWHERE, SYMBOLS=symbols).fails(ConfigurationError, "SYMBOLS is empty", "AAPL")


@pytest.mark.parametrize(
    "symbols", ["AAPL", {"AAPL": 1}, [1], [None], [["AAPL"]], 7, [], ["", " "], ["A B"], ["A" * 33]]
)
def test_symbols_of_the_event_that_are_none_are_named(load: Load, symbols: object) -> None:
    function = load("ingestion", DATABASE_URL=NOWHERE)
    function.fails(ConfigurationError, "symbols of the event", event={"symbols": symbols})


@pytest.mark.parametrize("seconds", ["5", "", True, -1, 841, float("nan"), [5], {}])
def test_a_linger_of_the_event_that_is_no_number_of_seconds_is_named(load: Load, seconds: object) -> None:
    function = load("relay", DATABASE_URL=NOWHERE)
    texts = ["linger_seconds of the event", repr(seconds), "from 0 to 840"]
    function.fails(ConfigurationError, *texts, event={"linger_seconds": seconds})


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("SUBSCRIPTION_QUEUE_URLS", "", "must map subscriptions to queue URLs"),
        ("SUBSCRIPTION_QUEUE_URLS", "signal_lab", "must be a JSON object"),
        ("SUBSCRIPTION_QUEUE_URLS", '["signal_lab"]', "must be a JSON object"),
        ("SUBSCRIPTION_QUEUE_URLS", '{"signal_lab": ""}', "must be a JSON object"),
        ("RELAY_LINGER_SECONDS", "soon", "a number from 0 to 840"),
        ("RELAY_CLAIM_SIZE", "1.5", "a whole number"),
        ("MAX_DELIVERY_ATTEMPTS", "0", "from 1 to 100"),
        ("LEASE_SECONDS", "10", "more than the 10 seconds a send may take"),
        ("CLOUD_ENDPOINT_URL", "localhost:4566", "http:// or https://"),
    ],
)
def test_a_wrong_setting_of_the_relay_is_named_with_its_remedy(
    load: Load, variable: str, value: str, remedy: str
) -> None:
    load("relay", DATABASE_URL=NOWHERE, **{variable: value}).fails(ConfigurationError, variable, remedy)


def test_every_wrong_setting_is_named_at_once(load: Load) -> None:
    function = load("ingestion", SYMBOLS="A B", MARKET_DATA_URL="yahoo")
    function.fails(ConfigurationError, "SYMBOLS", "MARKET_DATA_URL", "neither DATABASE_URL")


# Postgres, gone and back


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server with the schema that a test may stop; it comes back on the same port."""
    server = PostgresServer(tmp_path / "data", password=PASSWORD, port=free_port(), fsync=False)
    with server:
        with connect(server.url(), application_name="test") as connection:
            connection.execute(sql.SQL("CREATE ROLE acp_test LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
            migrate(connection, read_migrations(MIGRATIONS))
            sync_subscriptions(connection, SUBSCRIPTIONS)
            roles = sql.SQL(", ").join(map(sql.Identifier, ROLES))
            connection.execute(sql.SQL("GRANT {} TO acp_test").format(roles))
            connection.execute(HELPERS_GRANTS)
        yield server


def test_postgres_down_at_the_start_loses_nothing_and_is_found_when_it_is_up(
    load: Load, own_server: PostgresServer
) -> None:
    url = own_server.url("acp_test")
    own_server.stop("immediate")
    event = {"Records": [record_of(tick())]}
    signal_lab = load("signal_lab", DATABASE_URL=url)
    for _ in range(2):
        # Raised, not answered: the whole batch stays on its queue.
        signal_lab.fails(DatabaseUnavailable, "Connection refused", event=event)
    own_server.start()
    assert own_server.url("acp_test") == url
    assert failures(signal_lab(event)) == []


def test_postgres_down_in_the_middle_loses_nothing_and_is_found_when_it_is_back(
    load: Load, own_server: PostgresServer, endpoint_url: str
) -> None:
    url = own_server.url("acp_test")
    sqs = boto3.client("sqs", endpoint_url=endpoint_url)
    queue = sqs.create_queue(QueueName=f"ticks-{uuid.uuid4()}")["QueueUrl"]
    sqs.close()
    relay = load(
        "relay",
        DATABASE_URL=url,
        CLOUD_ENDPOINT_URL=endpoint_url,
        SUBSCRIPTION_QUEUE_URLS=json.dumps({"signal_lab": queue}),
    )
    assert relay()["claimed"] == 0
    with connect(url, application_name="test") as connection, connection.transaction():
        store_events(connection, [], [look()])
    own_server.stop("immediate")
    for _ in range(2):
        relay.fails(DatabaseUnavailable, "Connection refused")
    own_server.start()
    assert relay()["published"] == 1


def test_a_restart_of_postgres_between_two_invocations_goes_unnoticed(load: Load, own_server: PostgresServer) -> None:
    signal_lab = load("signal_lab", DATABASE_URL=own_server.url("acp_test"))
    assert failures(signal_lab({"Records": [record_of(tick())]})) == []
    own_server.stop("immediate")
    own_server.start()
    assert failures(signal_lab({"Records": [record_of(tick(minute=1))]})) == []
    assert signal_lab.errors == []


# The URL as a secret


@dataclass
class Secret:
    """A secret of the local Secrets Manager."""

    client: Any
    arn: str

    def put(self, text: str) -> None:
        self.client.put_secret_value(SecretId=self.arn, SecretString=text)


@pytest.fixture
def secret(cloud: None) -> Iterator[Secret]:
    client = boto3.client("secretsmanager")
    answer = client.create_secret(Name=f"database-{uuid.uuid4()}", SecretString="to be put")
    yield Secret(client, answer["ARN"])
    client.close()


def test_the_url_may_be_a_secret_as_text_or_as_json(load: Load, database: Any, cloud: None, secret: Secret) -> None:
    parts = conninfo_to_dict(database.app_url)
    rds = {"username": parts["user"], "engine": "postgres", "dbInstanceIdentifier": "prices"}
    rds |= {name: parts[name] for name in ("password", "host", "port", "dbname")}
    as_json = [json.dumps(fields) for fields in ({"url": database.app_url, "role": "acp_test"}, rds)]
    for text in (database.app_url, f" {database.app_url}\n", *as_json):
        secret.put(text)
        signal_lab = load("signal_lab", DATABASE_SECRET_ARN=secret.arn)
        assert failures(signal_lab({"Records": [record_of(tick())]})) == []


def test_a_secret_that_does_not_exist_is_named(load: Load, cloud: None) -> None:
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:nowhere-AbCdEf"
    function = load("signal_lab", DATABASE_SECRET_ARN=arn)
    function.fails(SecretUnavailable, arn, "ResourceNotFoundException")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"password": PASSWORD}),
        json.dumps({"url": [PASSWORD]}),
        f'{{"url": "{PASSWORD}',
        f"the password is {PASSWORD}",
        json.dumps({"url": f"mysql://acp_test:{PASSWORD}@127.0.0.1/database"}),
    ],
)
def test_a_secret_without_a_url_is_named_and_not_shown(load: Load, cloud: None, secret: Secret, text: str) -> None:
    secret.put(text)
    function = load("signal_lab", DATABASE_SECRET_ARN=secret.arn)
    function.fails(ConfigurationError, secret.arn, "postgresql://")


@pytest.fixture
def rotating(postgres: PostgresServer, database: Any) -> Iterator[Callable[[str], str]]:
    """Sets the password of a role made for the purpose, ends its sessions, and returns its URL."""
    role = sql.Identifier("rotating")
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE acp_consume").format(role))

        def rotate(password: str) -> str:
            admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
            admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'rotating'")
            return postgres.url("rotating", database.name, password)

        yield rotate
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_rotated_secret_is_picked_up_when_the_connection_is_opened_again(
    load: Load, cloud: None, secret: Secret, rotating: Callable[[str], str]
) -> None:
    secret.put(rotating(f"old-{PASSWORD}"))
    signal_lab = load("signal_lab", DATABASE_SECRET_ARN=secret.arn)
    assert failures(signal_lab({"Records": [record_of(tick())]})) == []
    new_url = rotating(f"new-{PASSWORD}")
    event = {"Records": [record_of(tick(minute=1))]}
    signal_lab.fails(DatabaseUnavailable, "rotating@", "password authentication failed", event=event)
    secret.put(new_url)
    assert failures(signal_lab(event)) == []
