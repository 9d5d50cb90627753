"""What a publishing thread does: one send, and each message's outcome."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from control_plane.model.lifecycle import Accepted, Failed, MessageFault, NotSent, NoVerdict, Outcome, QueueFault
from control_plane.outbox.publisher import Message, Publisher
from control_plane.outbox.queue_health import QueueHealth
from control_plane.platform.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of one batch."""

    messages: Sequence[Message]
    outcomes: Sequence[Outcome]
    began_at: float
    """By ``time.monotonic()``, as ``ended_at``."""
    ended_at: float
    was_sent: bool
    """Whether the queue was asked at all."""

    @property
    def fault(self) -> QueueFault | NoVerdict | None:
        """What speaks against the queue, if anything does."""
        return next((one for one in self.outcomes if isinstance(one, QueueFault | NoVerdict)), None)

    @property
    def has_verdict(self) -> bool:
        """Whether the queue said of any entry what becomes of it."""
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
    """Sends a batch, unless its queue has failed while it waited. Raises nothing that is one batch's trouble."""
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
        # Raised on, it would leave every other batch unsettled, and have it sent twice.
        telemetry.logger.exception("the publisher failed", subscription=batch[0].subscription)
        outcomes = [NoVerdict(f"{type(error).__name__}: {error}")] * len(batch)
    was_sent = not all(isinstance(outcome, NotSent) for outcome in outcomes)
    sent = Sent(batch, outcomes, began_at, monotonic(), was_sent)
    # At once: what waits behind it must not be sent to a queue that is gone. A suspect may be silent by its own fault.
    if sent.fault is not None and not batch[0].is_suspect:
        health.note_fault(sent.fault.reason)
    return sent
