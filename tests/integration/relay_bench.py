"""A relay with fake queues, a fake clock and recorded metrics, for the relay's tests."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from psycopg import Connection
from tests.integration.fakes import Clock, FakePublisher, RecordingTelemetry

from control_plane.model.lifecycle import Outcome
from control_plane.outbox.invocation import RelayResult
from control_plane.outbox.ledger import RelayPolicy
from control_plane.outbox.publisher import Message, Publisher
from control_plane.outbox.relay import Relay
from control_plane.platform.breakers import BreakerPolicy

TICKS, SYSTEM = "http://queues/ticks", "http://queues/system"
QUEUES = {"signal_lab": TICKS, "system_events": SYSTEM}
LEASE, COOL_DOWN, MAX_ATTEMPTS = 30.0, 20.0, 5

type Script = Callable[[Message], Outcome | None]


class Bench:
    """One relay with fake queues, a fake clock and recorded metrics."""

    def __init__(
        self,
        connection: Callable[[], Connection[Any]],
        *,
        script: Script = lambda _message: None,
        publisher: Publisher | None = None,
        queue_urls: dict[str, str] | None = None,
        seconds_per_send: float = 0,
        name: str = "r1",
        claim_size: int = 100,
        concurrency: int = 1,
        failure_threshold: int = 1,
        lease: float = LEASE,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self.clock = Clock()
        self.fake = FakePublisher(TICKS, SYSTEM, script=script, clock=self.clock, seconds=seconds_per_send)
        self.telemetry = RecordingTelemetry()
        self.naps: list[float] = []
        self.while_asleep: Callable[[int], None] = lambda _nap: None
        self.relay = Relay(
            connection=connection,
            publisher=publisher or self.fake,
            queue_urls=queue_urls or QUEUES,
            policy=RelayPolicy(
                claim_size, lease, max_attempts, concurrency, BreakerPolicy(failure_threshold, COOL_DOWN)
            ),
            telemetry=self.telemetry,
            name=name,
            monotonic=self.clock.monotonic,
            sleep=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.clock.sleep(seconds)
        self.while_asleep(len(self.naps))

    def run(self, *, remaining: float = 600, linger: float = 0) -> RelayResult:
        ends = self.clock.now + remaining
        result = self.relay.run(remaining_seconds=lambda: ends - self.clock.now, linger_seconds=linger)
        assert result.claimed == result.published + result.failed + result.dead_lettered + result.released
        return result


def done(result: RelayResult) -> RelayResult:
    """Returns the result without the breakers' states."""
    return replace(result, breakers={})


def only(outcome: Outcome, *event_ids: UUID) -> Script:
    """Returns a script that gives these events an outcome, and accepts all others."""
    return lambda message: outcome if UUID(message.event_id) in event_ids else None
