"""Moves messages out of SQS's dead-letter queues into ``dead_letters``; a queue forgets one only after the commit."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import class_row

from control_plane.consumers.once import QUERIES
from control_plane.consumers.records import LONGEST_COUNT, as_number, as_uuid, attribute_of, object_of
from control_plane.model.errors import ControlPlaneError, MalformedInvocation
from control_plane.model.text import readable
from control_plane.platform.session import SESSION_LOST
from control_plane.platform.telemetry import Telemetry

MOST_ATTRIBUTES: Final = 20
"""How many of a message's attributes are kept; SQS takes ten."""
LONGEST_TIMESTAMP: Final = 14
"""The most digits of an instant in milliseconds."""


class LetterRefused(ControlPlaneError):
    """Raised for a record that cannot be stored as a dead letter: its queue is not known, or it has no body."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message of a dead-letter queue, as the database's function ``store_dead_letters`` takes it."""

    kind: str
    """``consumer``, or ``invocation`` for what Lambda says of a scheduled invocation that failed for good."""
    queue: str
    message_id: str
    subscription: str | None
    """None for an invocation."""
    body_base64: str
    attributes: Mapping[str, Any]
    receives: int
    """How often the queues had given it out before this time."""
    sent_at: str | None
    event_id: str | None
    event_type: str | None
    trace_id: str | None
    reason: str | None
    """None where only the consumer can have said it."""


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter that is new in the database."""

    letter_id: int
    kind: str
    queue: str
    message_id: str
    subscription: str | None
    topic: str | None
    event_id: UUID | None
    trace_id: UUID | None
    attempts: int
    reason: str
    is_redrivable: bool


def move_letters(
    event: Mapping[str, Any],
    connection: Connection[Any],
    *,
    queues: Mapping[str, str | None],
    telemetry: Telemetry,
) -> dict[str, Any]:
    """Stores each message of a batch once. Returns ``{"batchItemFailures": […]}``: those that stay in their queue.

    ``queues`` maps a queue's name to the subscription whose consumer gave up, or to None for failed invocations. A
    letter that the database refuses keeps no other one out. ``connection`` is in autocommit mode. Raises
    MalformedInvocation for an event without a list of records, and psycopg.Error where the database is lost: then all
    stay.
    """
    records = event.get("Records")
    if not isinstance(records, list):
        raise MalformedInvocation(
            "the event has no list of Records, so it is no batch of SQS messages: events/dead_letter.json shows one"
        )
    kept: list[str] = []
    letters: list[Letter] = []
    for place, record in enumerate(records):
        message_id = record.get("messageId") if isinstance(record, dict) else None
        if not isinstance(message_id, str) or not message_id:
            error = f"record {place} of the batch is no object with a messageId, so it cannot be sent back"
            _refused(telemetry, MalformedInvocation(error), {})
            continue
        try:
            letters.append(read_letter(record, queues))
        except LetterRefused as refused:
            kept.append(message_id)
            _refused(telemetry, refused, {"message_id": message_id})
    kept += [letter.message_id for letter in _store_all(connection, letters, telemetry)]
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in kept]}


def read_letter(record: Mapping[str, Any], queues: Mapping[str, str | None]) -> Letter:
    """Returns what a record says, whatever its body holds. Raises LetterRefused."""
    queue = str(record.get("eventSourceARN", "")).rpartition(":")[2]
    if queue not in queues:
        raise LetterRefused(
            f"the queue {readable(queue)!r} is in neither DEAD_LETTER_QUEUES nor FAILED_INVOCATIONS_QUEUE: name it "
            "there, and deploy the template"
        )
    body = record.get("body")
    if not isinstance(body, str):
        raise LetterRefused("the message has no body of text, so there is nothing to store: look at it in its queue")
    content = _parsed(body)
    subscription = queues[queue]
    attributes = object_of(record, "attributes")
    is_message = subscription is not None
    return Letter(
        kind="consumer" if is_message else "invocation",
        queue=queue,
        message_id=readable(record["messageId"]),
        subscription=subscription,
        body_base64=base64.b64encode(body.encode("utf-8", "surrogatepass")).decode(),
        attributes=_attributes(record),
        receives=max(as_number(attributes.get("ApproximateReceiveCount"), LONGEST_COUNT) - 1, 0),
        sent_at=_instant(attributes.get("SentTimestamp")),
        event_id=_id(content, record, "event_id") if is_message else None,
        event_type=_text(content.get("event_type") or attribute_of(record, "event_type")) if is_message else None,
        trace_id=_id(content, record, "trace_id") if is_message else None,
        reason=None if is_message else _failed_invocation(content),
    )


def store_letters(connection: Connection[Any], letters: Sequence[Letter]) -> Sequence[StoredLetter]:
    """Stores letters in one transaction, and returns those that were not stored before. Raises psycopg.Error."""
    text = json.dumps([asdict(letter) for letter in letters])
    with connection.cursor(row_factory=class_row(StoredLetter)) as cursor:
        return cursor.execute(QUERIES["store_dead_letters"].sql, {"letters": text}).fetchall()


def _store_all(connection: Connection[Any], letters: Sequence[Letter], telemetry: Telemetry) -> Sequence[Letter]:
    """Stores all letters together, or else each by itself. Returns those that the database refused."""
    if not letters:
        return []
    try:
        _stored(telemetry, store_letters(connection, letters), letters)
    except SESSION_LOST:
        raise
    except psycopg.Error as error:
        if len(letters) == 1:
            _refused(telemetry, error, {"queue": letters[0].queue, "message_id": letters[0].message_id})
            return letters
        return [refused for letter in letters for refused in _store_all(connection, [letter], telemetry)]
    return []


def _stored(telemetry: Telemetry, stored: Sequence[StoredLetter], letters: Sequence[Letter]) -> None:
    telemetry.count("DeadLettersStored", len(stored))
    decisions = {letter.message_id: _decision_of(letter) for letter in letters}
    for letter in stored:
        telemetry.logger.warning(
            "dead_lettered",
            state="dead_lettered",
            dead_letter_id=letter.letter_id,
            kind=letter.kind,
            queue=letter.queue,
            message_id=letter.message_id,
            subscription=letter.subscription,
            topic=letter.topic,
            event_id=letter.event_id and str(letter.event_id),
            trace_id=letter.trace_id and str(letter.trace_id),
            decision_id=decisions.get(letter.message_id),
            attempt=letter.attempts,
            error=letter.reason,
            is_redrivable=letter.is_redrivable,
        )


def _decision_of(letter: Letter) -> str | None:
    """Returns the decision that a letter's message is about; None where it names none."""
    payload = _parsed(base64.b64decode(letter.body_base64).decode("utf-8", "replace")).get("payload")
    decision_id = payload.get("decision_id") if isinstance(payload, dict) else None
    return None if (found := as_uuid(decision_id)) is None else str(found)


def _refused(telemetry: Telemetry, error: Exception, about: Mapping[str, Any]) -> None:
    telemetry.count("DeadLettersNotStored", 1)
    telemetry.logger.error(type(error).__name__, state="failed", error=str(error), **about)


def _parsed(body: str) -> Mapping[str, Any]:
    """Returns the body's JSON object; an empty one where it holds none."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _id(content: Mapping[str, Any], record: Mapping[str, Any], name: str) -> str | None:
    found = as_uuid(content.get(name)) or as_uuid(attribute_of(record, name))
    return None if found is None else str(found)


def _text(value: object) -> str | None:
    return readable(value) if isinstance(value, str) and value.strip() else None


def _instant(milliseconds: object) -> str | None:
    number = as_number(milliseconds, LONGEST_TIMESTAMP)
    return datetime.fromtimestamp(number / 1000, UTC).isoformat() if number else None


def _attributes(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the message's own attributes by name, as text that Postgres can hold."""
    found = {}
    for name, attribute in list(object_of(record, "messageAttributes").items())[:MOST_ATTRIBUTES]:
        if isinstance(attribute, dict):
            value = attribute.get("stringValue") or attribute.get("binaryValue")
            found[readable(str(name))] = None if value is None else readable(str(value))
    return found


def _failed_invocation(content: Mapping[str, Any]) -> str:
    """Returns why Lambda gave up on an invocation, from the record that it sends to an on-failure destination."""
    context, response = object_of(content, "requestContext"), object_of(content, "responsePayload")
    function = str(context.get("functionArn") or "a function").rpartition(":function:")[2]
    words = (function, context.get("condition"), response.get("errorType"), response.get("errorMessage"))
    return readable(": ".join(str(word) for word in words if word)).strip()
