"""The relay claims, publishes and settles deliveries at the same time, until no work or no time is left.

The deciding thread runs the ``Invocation``, owns the lanes, and deals with one result after another. One other thread
speaks with Postgres (``ledger.py``), and each lane has a few threads that send (``sending.py``). docs/architecture.md
follows one message through all of them.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from psycopg import Connection

from control_plane.model.errors import ConfigurationError
from control_plane.outbox.invocation import Invocation, RelayResult
from control_plane.outbox.lanes import Lane
from control_plane.outbox.ledger import Ledger, RelayPolicy
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Publisher
from control_plane.outbox.queue_health import QueueHealth
from control_plane.outbox.session import Session
from control_plane.outbox.workers import Results, Workers
from control_plane.platform.telemetry import Telemetry

CLAIM_BYTES: Final = 8 * MAX_BATCH_BYTES
"""The most bytes of message bodies that may be claimed and not yet settled at a time, shared evenly among the lanes."""
SETTLE_SECONDS: Final = 2.0
"""Seconds kept free at the end of an invocation, to settle what is in flight."""


class Relay:
    """Publishes pending deliveries. One instance serves many invocations; several relays may run at once."""

    def __init__(
        self,
        *,
        connection: Callable[[], Connection[Any]],
        publisher: Publisher,
        queue_urls: Mapping[str, str],
        policy: RelayPolicy,
        telemetry: Telemetry,
        name: str,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``queue_urls`` holds the queue of each subscription that this relay serves."""
        if policy.lease_seconds <= publisher.send_timeout_seconds:
            raise ConfigurationError(
                [
                    (
                        f"LEASE_SECONDS is {policy.lease_seconds:g}: it must be more than the "
                        f"{publisher.send_timeout_seconds:g} seconds a send may take: no send may outlive its lease"
                    )
                ]
            )
        self._publisher = publisher
        self._queue_urls = queue_urls
        self._policy = policy
        self._telemetry = telemetry
        self._monotonic = monotonic
        self._sleep = sleep
        self._session = Session(connection, monotonic=monotonic, sleep=sleep)
        self._ledger = Ledger(
            self._session, subscriptions=tuple(queue_urls), policy=policy, telemetry=telemetry, name=name
        )

    def run(self, *, remaining_seconds: Callable[[], float], linger_seconds: float = 0) -> RelayResult:
        """Publishes what is due. With ``linger_seconds``, it polls that long, or until another lingering relay starts.

        ``remaining_seconds`` returns the time that the invocation has left. The relay stops claiming early enough to
        settle, and gives back what it has not sent by then. Raises psycopg.Error if the database fails; the rows it had
        claimed become due again when their lease ends.
        """
        started = self._monotonic()
        remaining = remaining_seconds()
        deadline = started + remaining - SETTLE_SECONDS
        has_time = deadline - started > self._publisher.send_timeout_seconds
        if not has_time:
            self._telemetry.logger.warning("no time to claim anything", error="give the function a longer timeout")
        # A relay without time to claim must not take over from one that has time.
        lingers = linger_seconds > 0 and has_time
        linger_until = min(started + linger_seconds, deadline)
        with self._session.ends_in(remaining):
            self._ledger.open(lingers=lingers)
            result = self._invoke(deadline, linger_until, lingers=lingers)
            backlog = self._ledger.close(lingered=lingers)
        if backlog is not None:
            self._telemetry.count("OldestPendingAge", backlog.oldest_age_seconds)
            self._telemetry.count("OpenDeadLetters", backlog.open_dead_letters)
            if backlog.pending is not None:
                self._telemetry.count("OutboxPending", backlog.pending)
        self._telemetry.count("BreakerOpen", sum(state != "closed" for state in result.breakers.values()))
        self._telemetry.count("RelayDuration", (self._monotonic() - started) * 1000)
        self._telemetry.flush()
        self._telemetry.logger.info(
            "relayed",
            **result.to_dict(),
            pending=backlog and backlog.pending,
            oldest_pending_seconds=backlog and backlog.oldest_age_seconds,
        )
        return result

    def _invoke(self, deadline: float, linger_until: float, *, lingers: bool) -> RelayResult:
        results = Results()
        on_ledger = Workers(1, results, name="ledger")
        byte_room = max(CLAIM_BYTES // len(self._queue_urls), MAX_BATCH_BYTES)
        lanes = {
            subscription: Lane(
                subscription=subscription,
                queue_url=url,
                claim_size=self._policy.claim_size,
                byte_room=byte_room,
                claim_bytes=byte_room if len(self._queue_urls) == 1 else MAX_BATCH_BYTES,
                suspect_room=self._policy.publish_concurrency,
                health=QueueHealth(subscription, failure_threshold=self._policy.breaker.failure_threshold),
                make_workers=lambda name: Workers(self._policy.publish_concurrency, results, name=name),
            )
            for subscription, url in self._queue_urls.items()
        }
        invocation = Invocation(
            ledger=self._ledger,
            on_ledger=on_ledger.hand_out,
            lanes=lanes,
            publisher=self._publisher,
            results=results,
            policy=self._policy,
            telemetry=self._telemetry,
            deadline=deadline,
            linger_until=linger_until,
            lingers=lingers,
            monotonic=self._monotonic,
            sleep=self._sleep,
        )
        try:
            invocation.run()
        finally:
            for lane in lanes.values():
                lane.close()
            on_ledger.close()
        invocation.result.breakers = {name: lane.health.breaker.state for name, lane in lanes.items()}
        return invocation.result
