"""DeadLetterFunction on a real Postgres, with a queue that gives up: what is given up on is kept once, and mended."""

import json
import uuid
from typing import Any

import boto3
import pytest
from psycopg import Connection
from tests.integration import seeds
from tests.integration.functions.invoked import Function, Load, failures, metrics, record, record_of, tick
from tests.integration.redriving import redrive

from control_plane.model.errors import ConfigurationError, DatabaseUnavailable, MalformedInvocation
from control_plane.ops.dead_letters import DeadLetterFilter, read_content, read_dead_letters

MIB = 2**20
NO_REASON = "no reason recorded: the consumer was killed, timed out or did not reach Postgres before it could say"


@pytest.fixture
def dead_letter(load: Load, database: Any) -> Function:
    return load("dead_letter", DATABASE_URL=database.url("acp_maintain"))


def given_up(body: str, number: int = 1, *, queue: str = "ticks-dead", **attributes: str) -> dict[str, Any]:
    """Returns a record of a dead-letter queue."""
    return record(body, number, **attributes) | {"eventSourceARN": f"arn:aws:sqs:us-east-1:123456789012:{queue}"}


def letters(connection: Connection[Any], **conditions: Any) -> list[Any]:
    return list(reversed(read_dead_letters(connection, DeadLetterFilter(**conditions), limit=100)))


def bodies(connection: Connection[Any]) -> list[bytes]:
    return [row[0] for row in connection.execute("SELECT body FROM dead_letters ORDER BY id").fetchall()]


# The whole way


def lambda_record(message: Any, arn: str) -> dict[str, Any]:
    """Returns a received message as an event source mapping hands it on."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message["Attributes"],
        "messageAttributes": {
            name: {"stringValue": value.get("StringValue"), "dataType": value["DataType"]}
            for name, value in message.get("MessageAttributes", {}).items()
        },
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
    }


class Queue:
    """A queue of the emulator, and what its event source mapping does: a batch's failures stay, all else is deleted."""

    def __init__(self, sqs: Any, name: str, *, dead_letters_to: str | None = None) -> None:
        self._sqs = sqs
        policy = {"deadLetterTargetArn": dead_letters_to, "maxReceiveCount": 3}
        attributes = {"RedrivePolicy": json.dumps(policy)} if dead_letters_to else {}
        self.url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        self.arn = sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]

    def feed(self, function: Function, *, forgets: bool = True) -> int:
        """Hands the function one batch; returns how many messages it was. Without ``forgets``, none is deleted."""
        found = self._sqs.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=0,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages", [])
        if found:
            stay = failures(function({"Records": [lambda_record(message, self.arn) for message in found]}))
            for message in found:
                if forgets and message["MessageId"] not in stay:
                    self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return len(found)


def test_a_message_that_a_consumer_gave_up_on_is_read_redriven_and_consumed(
    load: Load, database: Any, app: Connection[Any], owner: Connection[Any], endpoint_url: str
) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    sqs = boto3.client("sqs", endpoint_url=endpoint_url)
    name = f"ticks-{uuid.uuid4()}"
    end = Queue(sqs, f"{name}-dead")
    queue = Queue(sqs, name, dead_letters_to=end.arn)

    def function(which: str, role: str, **variables: str) -> Function:
        return load(which, DATABASE_URL=database.url(role), CLOUD_ENDPOINT_URL=endpoint_url, **variables)

    def relay() -> Any:
        urls = json.dumps({"signal_lab": queue.url})
        return function("relay", "acp_relay", SUBSCRIPTION_QUEUE_URLS=urls)()

    def consume() -> int:
        return queue.feed(function("signal_lab", "acp_consume"))

    assert relay()["published"] == 1
    owner.execute("ALTER TABLE signal_lab_bars ADD CONSTRAINT poison CHECK (price < 0) NOT VALID")
    assert [consume() for _ in range(4)] == [1, 1, 1, 0]
    # It is read twice before it is deleted: killed after the commit, Lambda hands it out again.
    moving = function("dead_letter", "acp_maintain", DEAD_LETTER_QUEUES=json.dumps({"signal_lab": f"{name}-dead"}))
    assert [end.feed(moving, forgets=False), end.feed(moving), end.feed(moving)] == [1, 1, 0]

    [letter] = letters(app)
    assert (letter.kind, letter.subscription, letter.event_id, letter.topic) == (
        "consumer",
        "signal_lab",
        event_id,
        "market.ticks",
    )
    assert letter.reason.startswith('CheckViolation: new row for relation "signal_lab_bars"')
    assert (letter.is_redrivable, letter.delivery_attempts >= 3) == (True, True)
    content = read_content(app, letter.id)
    assert content is not None
    assert [failure["attempt"] for failure in content.failures] == [1, 2, 3]

    owner.execute("ALTER TABLE signal_lab_bars DROP CONSTRAINT poison")
    operation = redrive(owner, DeadLetterFilter(kind="consumer"))
    assert operation.plan["letters"] == {"signal_lab": 1}
    assert relay()["published"] == 1
    assert consume() == 1
    sqs.close()
    assert app.execute("SELECT event_id FROM processed_events").fetchall() == [(event_id,)]
    [resolved] = read_dead_letters(app, limit=2, with_resolved=True)
    assert (resolved.resolution, resolved.redriven_by) == ("redriven", operation.operation_id)
    states = app.execute("SELECT state, operation_id FROM outbox_states ORDER BY operation_id NULLS FIRST").fetchall()
    assert states == [("delivered", None), ("delivered", operation.operation_id)]


# Whatever a body holds


HOSTILE = {
    "empty": "",
    "not JSON": "{'event_id': 1}",
    "NUL": "\x00 and \x1b[2J and \u202e",
    "one MiB": "x" * MIB,
    "a lone surrogate": '"\ud800"',
    "deep": "[" * 100_000,
    "a number of many digits": "1" * 10_000,
    "no object": "[1]",
    "no ids": '{"event_id": {"a": 1}, "trace_id": "\u0000", "event_type": 7}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_is_kept_byte_for_byte(dead_letter: Function, app: Connection[Any], name: str) -> None:
    body = HOSTILE[name]
    assert failures(dead_letter({"Records": [given_up(body, note="\x00\x1b")]})) == []
    assert bodies(app) == [body.encode("utf-8", "surrogatepass")]
    [letter] = letters(app)
    assert (letter.event_id, letter.is_redrivable, letter.reason) == (None, False, NO_REASON)
    content = read_content(app, letter.id)
    assert content is not None
    assert content.attributes == {"note": "  "}


def test_a_body_that_says_to_be_an_event_is_not_sent_as_one(
    dead_letter: Function, app: Connection[Any], owner: Connection[Any]
) -> None:
    [event_id] = seeds.store(app, seeds.ticks(1))
    forged = json.dumps({"event_id": str(event_id), "payload": "mine"})
    assert failures(dead_letter({"Records": [given_up(forged)]})) == []
    [letter] = letters(app, event_id=event_id)
    assert letter.is_redrivable is False
    operation = redrive(owner, DeadLetterFilter(kind="consumer"))
    assert (operation.done, operation.plan["letters"], operation.plan["unknown"]) == (0, {}, {"signal_lab": 1})
    assert "the outbox does not hold their message: 1 of signal_lab" in operation.plan["effect"]
    assert len(letters(app)) == 1


def test_a_letter_that_the_database_refuses_keeps_no_other_out(
    dead_letter: Function, app: Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    batch = [given_up("first", 1), given_up("x" * (MIB + 1), 2), given_up("third", 3)]
    assert failures(dead_letter({"Records": batch})) == [batch[1]["messageId"]]
    assert bodies(app) == [b"first", b"third"]
    assert [line["message_id"] for line in dead_letter.errors] == [batch[1]["messageId"]]
    counted = metrics(capsys)
    assert (counted["DeadLettersStored"], counted["DeadLettersNotStored"]) == (2, 1)


def test_what_cannot_be_read_stays_in_its_queue_and_is_named(dead_letter: Function, app: Connection[Any]) -> None:
    foreign, no_text = given_up("{}", 1, queue="somebody-elses"), given_up("{}", 2) | {"body": None}
    answer = dead_letter({"Records": [foreign, no_text, None, {}, given_up("{}", 3)]})
    assert failures(answer) == [foreign["messageId"], no_text["messageId"]]
    assert len(bodies(app)) == 1
    said = " ".join(line["error"] for line in dead_letter.errors)
    assert "the queue 'somebody-elses' is in neither DEAD_LETTER_QUEUES nor" in said
    assert "the message has no body of text" in said
    dead_letter.fails(MalformedInvocation, "no list of Records", event={"Records": {}})


def test_settings_that_name_no_queue_are_refused(load: Load) -> None:
    moving = load("dead_letter", DEAD_LETTER_QUEUES="[]")
    moving.fails(ConfigurationError, "DEAD_LETTER_QUEUES is '[]'", "neither DATABASE_URL", event={"Records": []})


# Once, whatever happens


def test_a_message_that_comes_again_is_one_letter(dead_letter: Function, app: Connection[Any]) -> None:
    same = [given_up("{}", 1), given_up("{}", 1)]
    for _ in range(3):
        assert failures(dead_letter({"Records": [*same, given_up("{}", 2)]})) == []
    assert len(bodies(app)) == 2
    # Another queue's ids are its own.
    assert failures(dead_letter({"Records": [given_up("{}", 1, queue="agents-dead")]})) == []
    assert [letter.subscription for letter in letters(app)] == ["signal_lab", "signal_lab", "agents"]


def test_nothing_is_forgotten_before_the_commit(
    dead_letter: Function, app: Connection[Any], owner: Connection[Any]
) -> None:
    batch = {"Records": [given_up("{}", number) for number in range(3)]}
    owner.execute(
        "CREATE FUNCTION kills() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END$$"
    )
    owner.execute("CREATE TRIGGER kills AFTER INSERT ON dead_letters EXECUTE FUNCTION kills()")
    dead_letter.fails(DatabaseUnavailable, "Postgres failed in the middle of the work", event=batch)
    assert bodies(app) == []
    owner.execute("DROP TRIGGER kills ON dead_letters")
    assert failures(dead_letter(batch)) == []
    assert len(bodies(app)) == 3


# Why it was given up on


def test_a_failed_invocation_says_itself_what_went_wrong(dead_letter: Function, app: Connection[Any]) -> None:
    body = {
        "requestContext": {
            "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:acp-relay:$LATEST",
            "condition": "RetriesExhausted",
        },
        "responsePayload": {"errorType": "DatabaseUnavailable", "errorMessage": "no way\nto Postgres"},
    }
    odd = {"requestContext": [], "responsePayload": "x"}
    records = [given_up(json.dumps(one), n, queue="failed") for n, one in enumerate((body, odd, "text"))]
    assert failures(dead_letter({"Records": records})) == []
    assert [(letter.kind, letter.subscription, letter.queue, letter.reason) for letter in letters(app)] == [
        (
            "invocation",
            None,
            "failed",
            "acp-relay:$LATEST: RetriesExhausted: DatabaseUnavailable: no way to Postgres",
        ),
        ("invocation", None, "failed", "a function"),
        ("invocation", None, "failed", "a function"),
    ]


def test_each_consumer_records_why_it_failed(load: Load, database: Any, app: Connection[Any]) -> None:
    for name, role in (("signal_lab", "acp_consume"), ("agent", "acp_agent")):
        consumer = load(name, DATABASE_URL=database.url(role))
        broken = record("{}", 1, trace_id=str(uuid.UUID(int=7)), event_id="no id")
        assert failures(consumer({"Records": [broken]})) == [broken["messageId"]]
    found = app.execute("SELECT subscription, event_id, trace_id, attempt, error FROM consume_failures ORDER BY id")
    for row, subscription in zip(found.fetchall(), ("signal_lab", "agents"), strict=True):
        assert row[:4] == (subscription, None, uuid.UUID(int=7), 2)
        assert "event_id" in row[4]


def test_of_one_message_the_newest_ten_failures_are_kept(load: Load, database: Any, app: Connection[Any]) -> None:
    consumer = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    for count in range(1, 14):
        broken = record("{}", 1)
        broken["attributes"]["ApproximateReceiveCount"] = str(count)
        consumer({"Records": [broken, record("{}", 2)]} if count == 1 else {"Records": [broken]})
    attempts = app.execute("SELECT attempt FROM consume_failures ORDER BY id").fetchall()
    assert attempts == [(2,), *((count,) for count in range(4, 14))]
    load("dead_letter", DATABASE_URL=database.url("acp_maintain"))({"Records": [given_up("{}", 1)]})
    [letter] = letters(app)
    assert letter.delivery_attempts == 13


def test_a_failure_that_cannot_be_recorded_hides_nothing(
    load: Load, database: Any, app: Connection[Any], owner: Connection[Any]
) -> None:
    owner.execute("REVOKE EXECUTE ON FUNCTION record_consume_failure FROM acp_consume")
    consumer = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    batch = [record_of(tick(), 1), record("{}", 2), record_of(tick(minute=1), 3)]
    assert failures(consumer({"Records": batch})) == [batch[1]["messageId"]]
    assert [line["message"] for line in consumer.logs if line["level"] in {"ERROR", "WARNING"}] == [
        "ContractViolation",
        "the failure is not recorded",
    ]
    assert app.execute("SELECT count(*) FROM processed_events").fetchone() == (2,)


def test_a_record_waits_for_nobodys_lock(
    load: Load, database: Any, owner: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.consumers.failures.RECORD_SECONDS", 0.05)
    consumer = load("signal_lab", DATABASE_URL=database.url("acp_consume"))
    with owner.transaction():
        owner.execute("LOCK TABLE consume_failures IN ACCESS EXCLUSIVE MODE")
        assert len(failures(consumer({"Records": [record("{}", 1), record("{}", 2)]}))) == 2
    said = [line["error"] for line in consumer.logs if line["message"] == "the failure is not recorded"]
    assert len(said) == 2
    assert "statement timeout" in said[0]
