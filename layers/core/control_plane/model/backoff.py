"""When a failed attempt is tried again."""

from collections.abc import Callable
from datetime import timedelta
from random import random
from typing import Final

DELAYS_SECONDS: Final = (2, 5, 15, 30, 60)
"""After the first, second, … failed attempt; the last one for all that follow."""
JITTER: Final = 0.2
"""At most this fraction on top, so that messages that failed together do not return together."""


def retry_delay(attempt: int, *, random: Callable[[], float] = random) -> timedelta:
    """The wait after failed attempt number ``attempt`` (1-based). ``random`` returns a number in [0, 1)."""
    base = DELAYS_SECONDS[min(attempt, len(DELAYS_SECONDS)) - 1]
    return timedelta(seconds=base * (1 + JITTER * random()))
