"""The main job: what the schedules ingest is relayed and consumed, and every fault on the way is visible and mended."""

import json
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
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
        lambda: any(line.get("message") == "handed_over" for line in _log(local_cloud, "RelayFunction")),
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


def test_two_commands_list_a_dead_letter_and_redrive_it(local_cloud: LocalCloud, market: Market) -> None:
    assert local_cloud.acp("hold", "signal_lab").returncode == 0
    time.sleep(6)  # A lingering relay reads the breakers every five seconds.
    try:
        event_id = _corrected_bar(local_cloud, market, close=2.5)
        with _subscriptions(local_cloud, {"system_events": "system.events"}) as report:
            assert "signal_lab" in report["subscriptions"]["removed"]
    finally:
        resumed = local_cloud.acp("resume", "signal_lab")
    assert resumed.returncode == 0, resumed.stderr

    listed = local_cloud.acp("dead-letters", "--subscription", "signal_lab", "--reason", "removed", "--json")
    letters = {letter["event_id"]: letter for letter in json.loads(listed.stdout)}
    assert letters[str(event_id)]["reason"] == "subscription removed"
    redriven = local_cloud.acp("redrive", "--subscription", "signal_lab", "--because", "the subscription is back")
    assert redriven.returncode == 0, redriven.stderr
    assert "redriven: signal_lab" in redriven.stdout

    assert local_cloud.acp("relay").returncode == 0
    consumed = "SELECT FROM processed_events WHERE consumer = 'signal_lab' AND event_id = %s"
    wait_for(lambda: local_cloud.query(consumed, event_id), seconds=90, what="the redriven message consumed")
    wait_for(local_cloud.settled, seconds=60, what="its delivery recorded")
    timeline = json.loads(local_cloud.acp("trace", str(event_id), "--json").stdout)
    first, second = (one for one in timeline["deliveries"] if one["subscription"] == "signal_lab")
    assert (first["state"], second["state"]) == ("redriven", "delivered")
    assert first["redriven_by"] == second["operation_id"]
    shown = local_cloud.acp("trace", str(event_id)).stdout
    assert "dead-lettered: subscription removed" in shown
    assert "again for signal_lab (market.ticks): delivered after 1 attempt" in shown


def test_only_a_message_breaking_the_contract_is_dead_lettered(local_cloud: LocalCloud) -> None:
    trace_id = str(uuid.uuid4())
    with _impatient(local_cloud, "MarketTicksQueue") as queue:
        local_cloud.client("sqs").send_message(
            QueueUrl=queue,
            MessageBody='{"event_type": "NOT_A_TICK"}',
            MessageAttributes={"trace_id": {"DataType": "String", "StringValue": trace_id}},
        )
        (letter,) = wait_for(
            lambda: _letters(local_cloud, "--trace", trace_id), seconds=120, what="the message in the list"
        )
    assert (letter["kind"], letter["subscription"], letter["is_redrivable"]) == ("consumer", "signal_lab", False)
    assert "event_id" in letter["reason"]
    number = str(letter["id"])
    assert local_cloud.acp("dead-letters", "--id", number, "--body").stdout == '{"event_type": "NOT_A_TICK"}'
    wait_for(
        lambda: _attribute(local_cloud, local_cloud.output("MarketTicksDeadLetterQueueUrl")) == "0",
        seconds=30,
        what="its dead-letter queue empty",
    )
    refused = local_cloud.acp("redrive", number)
    assert refused.returncode == 1
    assert "the outbox has no such message" in refused.stderr
    discarded = local_cloud.acp("discard", number, "--because", "a test made it")
    assert discarded.returncode == 0, discarded.stderr
    assert _letters(local_cloud, "--trace", trace_id) == []
    lines = wait_for(
        lambda: [line for line in _log(local_cloud, "SignalLabFunction") if line.get("trace_id") == trace_id],
        seconds=30,
        what="the error in SignalLab's log with its trace_id",
    )
    assert lines[0]["level"] == "ERROR"
    assert "event_id" in lines[0]["error"]


def test_four_commands_mend_what_a_consumer_gave_up_on(local_cloud: LocalCloud, market: Market) -> None:
    with psycopg.connect(local_cloud.environ["DATABASE_OWNER_URL"], autocommit=True) as owner:
        owner.execute("ALTER TABLE signal_lab_bars ADD CONSTRAINT poison CHECK (entity_id <> 'MSFT') NOT VALID")
        try:
            with _impatient(local_cloud, "MarketTicksQueue"):
                event_id = str(_corrected_bar(local_cloud, market, close=3.5))
                assert local_cloud.acp("relay").returncode == 0
                (letter,) = wait_for(
                    lambda: _letters(local_cloud, "--event", event_id, "--kind", "consumer"),
                    seconds=150,
                    what="what the consumer gave up on in the list",
                )
        finally:
            owner.execute("ALTER TABLE signal_lab_bars DROP CONSTRAINT poison")
    assert 'violates check constraint "poison"' in letter["reason"]
    # The pipeline is shared: other tests' letters may hold messages that nothing can send again.
    chosen = ("redrive", "--kind", "consumer", "--reason", "poison", "--event", event_id)
    planned = local_cloud.acp(*chosen, "--dry-run", "--json")
    redriven = local_cloud.acp(*chosen, "--because", "mended", "--json")
    assert redriven.returncode == 0, redriven.stderr
    assert json.loads(planned.stdout)["redriven"] == json.loads(redriven.stdout)["redriven"] == {"signal_lab": 1}
    assert local_cloud.acp("relay").returncode == 0
    consumed = "SELECT FROM processed_events WHERE consumer = 'signal_lab' AND event_id = %s"
    wait_for(lambda: local_cloud.query(consumed, event_id), seconds=90, what="the redriven message consumed")
    shown = local_cloud.acp("trace", event_id).stdout
    assert "given up on by signal_lab" in shown
    assert "redriven by" in shown


def test_a_message_that_nobody_consumes_becomes_a_dead_letter(local_cloud: LocalCloud) -> None:
    sqs, queue = local_cloud.client("sqs"), local_cloud.output("SystemEventsQueueUrl")
    trace_id = str(uuid.uuid4())
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"trace_id": trace_id}))

    def given_up() -> list[Any]:
        sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return _letters(local_cloud, "--trace", trace_id)

    (letter,) = wait_for(given_up, seconds=60, what="a message received too often in the list")
    assert (letter["subscription"], letter["reason"][:18]) == ("system_events", "no reason recorded")
    assert local_cloud.acp("discard", "--trace", trace_id, "--because", "a test made it", "--yes").returncode == 0


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


def _corrected_bar(cloud: LocalCloud, market: Market, *, close: float) -> uuid.UUID:
    """Makes the source correct a stored bar; returns the id of the event for the correction."""
    first, ok = cloud.invoke("IngestionFunction", {"symbols": ["MSFT"]})
    assert ok, first
    minute = cloud.query(
        "SELECT max(occurred_at) FROM events WHERE entity_id = 'MSFT' AND event_type = 'MARKET_TICK_INGESTED'"
    )[0][0]
    market.break_symbol("MSFT", {"correct": {"minute": minute.astimezone(UTC).isoformat(), "close": close}})
    corrected, ok = cloud.invoke("IngestionFunction", {"symbols": ["MSFT"]})
    assert ok, corrected
    newest = "SELECT event_id FROM events WHERE entity_id = 'MSFT' AND occurred_at = %s ORDER BY revision DESC LIMIT 1"
    event_id: uuid.UUID = cloud.query(newest, minute)[0][0]
    return event_id


@contextmanager
def _subscriptions(cloud: LocalCloud, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Acts as if a template with these subscriptions were deployed and migrated, and undoes that afterwards."""
    functions, name = cloud.client("lambda"), cloud.output("MigrationFunctionName")
    variables = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]

    def migrate(subscriptions: str) -> dict[str, Any]:
        functions.update_function_configuration(
            FunctionName=name, Environment={"Variables": variables | {"SUBSCRIPTIONS": subscriptions}}
        )
        functions.get_waiter("function_updated").wait(FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        report, ok = cloud.invoke("MigrationFunction", {})
        assert ok, report
        return report

    try:
        yield migrate(json.dumps(wanted))
    finally:
        migrate(variables["SUBSCRIPTIONS"])


@contextmanager
def _impatient(cloud: LocalCloud, queue: str) -> Iterator[str]:
    """Makes a queue give a failed message out again after a second; five times of the template's take too long."""
    sqs, url = cloud.client("sqs"), cloud.output(f"{queue}Url")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "1"})
    time.sleep(3)  # A poll that is under way still uses the visibility with which it started.
    try:
        yield url
    finally:
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "180"})


def _letters(cloud: LocalCloud, *options: str) -> list[Any]:
    listed = cloud.acp("dead-letters", *options, "--json")
    assert listed.returncode == 0, listed.stderr
    letters: list[Any] = json.loads(listed.stdout)
    return letters


def _attribute(cloud: LocalCloud, url: str, name: str = "ApproximateNumberOfMessages") -> str:
    value: str = cloud.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=[name])["Attributes"][name]
    return value


def _log(cloud: LocalCloud, function: str) -> list[dict[str, str]]:
    group = f"/aws/lambda/{cloud.output(f'{function}Name')}"
    logs = cloud.client("logs")
    events = logs.filter_log_events(logGroupName=group, startTime=int(datetime.now(UTC).timestamp() - 600) * 1000)
    lines = [line for event in events["events"] for line in event["message"].splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]
