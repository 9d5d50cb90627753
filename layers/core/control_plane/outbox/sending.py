"""A publishing thread's job: it sends one batch and finds each message's outcome."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NotSent, NoVerdict, Outcome, QueueFault
from control_plane.outbox.publisher import Message, Publisher
from control_plane.outbox.queue_health import QueueHealth
from control_plane.platform.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of sending one batch."""

    messages: Sequence[Message]
    outcomes: Sequence[Outcome]
    began_at: float
    """The start of the send, by ``time.monotonic()``, like ``ended_at``."""
    ended_at: float
    was_sent: bool
    """Whether a request was made to the queue."""

    @property
    def fault(self) -> QueueFault | NoVerdict | None:
        """The first outcome that may be the queue's fault, or None."""
        return next((one for one in self.outcomes if isinstance(one, QueueFault | NoVerdict)), None)

    @property
    def has_verdict(self) -> bool:
        """Whether the queue gave a verdict on any of the messages."""
        return any(isinstance(one, Accepted | Failed | MessageFault) for one in self.outcomes)


def send(
    publisher: Publisher,
    queue_url: str,
    health: QueueHealth,
    batch: Sequence[Message],
    start_before: float,
    *,
    telemetry: Telemetry,
    monotonic: Callable[[], float] = time.monotonic,
) -> Sent:
    """Sends a batch, unless its queue has failed while the batch waited. Exceptions become outcomes."""
    began_at = monotonic()
    if (reason := health.shut_reason) is not None:
        return Sent(batch, [QueueFault(reason)] * len(batch), began_at, began_at, was_sent=False)
    outcomes: Sequence[Outcome]
    try:
        outcomes = publisher.publish(queue_url, batch, start_before=start_before)
        if len(outcomes) != len(batch):
            outcomes = [NoVerdict(f"the publisher gave {len(outcomes)} outcomes for {len(batch)} messages")] * len(
                batch
            )
    except Exception as error:
        # An exception that left this function would leave every other batch unsettled, to be sent twice.
        telemetry.logger.exception("the publisher failed", subscription=batch[0].subscription)
        outcomes = [NoVerdict(f"{type(error).__name__}: {error}")] * len(batch)
    was_sent = not all(isinstance(outcome, NotSent) for outcome in outcomes)
    sent = Sent(batch, outcomes, began_at, monotonic(), was_sent)
    # The fault is noted at once, so that waiting batches are not sent to a queue that is down. A suspect's fault is not
    # noted, because the suspect itself may be the cause.
    if sent.fault is not None and not batch[0].is_suspect:
        health.note_fault(sent.fault.reason)
    return sent
