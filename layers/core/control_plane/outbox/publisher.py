"""What the relay needs from a publisher. A new kind of queue is one file that satisfies :class:`Publisher`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from control_plane.model.lifecycle import Outcome
from control_plane.model.trace import is_sampled, traceparent

MAX_BATCH_ENTRIES: Final = 10
MAX_BATCH_BYTES: Final = 1_048_576
"""SQS's limit for one message, and for all messages of one batch together, attributes included (AWS, *Amazon SQS
message quotas*, since 4 August 2025)."""
_BYTES_OF_TYPE: Final = len("String")
_DECISION_KEY: Final = '"decision_id": "'
"""As Postgres writes jsonb."""


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery's message as it is sent, with the claim that it is sent under."""

    outbox_id: int
    subscription: str
    operation_id: UUID | None
    """The redrive or replay that the delivery belongs to; None for a live one."""
    claim_token: UUID
    event_id: str
    """Text as Postgres writes a uuid: lower case, with hyphens."""
    trace_id: str
    topic: str
    attempt: int
    is_suspect: bool
    """Whether an earlier send of it had no verdict; such a message is sent alone."""
    body: str
    """The body as the database stored it."""
    attributes: Mapping[str, str]
    size: int
    """Its bytes as SQS counts them: the body, and each attribute's name, type and value."""

    @property
    def decision_id(self) -> str | None:
        """Returns the decision that the message is about, as its body names it first; None where it names none.

        It is for a log line: the body is searched and not parsed. A quote within a text has a backslash before it, so
        that this is found as a key alone.
        """
        found = self.body.find(_DECISION_KEY)
        begin = found + len(_DECISION_KEY)
        return self.body[begin : begin + 36] if found >= 0 and self.body[begin + 36 : begin + 37] == '"' else None


def make_message(
    *,
    outbox_id: int,
    subscription: str,
    operation_id: UUID | None,
    claim_token: UUID,
    event_id: str,
    event_type: str,
    schema_version: int,
    trace_id: str,
    topic: str,
    attempt: int,
    is_suspect: bool,
    body: str,
    traces_ratio: float = 0,
) -> Message:
    """Returns the message with its attributes and its size; the ids are text as Postgres writes a uuid.

    ``traces_ratio`` is the share of events whose spans are exported, for the flag in ``traceparent``.
    """
    attributes = {
        "event_id": event_id,
        "event_type": event_type,
        "schema_version": str(schema_version),
        "trace_id": trace_id,
        "traceparent": traceparent(trace_id, event_id, is_sampled=is_sampled(event_id, traces_ratio)),
    }
    if operation_id is not None:
        attributes["operation_id"] = str(operation_id)
    return Message(
        outbox_id,
        subscription,
        operation_id,
        claim_token,
        event_id,
        trace_id,
        topic,
        attempt,
        is_suspect,
        body,
        attributes,
        size_of(body, attributes),
    )


def size_of(body: str, attributes: Mapping[str, str]) -> int:
    """Returns the bytes of a message as SQS counts them: the body, and each attribute's name, type and value."""
    size = _bytes_of(body)
    for name, value in attributes.items():
        size += _bytes_of(name) + _BYTES_OF_TYPE + _bytes_of(value)
    return size


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


class Publisher(Protocol):
    """Sends a batch to a queue and reports what became of each entry. An outcome is never guessed.

    - Accepted, MessageFault and Failed are the entry's own verdict: the answer named the entry once and made sense.
    - A whole request that is refused for its content is sent again one by one, so that each message gets a verdict.
    - QueueFault means that nothing was accepted. Either the queue refused access or said that it is at fault, or
      nothing was sent (no credentials, no address, no connection, no trusted certificate).
    - NoVerdict means that the entry was sent, and nothing reliable was said of it: a time-out, a lost connection, an
      internal error, an answer that cannot be read, or one that omits the entry or names it twice.
    - NotSent means that the time was up before the send could start.
    """

    @property
    def send_timeout_seconds(self) -> float:
        """The longest that one send may take; no send starts that could outlive its lease."""

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        """Returns one outcome per message, in order.

        ``messages`` fit one batch. No behaviour of the queue raises an error. ``start_before`` is an instant of
        ``time.monotonic()`` after which no send may start: the messages that are left are NotSent.
        """


def batches(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Splits messages of one queue, in order, into batches. No batch of several messages exceeds MAX_BATCH_BYTES."""
    batch: list[Message] = []
    size = 0
    for message in messages:
        if batch and (len(batch) == MAX_BATCH_ENTRIES or size + message.size > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message.size
    if batch:
        yield batch
