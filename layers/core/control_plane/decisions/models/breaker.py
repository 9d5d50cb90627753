"""A breaker per provider: one that is out of reach, overloaded or too slow is not asked for a while.

It lives in the memory of an environment. AgentFunction's role may write answers and nothing else, breakers included.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from threading import Lock
from typing import Final

from control_plane.decisions.models.conversation import Conversation, ModelClient, Reply, failed

FAILURE_THRESHOLD: Final = 3
COOL_DOWN_SECONDS: Final = 30.0


class GuardedClient:
    """A model client that stops asking after so many failures of the provider in a row, for the cool-down.

    After it one request is let through; the breaker closes again when that one gets any verdict.
    """

    def __init__(
        self,
        client: ModelClient,
        *,
        failure_threshold: int = FAILURE_THRESHOLD,
        cool_down_seconds: float = COOL_DOWN_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._failure_threshold = failure_threshold
        self._cool_down_seconds = cool_down_seconds
        self._monotonic = monotonic
        self._lock = Lock()
        self._failures = 0
        self._open_until: float | None = None

    @property
    def model(self) -> str:
        """See ModelClient."""
        return self._client.model

    @property
    def most_output_tokens(self) -> int:
        """See ModelClient."""
        return self._client.most_output_tokens

    def request_bytes(self, conversation: Conversation) -> int:
        """See ModelClient."""
        return self._client.request_bytes(conversation)

    def ask(self, conversation: Conversation, *, seconds_left: float) -> Reply:
        """See ModelClient; ``failed`` at once while the breaker is open."""
        wait = self._wait()
        if wait > 0:
            told = f"the provider failed {self._failures} times in a row and is not asked for {wait:.0f} s more"
            return replace(failed(told), retry_after_seconds=ceil(wait))
        reply = self._client.ask(conversation, seconds_left=seconds_left)
        self._note(reply)
        return reply

    def _wait(self) -> float:
        with self._lock:
            if self._open_until is None:
                return 0.0
            wait = self._open_until - self._monotonic()
            if wait <= 0:  # this request is the probe; others wait for its verdict
                self._open_until = self._monotonic() + self._cool_down_seconds
            return wait

    def _note(self, reply: Reply) -> None:
        with self._lock:
            if not reply.is_providers_fault:
                self._failures, self._open_until = 0, None
                return
            self._failures += 1
            if self._failures >= self._failure_threshold:
                self._open_until = self._monotonic() + self._cool_down_seconds
