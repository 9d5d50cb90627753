"""What the relay asks of a publisher. A new kind of queue is one file that satisfies :class:`Publisher`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol
from uuid import UUID

from control_plane.model.lifecycle import Outcome

MAX_BATCH_ENTRIES: Final = 10
MAX_BATCH_BYTES: Final = 1_048_576
"""SQS: of one message, and of all messages of one batch together, attributes counted
(AWS, *Amazon SQS message quotas*, since 4 August 2025)."""


@dataclass(frozen=True)
class Message:
    """One message as it goes out: the body as the database stored it."""

    outbox_id: int
    claim_token: UUID
    event_id: UUID
    trace_id: UUID
    topic: str
    attempt: int
    body: str
    attributes: Mapping[str, str]

    @cached_property
    def size(self) -> int:
        """Bytes as SQS counts them: the body, and each attribute's name, type and value."""
        return len(self.body.encode()) + sum(
            len(name.encode()) + len("String") + len(value.encode()) for name, value in self.attributes.items()
        )


class Publisher(Protocol):
    """Sends a batch to a queue and says of each entry what became of it."""

    @property
    def send_timeout_seconds(self) -> float:
        """The longest that one send may take; none is started that could outlive its lease."""

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:
        """One outcome per message, in order; ``messages`` fit one batch. Raises nothing that is the queue's doing.

        ``start_before`` is an instant of ``time.monotonic()`` after which no send may start: what is left is NotSent.
        """


def batches(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Splits messages of one queue, in order, into what one send holds. None of them is over MAX_BATCH_BYTES."""
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
