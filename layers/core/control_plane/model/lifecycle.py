"""What becomes of a promise: a publisher reports an outcome, ``settle`` says what the row turns into."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from random import random

from control_plane.model.backoff import retry_delay
from control_plane.model.text import readable


@dataclass(frozen=True, slots=True)
class Accepted:
    """The queue has the message."""

    message_id: str


@dataclass(frozen=True, slots=True)
class MessageFault:
    """The message itself can never be accepted: too large, malformed, its topic has no queue."""

    reason: str


@dataclass(frozen=True, slots=True)
class QueueFault:
    """The queue or the access to it is at fault: throttled, unreachable, timed out, 5xx, denied, gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Anything else: this attempt failed, the next may not."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """The time ran out before the message's turn came."""


type Outcome = Accepted | MessageFault | QueueFault | Failed | NotSent


class Disposition(StrEnum):
    """What a settled claim counts as."""

    PUBLISHED = "published"
    FAILED = "failed"
    DEAD_LETTERED = "dead_lettered"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Settlement:
    """One row's new state. The attempt of a released row is given back."""

    disposition: Disposition
    message_id: str | None = None
    error: str | None = None
    delay: timedelta = timedelta()


def settle(
    outcome: Outcome,
    *,
    attempt: int,
    max_attempts: int,
    cool_down: timedelta,
    random: Callable[[], float] = random,
) -> Settlement:
    """The table of design section 6, *Settle*. ``attempt`` is the claimed one, 1-based.

    A reason is the queue's own words, and settled with many others: one that Postgres refused would undo them all.
    """
    match outcome:
        case Accepted(message_id):
            return Settlement(Disposition.PUBLISHED, message_id=message_id)
        case MessageFault(reason):
            return Settlement(Disposition.DEAD_LETTERED, error=readable(reason))
        case QueueFault(reason):
            return Settlement(Disposition.RELEASED, error=readable(reason), delay=cool_down)
        case NotSent():
            return Settlement(Disposition.RELEASED)
        case Failed(reason) if attempt >= max_attempts:
            return Settlement(Disposition.DEAD_LETTERED, error=readable(f"gave up after {attempt} attempts: {reason}"))
        case Failed(reason):
            return Settlement(Disposition.FAILED, error=readable(reason), delay=retry_delay(attempt, random=random))
