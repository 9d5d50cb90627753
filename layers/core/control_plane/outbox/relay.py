"""The relay: claim, publish, settle, all at once, until the work or the time is done."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import Connection

from control_plane.domain.errors import ConfigurationError, DatabaseUnavailable
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
from control_plane.platform.breakers import Breaker, BreakerPolicy, Breakers, queue_name
from control_plane.platform.telemetry import Telemetry

CLAIM_BYTES: Final = 16 * MAX_BATCH_BYTES
"""Of the bodies that are out at any time."""
SETTLE_SECONDS: Final = 2.0
"""Kept free at the end of an invocation for settling what is out."""
SETTLE_ROWS: Final = 200
"""Outcomes that are worth a settlement of their own while others are still awaited."""
SETTLE_DELAY_SECONDS: Final = 0.02
"""The longest that a known outcome waits for others to be settled with."""
RECONNECT_SECONDS: Final = 5.0
"""How long a relay waits for a database that went away under it."""
RECONNECT_PAUSE_SECONDS: Final = 0.2
POLL_SECONDS: Final = (0.005, 0.05)
"""The shortest and the longest pause of a lingering relay that finds nothing; each empty look doubles it."""
QUEUE_FAULT_DELAY: Final = timedelta(seconds=2)
"""Before a row is tried again whose queue failed, while its breaker is still closed."""
SWEEP_SECONDS: Final = 5.0
"""How often claims start from the beginning again: for what came back, and for what was committed late."""
LATE_COMMIT: Final = timedelta(seconds=30)
"""How far back a claim looks where a sweep has just found nothing: rows of transactions that were then under way."""


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """How a relay works; durations in seconds."""

    claim_size: int
    lease_seconds: float
    max_attempts: int
    publish_concurrency: int
    breaker: BreakerPolicy


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
class _Report:
    """A message's outcome, and when it was known by ``time.monotonic()``."""

    message: Message
    outcome: Outcome
    known_at: float
    send_seconds: float | None = None


@dataclass(slots=True)
class _BreakerView:
    """A breaker as this relay last saw it; ``probe_at``, by ``time.monotonic()``, is when to ask for the probe."""

    breaker: Breaker
    probe_at: float | None
    is_shut: bool
    """Nothing more is to be sent."""
    reason: str
    faults: int = 0
    """Failures of the queue that the breaker was not told of yet."""

    @classmethod
    def of(cls, breaker: Breaker, now: float) -> "_BreakerView":
        wait_seconds = breaker.retry_in_seconds
        probe_at = None if wait_seconds is None else now + wait_seconds
        return cls(breaker, probe_at, breaker.state == "open", breaker.last_error or "the breaker is open")


class _Flight:
    """The batches that were handed to the publishing threads and are not heard of yet."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._landings: SimpleQueue[tuple[Sequence[Message], list[_Report] | BaseException]] = SimpleQueue()
        self.messages = 0
        self.bytes = 0

    def __bool__(self) -> bool:
        return self.messages > 0

    def launch(self, batch: Sequence[Message], send: Callable[[Sequence[Message]], list[_Report]]) -> None:
        """Has a thread send the batch."""
        self.messages += len(batch)
        self.bytes += sum(message.size for message in batch)
        self._pool.submit(self._fly, batch, send)

    def _fly(self, batch: Sequence[Message], send: Callable[[Sequence[Message]], list[_Report]]) -> None:
        try:
            self._landings.put((batch, send(batch)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it must be heard of where the batch is awaited
            self._landings.put((batch, error))

    def landed(self, timeout: float) -> list[list[_Report]]:
        """The batches known of by now; waits up to ``timeout`` seconds where none is. Raises what a send raised."""
        reports: list[list[_Report]] = []
        with contextlib.suppress(Empty):
            while True:
                batch, landed = self._landings.get(timeout=timeout if not reports else 0)
                self.messages -= len(batch)
                self.bytes -= sum(message.size for message in batch)
                if isinstance(landed, BaseException):
                    raise landed
                reports.append(landed)
        return reports


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
        self._queue_names = {topic: queue_name(url) for topic, url in queue_urls.items()}
        self._database: Connection[Any] | None = None
        self._breakers = Breakers(self._connected, policy.breaker)
        self._states: dict[str, _BreakerView] = {}
        self._since: dict[str, datetime] = {}
        self._swept_at: float | None = None
        self._oldest_worth_a_look = store.BEGINNING

    def run(self, *, remaining_seconds: Callable[[], float], linger_seconds: float = 0) -> RelayResult:
        """Drains the outbox; with ``linger_seconds``, stays and polls that long.

        While batches are on the wire the next rows are claimed and finished ones settled. ``remaining_seconds`` is what
        the invocation has left: claiming stops while there is time to settle, and what was not sent by then is given
        back. Raises psycopg.Error where the database fails; the lease returns its rows.
        """
        started = self._monotonic()
        deadline = started + remaining_seconds() - SETTLE_SECONDS
        if deadline - started <= self._publisher.send_timeout_seconds:
            self._telemetry.logger.warning("no time to claim anything", error="give the function a longer timeout")
        self._database = self._connection()
        self._swept_at = None
        result = RelayResult()
        pool = ThreadPoolExecutor(self._policy.publish_concurrency, thread_name_prefix="publish")
        try:
            self._relay(_Flight(pool), result, deadline, linger_until=min(started + linger_seconds, deadline))
        finally:
            pool.shutdown(cancel_futures=True)
        self._report_run(result, seconds=self._monotonic() - started)
        return result

    def _relay(self, flight: _Flight, result: RelayResult, deadline: float, *, linger_until: float) -> None:
        reports: list[_Report] = []
        next_look, pause = self._monotonic(), POLL_SECONDS[0]
        drained = False
        while True:
            now = self._monotonic()
            may_claim = now + self._publisher.send_timeout_seconds < deadline
            if reports and (
                len(reports) >= SETTLE_ROWS or not flight or now - reports[0].known_at >= SETTLE_DELAY_SECONDS
            ):
                self._settle(reports, result)
                reports = []
            elif (
                may_claim
                and now >= next_look
                and flight.messages < self._policy.claim_size
                and flight.bytes < CLAIM_BYTES // 2
            ):
                claim = self._claim(now, max_bytes=CLAIM_BYTES - flight.bytes)
                drained = not len(claim) and not flight and not reports and self._swept_at == now
                if len(claim):
                    next_look, pause = now, POLL_SECONDS[0]
                    reports += self._launch(claim, flight, result, start_before=self._start_before(now, deadline))
                else:
                    next_look, pause = now + pause, min(2 * pause, POLL_SECONDS[1])
            elif flight:
                for batch in flight.landed(SETTLE_DELAY_SECONDS):
                    self._tell_breaker(batch)
                    reports += batch
            elif not may_claim or (next_look >= linger_until and drained):
                return
            elif next_look >= linger_until:
                # Before it ends, once more from the beginning: for what was passed over and for what came back.
                self._swept_at, next_look = None, now
            else:
                self._telemetry.flush()
                self._sleep(max(next_look - now, 0))

    def _start_before(self, claim_started: float, deadline: float) -> float:
        lease_ends = claim_started + self._policy.lease_seconds
        return min(lease_ends, deadline) - self._publisher.send_timeout_seconds

    def _connected(self) -> Connection[Any]:
        if self._database is None:
            self._database = self._connection()
        return self._database

    def _execute[T](self, statement: Callable[[Connection[Any]], T]) -> T:
        """Runs a statement, again on a new connection where the old one breaks, for as long as a restart takes.

        What is out may be sent already: settled, it need not be sent again. Twice is safe: settlements are fenced, and
        a claim whose answer was lost comes back by its lease.
        """
        give_up_at = self._monotonic() + RECONNECT_SECONDS
        while True:
            try:
                if self._database is None:
                    self._database = self._connection()
                return statement(self._database)
            except (psycopg.OperationalError, DatabaseUnavailable):
                self._database = None
                if self._monotonic() >= give_up_at:
                    raise
                self._sleep(RECONNECT_PAUSE_SECONDS)

    # --- claiming -----------------------------------------------------------------------------------------------------

    def _claim(self, now: float, *, max_bytes: int) -> store.Claim:
        if self._swept_at is None or now - self._swept_at >= SWEEP_SECONDS:
            self._sweep(now)
        lanes = {
            topic: store.Lane(limit, since)
            for topic, since in self._since.items()
            if (limit := self._limit(topic, now))
        }
        if not lanes:
            return store.Claim(uuid4(), (), (), {})
        claim = self._execute(
            lambda connection: store.claim(
                connection,
                token=uuid4(),
                claimed_by=self._name,
                lanes=lanes,
                max_bytes=max_bytes,
                lease_seconds=self._policy.lease_seconds,
                max_attempts=self._policy.max_attempts,
            )
        )
        for topic in lanes:
            self._since[topic] = claim.reached.get(topic, max(self._since[topic], self._oldest_worth_a_look))
        return claim

    def _sweep(self, now: float) -> None:
        """Looks at every topic from the beginning, those without a queue included, and at every breaker."""
        database_now, topics = self._execute(store.open_topics)
        self._oldest_worth_a_look = database_now - LATE_COMMIT
        self._since = dict.fromkeys(self._queue_urls, self._oldest_worth_a_look) | dict.fromkeys(
            topics, store.BEGINNING
        )
        breakers = self._breakers.read(sorted(set(self._queue_names.values())))
        self._states = {name: _BreakerView.of(breaker, now) for name, breaker in breakers.items()}
        self._swept_at = now

    def _limit(self, topic: str, now: float) -> int:
        """How many rows of a topic to claim: none while its queue's breaker is open, one as its probe."""
        name = self._queue_names.get(topic)
        if name is None or (view := self._states[name]).breaker.is_closed:
            return self._policy.claim_size
        if view.probe_at is None or now < view.probe_at or self._since[topic] != store.BEGINNING:
            # Not yet; or the last sweep found nothing of this topic to probe with.
            return 0
        # Whether it wins or another does: not again before the next sweep or the probe's own outcome.
        view.probe_at = None
        view.is_shut = not self._breakers.try_probe(name)
        return 0 if view.is_shut else 1

    # --- publishing ---------------------------------------------------------------------------------------------------

    def _launch(
        self, claim: store.Claim, flight: _Flight, result: RelayResult, *, start_before: float
    ) -> list[_Report]:
        """Hands the claim's batches to the publishing threads; reports at once on what no queue can take."""
        result.claimed += len(claim)
        result.dead_lettered += len(claim.spent)
        self._telemetry.count("EventsDeadLettered", len(claim.spent))
        for spent in claim.spent:
            self._log_row(spent, "dead_lettered", spent.error)
        unsendable, sendable = self._sort(claim.messages)
        for batch in self._by_queue(sendable):
            flight.launch(batch, functools.partial(self._send, start_before=start_before))
        return unsendable

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

    def _send(self, batch: Sequence[Message], *, start_before: float) -> list[_Report]:
        topic = batch[0].topic
        started = self._monotonic()
        view = self._states[self._queue_names[topic]]
        if view.is_shut:
            # The queue failed while this batch waited: it is not worth its time-out.
            return [_Report(message, QueueFault(view.reason), started) for message in batch]
        outcomes: Sequence[Outcome]
        try:
            outcomes = self._publisher.publish(self._queue_urls[topic], batch, start_before=start_before)
        except Exception as error:
            # Raised on, it would leave every other batch unsettled, and have it sent twice.
            self._telemetry.logger.exception("the publisher failed", topic=topic)
            outcomes = [Failed(f"{type(error).__name__}: {error}")] * len(batch)
        ended = self._monotonic()
        fault = next((outcome for outcome in outcomes if isinstance(outcome, QueueFault)), None)
        if fault is not None:
            view.faults += 1
            view.reason = fault.reason
            view.is_shut |= view.breaker.consecutive_failures + view.faults >= self._policy.breaker.failure_threshold
        return [
            _Report(message, outcome, ended, None if isinstance(outcome, NotSent) else ended - started)
            for message, outcome in zip(batch, outcomes, strict=True)
        ]

    def _tell_breaker(self, batch: Sequence[_Report]) -> None:
        """Whether the batch's queue is there, and what it said if not; nothing where it was not asked."""
        if batch[0].send_seconds is None:
            return
        name = self._queue_names[batch[0].message.topic]
        fault = next((report.outcome for report in batch if isinstance(report.outcome, QueueFault)), None)
        if fault is not None:
            breaker = self._breakers.failed(name, fault.reason)
            if not breaker.is_closed:
                self._telemetry.logger.warning("breaker_open", state=breaker.state, error=fault.reason, queue=name)
        else:
            self._breakers.succeeded(name)
            if self._states[name].breaker.held_by is not None:
                return
            breaker = Breaker(name)
        self._states[name] = _BreakerView.of(breaker, self._monotonic())

    # --- settling -----------------------------------------------------------------------------------------------------

    def _settle(self, reports: Sequence[_Report], result: RelayResult) -> None:
        settlements = [(report.message, self._settlement(report)) for report in reports]
        settling = self._monotonic()
        settled = self._execute(
            lambda connection: store.settle(connection, claimed_by=self._name, settlements=settlements)
        )
        # Counted from here on: the state is committed.
        slowest_sends: dict[float, float] = {}
        for report, (message, settlement) in zip(reports, settlements, strict=True):
            row = settled.get(message.outbox_id)
            if row is None:
                result.released += 1
                self._telemetry.count("LeaseLost", 1)
                self._log_row(message, "lease_lost", "another claim took this row over: the lease was too short")
                continue
            self._count(row.disposition, result)
            if row.disposition is not Disposition.PUBLISHED:
                self._log_row(message, row.disposition.value, settlement.error)
            elif isinstance(report.outcome, Accepted):
                latency = max(row.age_seconds - (settling - report.known_at), 0)
                self._telemetry.count("CommitToPublishLatency", latency * 1000)
            if report.send_seconds is not None:
                slowest_sends[report.known_at] = report.send_seconds
        for seconds in slowest_sends.values():
            self._telemetry.count("PublishLatency", seconds * 1000)
        self._telemetry.flush_at_times()

    def _settlement(self, report: _Report) -> Settlement:
        view = self._states.get(self._queue_names.get(report.message.topic, ""))
        # An open breaker keeps the row back by itself, and lets it go in the moment that it closes.
        is_kept_back = view is not None and not view.breaker.is_closed
        return settle(
            report.outcome,
            attempt=report.message.attempt,
            max_attempts=self._policy.max_attempts,
            cool_down=timedelta() if is_kept_back else QUEUE_FAULT_DELAY,
        )

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
        result.breakers = {name: view.breaker.state for name, view in self._states.items()}
        pending, oldest_age = store.backlog(self._connected())
        self._telemetry.count("OutboxPending", pending)
        self._telemetry.count("OldestPendingAge", oldest_age)
        self._telemetry.count("BreakerOpen", sum(state != "closed" for state in result.breakers.values()))
        self._telemetry.count("RelayDuration", seconds * 1000)
        self._telemetry.flush()
        self._telemetry.logger.info("relayed", **result.to_dict(), pending=pending, oldest_pending_seconds=oldest_age)
