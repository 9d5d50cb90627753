"""A subscription: one consumer's standing order for a topic, with one queue."""

import re
from dataclasses import dataclass

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TOPIC = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as it is to be; its name is the key that it is found under."""

    topic: str
    from_beginning: bool = False
    """Where it is new, it gets what the outbox still holds of its topic, too; otherwise it starts now."""


def is_subscription_name(text: str) -> bool:
    """Whether the database takes the text as a subscription's name, such as ``signal_lab``."""
    return _NAME.fullmatch(text) is not None


def is_topic(text: str) -> bool:
    """Whether the database takes the text as a topic, such as ``market.ticks``."""
    return _TOPIC.fullmatch(text) is not None
