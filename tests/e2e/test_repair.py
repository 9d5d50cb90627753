"""What was given up on, by the relay or by a consumer: it is listed with its reason, and sent again or discarded."""

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from tests.e2e.conftest import LocalCloud, Market, wait_for
from tests.e2e.test_ops_api import ask
from tests.interrupts import run

from control_plane.ingestion.store import Look, RawPayload, store_events
from control_plane.platform.database import connect
from domains.finance.events import MarketTick

LONG_NAME = "\N{MUSICAL SYMBOL G CLEF}" * 128
"""As long a name as the contract allows."""
MOST_BYTES = 1200
"""A limit for a queue: a message of a source and about an entity with LONG_NAME has more, any other tick has less."""


def test_two_commands_list_a_dead_letter_and_redrive_it(local_cloud: LocalCloud, market: Market) -> None:
    try:
        assert local_cloud.acp("hold", "signal_lab").returncode == 0
        time.sleep(6)  # A lingering relay reads the breakers every five seconds.
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
        wait_for(lambda: _is_dead_letter(local_cloud, trace_id), seconds=120, what="the message given up on")
    (letter,) = _letters(local_cloud, "--trace", trace_id)
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
        lambda: [line for line in local_cloud.log("SignalLabFunction") if line.get("trace_id") == trace_id],
        seconds=30,
        what="the error in SignalLab's log with its trace_id",
    )
    assert lines[0]["level"] == "ERROR"
    assert "event_id" in lines[0]["error"]


def test_four_commands_mend_what_the_relay_and_a_consumer_gave_up_on(local_cloud: LocalCloud, tmp_path: Path) -> None:
    """A tick is refused by one queue, for its size, and by the consumer of another; a URL and a token mend both."""
    commands: list[Sequence[str]] = []
    token = _operator(local_cloud)

    def acp(*arguments: str) -> str:
        """Runs acp as where there is no profile and no local cloud; returns what it printed."""
        commands.append(arguments)
        command = [sys.executable, "-m", "acp_cli", "--url", local_cloud.environ["API_URL"], "--token", token]
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ACP_STATE": str(tmp_path / "state")}
        ran = run([*command, *arguments], env=environ, cwd=tmp_path, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    with (
        _attribute_set(local_cloud, "DetectorQueue", "MaximumMessageSize", str(MOST_BYTES)),
        _impatient(local_cloud, "MarketTicksQueue"),
        _refused_by_signal_lab(local_cloud, LONG_NAME),
    ):
        event_id = _store_tick(local_cloud, LONG_NAME, source=LONG_NAME)
        both = "SELECT FROM dead_letters JOIN outbox ON outbox_id = outbox.id WHERE outbox.event_id = %s"
        wait_for(
            lambda: len(local_cloud.query(both, event_id)) == 2, seconds=240, what="the relay and the consumer gave up"
        )

    chosen = ("--event", str(event_id))
    letters = {letter["kind"]: letter for letter in json.loads(acp("dead-letters", *chosen, "--json"))}
    assert {kind: letter["subscription"] for kind, letter in letters.items()} == {
        "relay": "detector",
        "consumer": "signal_lab",
    }
    assert f"{MOST_BYTES} bytes" in letters["relay"]["reason"]
    assert 'violates check constraint "poison"' in letters["consumer"]["reason"]
    would = json.loads(acp("redrive", *chosen, "--dry-run", "--json"))
    done = json.loads(acp("redrive", *chosen, "--because", "mended", "--json"))
    assert would["redriven"] == done["redriven"] == {"detector": 1, "signal_lab": 1}
    consumed = "SELECT count(*) FROM processed_events WHERE consumer IN ('detector', 'signal_lab') AND event_id = %s"
    wait_for(lambda: local_cloud.query(consumed, event_id) == [(2,)], seconds=150, what="both messages consumed")
    shown = acp("trace", str(event_id))
    assert "given up on by signal_lab" in shown
    assert "redriven by" in shown
    assert "processed by detector" in shown
    assert "processed by signal_lab" in shown
    assert len(commands) <= 4


def test_a_message_that_nobody_consumes_becomes_a_dead_letter(local_cloud: LocalCloud) -> None:
    sqs, queue = local_cloud.client("sqs"), local_cloud.output("SystemEventsQueueUrl")
    trace_id = str(uuid.uuid4())
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"trace_id": trace_id}))

    def given_up() -> bool:
        sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return _is_dead_letter(local_cloud, trace_id)

    wait_for(given_up, seconds=60, what="a message that was received too often given up on")
    (letter,) = _letters(local_cloud, "--trace", trace_id)
    assert (letter["subscription"], letter["reason"][:18]) == ("system_events", "no reason recorded")
    assert local_cloud.acp("discard", "--trace", trace_id, "--because", "a test made it", "--yes").returncode == 0


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


def _operator(cloud: LocalCloud) -> str:
    """Makes a token that may operate; returns it."""
    body = {"name": f"operator-{uuid.uuid4().hex[:8]}", "scopes": ["operate"], "reason": "a test"}
    status, made = ask(cloud, "POST", "/tokens", body, token=cloud.environ["API_TOKEN"])
    assert status == 201, made
    token: str = made["token"]
    return token


def _store_tick(cloud: LocalCloud, entity_id: str, *, source: str) -> uuid.UUID:
    """Stores a tick as ingestion does, for every subscription; returns its event's id."""
    now, raw_id, trace_id = datetime.now(UTC), uuid.uuid4(), uuid.uuid4()
    raw = RawPayload(raw_id, source, entity_id, now, None, now, trace_id, payload={})
    tick = MarketTick(price=1.0, open=1.0, high=1.0, low=1.0, volume=0, currency="XTS", interval="1m")
    look = Look(
        tick,
        source=source,
        entity_id=entity_id,
        entity_type=None,
        occurred_at=now,
        observed_at=now,
        trace_id=trace_id,
        series="1m",
        raw_payload_id=raw_id,
    )
    with connect(cloud.environ["DATABASE_OWNER_URL"], application_name="test") as owner, owner.transaction():
        ((stored,),) = (store_events(owner, [raw], [look]).looks,)
    assert stored.event is not None
    return stored.event.event_id


@contextmanager
def _refused_by_signal_lab(cloud: LocalCloud, entity_id: str) -> Iterator[None]:
    """Makes SignalLab's table refuse bars of an entity."""
    with psycopg.connect(cloud.environ["DATABASE_OWNER_URL"], autocommit=True) as owner:
        refused = sql.SQL("ALTER TABLE signal_lab_bars ADD CONSTRAINT poison CHECK (entity_id <> {}) NOT VALID")
        owner.execute(refused.format(sql.Literal(entity_id)))
        try:
            yield
        finally:
            owner.execute("ALTER TABLE signal_lab_bars DROP CONSTRAINT poison")


@contextmanager
def _attribute_set(cloud: LocalCloud, queue: str, name: str, value: str) -> Iterator[str]:
    """Gives an attribute of a queue another value; yields the queue's URL."""
    sqs, url = cloud.client("sqs"), cloud.output(f"{queue}Url")
    before = _attribute(cloud, url, name)
    sqs.set_queue_attributes(QueueUrl=url, Attributes={name: value})
    try:
        yield url
    finally:
        sqs.set_queue_attributes(QueueUrl=url, Attributes={name: before})


@contextmanager
def _impatient(cloud: LocalCloud, queue: str) -> Iterator[str]:
    """Makes a queue give a failed message out again after a second; five times of the template's take too long."""
    with _attribute_set(cloud, queue, "VisibilityTimeout", "1") as url:
        time.sleep(3)  # A poll that is under way still uses the visibility with which it started.
        yield url


def _is_dead_letter(cloud: LocalCloud, trace_id: str) -> bool:
    """Whether a message is in the list, without the time that a command takes to start."""
    return cloud.query("SELECT count(*) FROM dead_letters WHERE trace_id = %s", trace_id) == [(1,)]


def _letters(cloud: LocalCloud, *options: str) -> list[Any]:
    listed = cloud.acp("dead-letters", *options, "--json")
    assert listed.returncode == 0, listed.stderr
    letters: list[Any] = json.loads(listed.stdout)
    return letters


def _attribute(cloud: LocalCloud, url: str, name: str = "ApproximateNumberOfMessages") -> str:
    value: str = cloud.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=[name])["Attributes"][name]
    return value
