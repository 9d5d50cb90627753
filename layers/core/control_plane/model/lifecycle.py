"""The lifecycle of a delivery: a publisher reports an outcome, and ``settle`` says what the pending row becomes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from random import random

from control_plane.model.backoff import retry_delay
from control_plane.model.text import readable


@dataclass(frozen=True, slots=True)
class Accepted:
    """The queue has accepted the message."""

    message_id: str


@dataclass(frozen=True, slots=True)
class MessageFault:
    """The message itself can never be accepted: it is too large or malformed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The message had no attempt left when it was claimed; it is dead-lettered without being sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The queue refused this single message, for a reason that may be gone at the next attempt."""

    reason: str


@dataclass(frozen=True, slots=True)
class QueueFault:
    """The queue accepted nothing, and no message caused it: the queue throttled, denied access, or was not reached."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """The message was sent, and no reliable answer says whether the queue accepted it.

    Reasons are a time-out, a lost connection, an exception, an answer that cannot be read, and an answer that names the
    message not at all or twice. It counts as an outage of the queue. But the message itself may be the cause, so it
    becomes suspect.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """The invocation's time ran out before the message was sent."""


type Outcome = Accepted | MessageFault | Exhausted | Failed | QueueFault | NoVerdict | NotSent


class Disposition(StrEnum):
    """What a settlement counts as in the result of an invocation."""

    PUBLISHED = "published"
    FAILED = "failed"
    DEAD_LETTERED = "dead_lettered"
    EXHAUSTED = "exhausted"
    """The message is dead-lettered without a further attempt."""
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Settlement:
    """One delivery's new state. A released delivery gets its attempt back."""

    disposition: Disposition
    message_id: str | None = None
    error: str | None = None
    delay: timedelta = timedelta()
    is_suspect: bool = False
    """Whether the message is from now on sent alone, after the other messages."""


def settle(  # noqa: PLR0911 - a return per row of the table
    outcome: Outcome,
    *,
    attempt: int,
    max_attempts: int,
    cool_down: timedelta,
    silence_is_its_own: bool = False,
    random: Callable[[], float] = random,
) -> Settlement:
    """Returns the settlement of an outcome, by the outcome table of docs/architecture.md.

    ``attempt`` is the number of the claimed attempt, from 1. ``silence_is_its_own`` says that other messages of the
    subscription got verdicts while this one got none, so that NoVerdict counts as an attempt. Reasons come from the
    queue and are made readable here: a text that Postgres refuses would undo all settlements of the same statement.
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
