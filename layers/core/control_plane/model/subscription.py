"""A subscription: one consumer's standing order for a topic, with one queue."""

import re
from dataclasses import dataclass

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TOPIC = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as the template wants it; its name is the key of the mapping that holds it."""

    topic: str
    from_beginning: bool = False
    """Whether a new subscription also gets the topic's messages that are already in the outbox."""


def is_subscription_name(text: str) -> bool:
    """Whether the database accepts the text as a subscription's name, such as ``signal_lab``."""
    return _NAME.fullmatch(text) is not None


def is_topic(text: str) -> bool:
    """Whether the database accepts the text as a topic, such as ``market.ticks``."""
    return _TOPIC.fullmatch(text) is not None
