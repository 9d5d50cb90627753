"""What becomes of a delivery: a publisher reports an outcome, ``settle`` says what the pending row turns into."""

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
    """The message itself can never be accepted: it is too large or malformed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The message was found with all its attempts made; it is not sent again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The queue said of this very entry that it failed, and the next attempt may not."""

    reason: str


@dataclass(frozen=True, slots=True)
class QueueFault:
    """The queue or the access to it is at fault, and nothing was accepted: throttled, unreachable, denied, gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """The message was sent and nothing that can be trusted was said of it.

    A time-out, a lost connection, an exception, an answer that cannot be read, that does not mention the entry or
    mentions it twice. Counted as an outage; but the message may be what draws it, which makes it suspect.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """The time ran out before the message's turn came."""


type Outcome = Accepted | MessageFault | Exhausted | Failed | QueueFault | NoVerdict | NotSent


class Disposition(StrEnum):
    """What a settled claim counts as."""

    PUBLISHED = "published"
    FAILED = "failed"
    DEAD_LETTERED = "dead_lettered"
    EXHAUSTED = "exhausted"
    """Dead-lettered without a further attempt."""
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Settlement:
    """One delivery's new state. A released row gets its attempt back."""

    disposition: Disposition
    message_id: str | None = None
    error: str | None = None
    delay: timedelta = timedelta()
    is_suspect: bool = False
    """The row is sent alone and behind the others from now on."""


def settle(  # noqa: PLR0911 - a return per row of the table
    outcome: Outcome,
    *,
    attempt: int,
    max_attempts: int,
    cool_down: timedelta,
    silence_is_its_own: bool = False,
    random: Callable[[], float] = random,
) -> Settlement:
    """Returns what an outcome turns its row into: the outcome table of docs/architecture.md.

    ``attempt`` is the claimed one, 1-based. ``silence_is_its_own`` says that others of its subscription got verdicts
    while this message had none, so that a NoVerdict counts as an attempt. A reason is the queue's own words, and is
    settled with many others: one that Postgres refused would undo them all.
    """
    match outcome:
        case Accepted(message_id):
            return Settlement(Disposition.PUBLISHED, message_id=message_id)
        case MessageFault(reason):
            return Settlement(Disposition.DEAD_LETTERED, error=readable(reason))
        case Exhausted(reason):
            return Settlement(Disposition.EXHAUSTED, error=readable(reason))
        case QueueFault(reason):
            return Settlement(Disposition.RELEASED, error=readable(reason), delay=cool_down)
        case NotSent():
            return Settlement(Disposition.RELEASED)
        case NoVerdict(reason) if not silence_is_its_own:
            return Settlement(Disposition.RELEASED, error=readable(reason), delay=cool_down, is_suspect=True)
        case NoVerdict(reason) | Failed(reason) if attempt >= max_attempts:
            return Settlement(Disposition.DEAD_LETTERED, error=readable(f"gave up after {attempt} attempts: {reason}"))
        case NoVerdict(reason) | Failed(reason):
            delay = retry_delay(attempt, random=random)
            return Settlement(
                Disposition.FAILED, error=readable(reason), delay=delay, is_suspect=isinstance(outcome, NoVerdict)
            )
