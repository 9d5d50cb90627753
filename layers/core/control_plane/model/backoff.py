"""How long a delivery waits after a failed attempt."""

from collections.abc import Callable
from datetime import timedelta
from random import random
from typing import Final

DELAYS_SECONDS: Final = (2, 5, 15, 30, 60)
"""The waits after the first, second, … failed attempt; the last one applies to all further attempts."""
JITTER: Final = 0.2
"""Up to this fraction is added to a wait, so that messages that failed together are not retried together."""


def retry_delay(attempt: int, *, random: Callable[[], float] = random) -> timedelta:
    """Returns the wait after failed attempt number ``attempt``, from 1. ``random`` returns a number in [0, 1)."""
    base = DELAYS_SECONDS[min(attempt, len(DELAYS_SECONDS)) - 1]
    return timedelta(seconds=base * (1 + JITTER * random()))
