"""The relay: claim, publish, settle, until the work or the time is done."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import Connection

from control_plane.domain.errors import ConfigurationError
from control_plane.domain.lifecycle import (
    Accepted,
    Disposition,
    Failed,
    MessageFault,
    NotSent,
    Outcome,
    QueueFault,
    Settlement,
    settle,
)
from control_plane.outbox import store
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message, Publisher, batches
from control_plane.platform.telemetry import Telemetry

CLAIM_BYTES: Final = 16 * MAX_BATCH_BYTES
SETTLE_SECONDS: Final = 2.0
"""Kept free at the end of an invocation for settling what is out."""
POLL_SECONDS: Final = (0.02, 1.0)
"""The shortest and the longest pause of a lingering relay that finds nothing; each empty look doubles it."""


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """How a relay works; durations in seconds."""

    claim_size: int
    lease_seconds: float
    max_attempts: int
    cool_down_seconds: float
    publish_concurrency: int


@dataclass(slots=True)
class RelayResult:
    """What an invocation did: claimed = published + failed + dead_lettered + released."""

    claimed: int = 0
    published: int = 0
    failed: int = 0
    dead_lettered: int = 0
    released: int = 0
    breakers: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As RelayFunction returns it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Pause:
    """Why a topic's queue is left alone, and until when by ``time.monotonic()``."""

    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Report:
    """A message's outcome, and when it was known by ``time.monotonic()``."""

    message: Message
    outcome: Outcome
    known_at: float
    send_seconds: float | None = None


class Relay:
    """Publishes what the outbox promises. One instance serves many invocations; several relays may run at once."""

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
        if policy.lease_seconds <= publisher.send_timeout_seconds:
            raise ConfigurationError(
                [
                    (
                        f"LEASE_SECONDS is {policy.lease_seconds:g}: it must be more than the "
                        f"{publisher.send_timeout_seconds:g} seconds a send may take, for none may outlive its lease"
                    )
                ]
            )
        self._connection = connection
        self._publisher = publisher
        self._queue_urls = queue_urls
        self._policy = policy
        self._telemetry = telemetry
        self._name = name
        self._monotonic = monotonic
        self._sleep = sleep
        self._pauses: dict[str, _Pause] = {}

    def run(self, *, remaining_seconds: Callable[[], float], linger_seconds: float = 0) -> RelayResult:
        """Drains the outbox; with ``linger_seconds``, stays and polls that long.

        ``remaining_seconds`` is what the invocation has left: claiming stops while there is time to settle, and what
        was not sent by then is given back. Raises psycopg.Error where the database fails; the lease returns its rows.
        """
        started = self._monotonic()
        deadline = started + remaining_seconds() - SETTLE_SECONDS
        linger_until = min(started + linger_seconds, deadline)
        result = RelayResult()
        pause = POLL_SECONDS[0]
        if deadline - started <= self._publisher.send_timeout_seconds:
            self._telemetry.logger.warning("no time to claim anything", error="give the function a longer timeout")
        with ThreadPoolExecutor(self._policy.publish_concurrency, thread_name_prefix="publish") as pool:
            while self._monotonic() + self._publisher.send_timeout_seconds < deadline:
                claim_started = self._monotonic()
                claim = self._claim()
                if len(claim):
                    self._deliver(claim, pool, result, start_before=self._start_before(claim_started, deadline))
                    pause = POLL_SECONDS[0]
                elif self._monotonic() + pause < linger_until:
                    self._telemetry.flush()
                    self._sleep(pause)
                    pause = min(2 * pause, POLL_SECONDS[1])
                else:
                    break
        result.breakers = self._breakers()
        self._report_run(result, seconds=self._monotonic() - started)
        return result

    def _start_before(self, claim_started: float, deadline: float) -> float:
        lease_ends = claim_started + self._policy.lease_seconds
        return min(lease_ends, deadline) - self._publisher.send_timeout_seconds

    def _claim(self) -> store.Claim:
        now = self._monotonic()
        self._pauses = {topic: pause for topic, pause in self._pauses.items() if pause.until > now}
        return store.claim(
            self._connection(),
            token=uuid4(),
            claimed_by=self._name,
            size=self._policy.claim_size,
            max_bytes=CLAIM_BYTES,
            lease_seconds=self._policy.lease_seconds,
            max_attempts=self._policy.max_attempts,
            paused_topics=list(self._pauses),
        )

    def _deliver(
        self, claim: store.Claim, pool: ThreadPoolExecutor, result: RelayResult, *, start_before: float
    ) -> None:
        result.claimed += len(claim)
        result.dead_lettered += len(claim.spent)
        self._telemetry.count("EventsDeadLettered", len(claim.spent))
        for spent in claim.spent:
            self._log_row(spent, "dead_lettered", spent.error)

        unsendable, sendable = self._sort(claim.messages)
        sends = [pool.submit(self._send, batch, start_before) for batch in self._by_queue(sendable)]
        reports = unsendable + [report for send in sends for report in send.result()]
        self._settle(claim, reports, result)

    def _sort(self, messages: Sequence[Message]) -> tuple[list[_Report], list[Message]]:
        """Reports on what no queue can take, and the rest."""
        unsendable = []
        sendable = []
        for message in messages:
            reason = None
            if message.topic not in self._queue_urls:
                reason = f"topic {message.topic!r} has no queue: add it to TOPIC_QUEUE_URLS"
            elif message.size > MAX_BATCH_BYTES:
                reason = f"the message is too large: {message.size:,} bytes with its attributes, of {MAX_BATCH_BYTES:,}"
            if reason is None:
                sendable.append(message)
            else:
                unsendable.append(_Report(message, MessageFault(reason), self._monotonic()))
        return unsendable, sendable

    def _by_queue(self, messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
        for topic in dict.fromkeys(message.topic for message in messages):
            yield from batches([message for message in messages if message.topic == topic])

    def _send(self, batch: Sequence[Message], start_before: float) -> list[_Report]:
        topic = batch[0].topic
        started = self._monotonic()
        if pause := self._pauses.get(topic):
            # The queue failed an earlier batch of this claim: these are not worth its time-outs.
            return [_Report(message, QueueFault(pause.reason), started) for message in batch]
        outcomes: Sequence[Outcome]
        try:
            outcomes = self._publisher.publish(self._queue_urls[topic], batch, start_before=start_before)
        except Exception as error:
            # Raised on, it would leave every other batch of this claim unsettled, and have it sent twice.
            self._telemetry.logger.exception("the publisher failed", topic=topic)
            outcomes = [Failed(f"{type(error).__name__}: {error}")] * len(batch)
        ended = self._monotonic()
        fault = next((outcome for outcome in outcomes if isinstance(outcome, QueueFault)), None)
        if fault is not None:
            self._pauses[topic] = _Pause(ended + self._policy.cool_down_seconds, fault.reason)
        return [
            _Report(message, outcome, ended, None if isinstance(outcome, NotSent) else ended - started)
            for message, outcome in zip(batch, outcomes, strict=True)
        ]

    def _settle(self, claim: store.Claim, reports: Sequence[_Report], result: RelayResult) -> None:
        settlements: dict[int, Settlement] = {
            report.message.outbox_id: settle(
                report.outcome,
                attempt=report.message.attempt,
                max_attempts=self._policy.max_attempts,
                cool_down=timedelta(seconds=self._policy.cool_down_seconds),
            )
            for report in reports
        }
        if not settlements:
            return
        settling = self._monotonic()
        try:
            settled = self._settled(claim, settlements)
        except psycopg.OperationalError:
            # The messages are sent: settled on a new connection they need not be sent again. Fenced, it is safe twice.
            settled = self._settled(claim, settlements)
        # Counted from here on: the state is committed.
        for report in reports:
            outbox_id = report.message.outbox_id
            row, settlement = settled.get(outbox_id), settlements[outbox_id]
            if row is None:
                result.released += 1
                self._telemetry.count("LeaseLost", 1)
                self._log_row(report.message, "lease_lost", "another claim took this row over: the lease was too short")
                continue
            self._count(row.disposition, result)
            if row.disposition is not Disposition.PUBLISHED:
                self._log_row(report.message, row.disposition.value, settlement.error)
            if report.send_seconds is not None:
                self._telemetry.count("PublishLatency", report.send_seconds * 1000)
            if isinstance(report.outcome, Accepted):
                latency = row.age_seconds - (settling - report.known_at)
                self._telemetry.count("CommitToPublishLatency", max(latency, 0) * 1000)
        self._telemetry.flush()

    def _settled(self, claim: store.Claim, settlements: Mapping[int, Settlement]) -> Mapping[int, store.Settled]:
        return store.settle(self._connection(), token=claim.token, claimed_by=self._name, settlements=settlements)

    def _count(self, disposition: Disposition, result: RelayResult) -> None:
        match disposition:
            case Disposition.PUBLISHED:
                result.published += 1
                self._telemetry.count("EventsPublished", 1)
            case Disposition.FAILED:
                result.failed += 1
                self._telemetry.count("PublishFailures", 1)
                self._telemetry.count("DeliveryRetries", 1)
            case Disposition.DEAD_LETTERED:
                result.dead_lettered += 1
                self._telemetry.count("PublishFailures", 1)
                self._telemetry.count("EventsDeadLettered", 1)
            case Disposition.RELEASED:
                result.released += 1

    def _breakers(self) -> dict[str, str]:
        return {
            url.rstrip("/").rpartition("/")[2]: "open" if topic in self._pauses else "closed"
            for topic, url in self._queue_urls.items()
        }

    def _log_row(self, row: Message | store.Spent, state: str, error: str | None) -> None:
        log = self._telemetry.logger.info if error is None else self._telemetry.logger.warning
        log(
            state,
            state=state,
            event_id=str(row.event_id),
            trace_id=str(row.trace_id),
            topic=row.topic,
            attempt=row.attempt,
            error=error,
        )

    def _report_run(self, result: RelayResult, *, seconds: float) -> None:
        pending, oldest_age = store.backlog(self._connection())
        self._telemetry.count("OutboxPending", pending)
        self._telemetry.count("OldestPendingAge", oldest_age)
        self._telemetry.count("BreakerOpen", sum(state == "open" for state in result.breakers.values()))
        self._telemetry.count("RelayDuration", seconds * 1000)
        self._telemetry.flush()
        self._telemetry.logger.info("relayed", **result.to_dict(), pending=pending, oldest_pending_seconds=oldest_age)
