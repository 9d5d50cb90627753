"""The relay: claim, publish, settle, all at once, until the work or the time is done.

One thread decides. The publishing threads send, one thread of its own speaks with Postgres (the ledger), and what they
come to is handled by the deciding thread, one result after another.
"""

import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, Final

from psycopg import Connection

from control_plane.model.errors import ConfigurationError
from control_plane.model.lifecycle import (
    Accepted,
    Disposition,
    Failed,
    MessageFault,
    NotSent,
    Outcome,
    QueueFault,
    Settlement,
)
from control_plane.outbox import store
from control_plane.outbox.background import Results, Workers
from control_plane.outbox.ledger import Ledger, Look, RelayPolicy, Report
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message, Publisher, batches
from control_plane.platform.telemetry import Telemetry

CLAIM_BYTES: Final = 8 * MAX_BATCH_BYTES
"""Of the bodies that are out at any time."""
SETTLE_SECONDS: Final = 2.0
"""Kept free at the end of an invocation for settling what is out."""
SETTLE_ROWS: Final = 200
"""Outcomes that are worth a settlement of their own while others are still awaited."""
SETTLE_DELAY_SECONDS: Final = 0.02
"""The longest that a known outcome waits for others to be settled with."""
FAIR_LOOK_SECONDS: Final = 1.0
"""How long the rows of one topic wait to be looked at while another's fill the publishing threads."""
POLL_SECONDS: Final = (0.005, 0.1)
"""The shortest and the longest pause of a lingering relay that finds nothing; each empty look doubles it."""

type HandOut = Callable[[Callable[[], Any], Callable[[Any], None]], None]
"""Has a thread do a job, and the deciding one deal with its result."""


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
        self._publisher = publisher
        self._queue_urls = queue_urls
        self._policy = policy
        self._telemetry = telemetry
        self._monotonic = monotonic
        self._sleep = sleep
        self._ledger = Ledger(
            connection=connection,
            queue_urls=queue_urls,
            policy=policy,
            telemetry=telemetry,
            name=name,
            monotonic=monotonic,
            sleep=sleep,
        )

    def run(self, *, remaining_seconds: Callable[[], float], linger_seconds: float = 0) -> RelayResult:
        """Drains the outbox; with ``linger_seconds``, stays and polls that long, or until another comes to do so.

        ``remaining_seconds`` is what the invocation has left: claiming stops while there is time to settle, and what
        was not sent by then is given back. Raises psycopg.Error where the database fails; the lease returns its rows.
        """
        started = self._monotonic()
        remaining = remaining_seconds()
        deadline = started + remaining - SETTLE_SECONDS
        has_time = deadline - started > self._publisher.send_timeout_seconds
        if not has_time:
            self._telemetry.logger.warning("no time to claim anything", error="give the function a longer timeout")
        # One that can do nothing relieves nobody.
        lingers = linger_seconds > 0 and has_time
        linger_until = min(started + linger_seconds, deadline)
        with self._ledger.ends_in(remaining):
            self._ledger.open(lingers=lingers)
            result = self._invoke(deadline, linger_until, lingers=lingers)
            pending, oldest_age = self._ledger.close(lingered=lingers) or (None, None)
        if pending is not None and oldest_age is not None:
            self._telemetry.count("OutboxPending", pending)
            self._telemetry.count("OldestPendingAge", oldest_age)
        self._telemetry.count("BreakerOpen", sum(state != "closed" for state in result.breakers.values()))
        self._telemetry.count("RelayDuration", (self._monotonic() - started) * 1000)
        self._telemetry.flush()
        self._telemetry.logger.info("relayed", **result.to_dict(), pending=pending, oldest_pending_seconds=oldest_age)
        return result

    def _invoke(self, deadline: float, linger_until: float, *, lingers: bool) -> RelayResult:
        results = Results()
        ledger_thread = Workers(1, results, name="ledger")
        publishing_threads = Workers(self._policy.publish_concurrency, results, name="publish")
        invocation = _Invocation(
            ledger=self._ledger,
            on_ledger=ledger_thread.hand_out,
            sender=_Sender(self._publisher, self._queue_urls, self._ledger, self._telemetry, self._monotonic),
            waiting=_Waiting(),
            on_publisher=publishing_threads.hand_out,
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
            publishing_threads.close()
            ledger_thread.close()
        invocation.result.breakers = self._ledger.breaker_states()
        return invocation.result


@dataclass(slots=True, kw_only=True)
class _Invocation:
    """One invocation, as the deciding thread sees it."""

    ledger: Ledger
    on_ledger: HandOut
    sender: "_Sender"
    waiting: "_Waiting"
    on_publisher: HandOut
    results: Results
    policy: RelayPolicy
    telemetry: Telemetry
    deadline: float
    linger_until: float
    lingers: bool
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    result: RelayResult = field(default_factory=RelayResult)

    looks: bool = False
    """A look for work is under way."""
    settles: bool = False
    """A settlement is under way."""
    unsettled: list[Report] = field(default_factory=list)
    flying: Counter[str] = field(default_factory=Counter)
    """By topic, messages handed to the publishing threads and not heard of."""
    bytes_out: int = 0
    """Of the messages that are claimed and not settled."""
    next_look: float = 0
    pause: float = POLL_SECONDS[0]
    afresh: bool = False
    """The next look starts from the beginning."""
    next_fair_look: float = 0
    """When a topic with room is looked at although another fills the threads."""
    drained: bool = False
    """The last look, from the beginning and with nothing out, found nothing."""
    relieved: bool = False
    """Another one that lingers has come: what is out is settled, and nothing more is claimed."""

    def run(self) -> None:
        """Hands out whatever can be done now, deals with what comes back, and ends where there is nothing of either."""
        self.next_look = self.monotonic()
        while True:
            now = self.monotonic()
            if self._is_worth_settling(now):
                self._settle()
            may_claim = not self.relieved and now + self.sender.timeout_seconds < self.deadline
            if may_claim and now >= self.next_look and self._has_room(now):
                self._look(now)
            if self.results:
                self.results.take(SETTLE_DELAY_SECONDS)
            elif not may_claim or (self.next_look >= self.linger_until and self.drained):
                return
            elif self.next_look >= self.linger_until:
                # Before it ends, once more from the beginning: for what was passed over and for what came back.
                self.afresh, self.next_look = True, now
            else:
                self.telemetry.flush_at_times()
                self.sleep(max(self.next_look - now, 0))

    # --- claiming -----------------------------------------------------------------------------------------------------

    def _has_room(self, now: float) -> bool:
        return (
            not self.looks
            and self.bytes_out < CLAIM_BYTES // 2
            and (self.flying.total() < self.policy.claim_size or now >= self.next_fair_look)
        )

    def _look(self, now: float) -> None:
        self.looks = True
        self.next_fair_look = now + FAIR_LOOK_SECONDS
        full = {topic for topic, messages in self.flying.items() if messages >= self.policy.claim_size}
        nothing_is_out = not self.results and not self.unsettled
        lease_ends = now + self.policy.lease_seconds
        start_before = min(lease_ends, self.deadline) - self.sender.timeout_seconds
        look = functools.partial(
            self.ledger.look,
            max_bytes=CLAIM_BYTES - self.bytes_out,
            full=full,
            afresh=self.afresh,
            lingers=self.lingers,
        )
        self.afresh = False
        self.on_ledger(look, functools.partial(self._found, start_before, nothing_is_out))

    def _found(self, start_before: float, nothing_was_out: bool, look: Look) -> None:
        self.looks = False
        self.drained = nothing_was_out and look.from_the_beginning and not len(look.claim)
        now = self.monotonic()
        if look.is_relieved:
            self.telemetry.logger.info("relieved")
            self.relieved = True
        if len(look.claim):
            self.next_look, self.pause = now, POLL_SECONDS[0]
            self._launch(look.claim, start_before)
        else:
            self.next_look, self.pause = now + self.pause, min(2 * self.pause, POLL_SECONDS[1])

    def _launch(self, claim: store.Claim, start_before: float) -> None:
        """Hands the claim's batches to the publishing threads; reports at once on what no queue can take."""
        self.result.claimed += len(claim)
        self.result.dead_lettered += len(claim.spent)
        self.telemetry.count("EventsDeadLettered", len(claim.spent))
        for spent in claim.spent:
            _log_row(self.telemetry, spent, "dead_lettered", spent.error)
        self.bytes_out += sum(message.size for message in claim.messages)
        unsendable, sendable = self.sender.sort(claim.messages)
        self.unsettled += unsendable
        for batch in sendable:
            self.flying[batch[0].topic] += len(batch)
            self.waiting.add(batch, start_before)
            self.on_publisher(lambda: self.sender.send(*self.waiting.take()), self._landed)

    def _landed(self, batch: Sequence[Report]) -> None:
        self.flying[batch[0].message.topic] -= len(batch)
        if self.ledger.has_news(batch):
            # First the breaker, which decides when a row that its queue failed is tried again.
            self.on_ledger(functools.partial(self.ledger.hear, batch), lambda _: self.unsettled.extend(batch))
        else:
            self.unsettled += batch

    # --- settling -----------------------------------------------------------------------------------------------------

    def _is_worth_settling(self, now: float) -> bool:
        reports = self.unsettled
        return (
            bool(reports)
            and not self.settles
            and (
                len(reports) >= SETTLE_ROWS
                or not self.flying.total()
                or now - reports[0].known_at >= SETTLE_DELAY_SECONDS
            )
        )

    def _settle(self) -> None:
        self.settles = True
        reports, self.unsettled = self.unsettled, []
        settlements = [(report.message, self.ledger.settlement(report)) for report in reports]
        self.on_ledger(
            functools.partial(self.ledger.settle, settlements), functools.partial(self._settled, reports, settlements)
        )

    def _settled(
        self,
        reports: Sequence[Report],
        settlements: Sequence[tuple[Message, Settlement]],
        outcome: tuple[float, Sequence[store.Settled]],
    ) -> None:
        """Counted here and not before: the state is committed."""
        self.settles = False
        started, rows = outcome
        settled = {row.outbox_id: row for row in rows}
        published = 0
        slowest_sends: dict[float, float] = {}
        for report, (message, settlement) in zip(reports, settlements, strict=True):
            self.bytes_out -= message.size
            row = settled.get(message.outbox_id)
            if row is None:
                self.result.released += 1
                self.telemetry.count("LeaseLost", 1)
                _log_row(
                    self.telemetry,
                    message,
                    "lease_lost",
                    "another claim took this row over: the lease was too short",
                )
                continue
            if row.disposition == Disposition.PUBLISHED:
                published += 1
                if isinstance(report.outcome, Accepted):
                    latency = max(row.age_seconds - (started - report.known_at), 0)
                    self.telemetry.count("CommitToPublishLatency", latency * 1000)
            else:
                self._count(settlement.disposition)
                _log_row(self.telemetry, message, row.disposition, settlement.error)
            if report.send_seconds is not None:
                slowest_sends[report.known_at] = report.send_seconds
        self.result.published += published
        self.telemetry.count("EventsPublished", published)
        for seconds in slowest_sends.values():
            self.telemetry.count("PublishLatency", seconds * 1000)
        self.telemetry.flush_at_times()

    def _count(self, disposition: Disposition) -> None:
        match disposition:
            case Disposition.FAILED:
                self.result.failed += 1
                self.telemetry.count("PublishFailures", 1)
                self.telemetry.count("DeliveryRetries", 1)
            case Disposition.DEAD_LETTERED:
                self.result.dead_lettered += 1
                self.telemetry.count("PublishFailures", 1)
                self.telemetry.count("EventsDeadLettered", 1)
            case Disposition.RELEASED:
                self.result.released += 1


class _Waiting:
    """The batches that wait for a publishing thread. Topics take turns: a slow queue keeps no other waiting."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_topic: dict[str, deque[tuple[Sequence[Message], float]]] = {}

    def add(self, batch: Sequence[Message], start_before: float) -> None:
        """Behind those of its topic."""
        with self._lock:
            self._by_topic.setdefault(batch[0].topic, deque()).append((batch, start_before))

    def take(self) -> tuple[Sequence[Message], float]:
        """The next one, of the topic that waited longest for its turn. One must be there for every call."""
        with self._lock:
            topic = next(iter(self._by_topic))
            of_topic = self._by_topic.pop(topic)
            batch = of_topic.popleft()
            if of_topic:
                self._by_topic[topic] = of_topic  # last now
            return batch


@dataclass(frozen=True, slots=True)
class _Sender:
    """What a publishing thread does."""

    publisher: Publisher
    queue_urls: Mapping[str, str]
    ledger: Ledger
    telemetry: Telemetry
    monotonic: Callable[[], float]

    @property
    def timeout_seconds(self) -> float:
        """The longest that a send may take."""
        return self.publisher.send_timeout_seconds

    def sort(self, messages: Sequence[Message]) -> tuple[list[Report], list[Sequence[Message]]]:
        """Reports on what no queue can take, and the rest in batches, each for one queue."""
        unsendable = []
        by_topic: dict[str, list[Message]] = {topic: [] for topic in self.queue_urls}
        for message in messages:
            if message.topic not in by_topic:
                reason = f"topic {message.topic!r} has no queue: add it to TOPIC_QUEUE_URLS"
            elif message.size > MAX_BATCH_BYTES:
                reason = f"the message is too large: {message.size:,} bytes with its attributes, of {MAX_BATCH_BYTES:,}"
            else:
                by_topic[message.topic].append(message)
                continue
            unsendable.append(Report(message, MessageFault(reason), self.monotonic()))
        return unsendable, [batch for of_topic in by_topic.values() for batch in batches(of_topic)]

    def send(self, batch: Sequence[Message], start_before: float) -> list[Report]:
        """Each message's outcome; raises nothing that is one batch's trouble."""
        topic = batch[0].topic
        started = self.monotonic()
        if (reason := self.ledger.shut_because(topic)) is not None:
            # The queue failed while this batch waited: it is not worth its time-out.
            return [Report(message, QueueFault(reason), started) for message in batch]
        outcomes: Sequence[Outcome]
        try:
            outcomes = self.publisher.publish(self.queue_urls[topic], batch, start_before=start_before)
        except Exception as error:
            # Raised on, it would leave every other batch unsettled, and have it sent twice.
            self.telemetry.logger.exception("the publisher failed", topic=topic)
            outcomes = [Failed(f"{type(error).__name__}: {error}")] * len(batch)
        ended = self.monotonic()
        fault = next((outcome for outcome in outcomes if isinstance(outcome, QueueFault)), None)
        if fault is not None:
            self.ledger.note_fault(topic, fault)
        return [
            Report(message, outcome, ended, None if isinstance(outcome, NotSent) else ended - started)
            for message, outcome in zip(batch, outcomes, strict=True)
        ]


def _log_row(telemetry: Telemetry, row: Message | store.Spent, state: str, error: str | None) -> None:
    log = telemetry.logger.info if error is None else telemetry.logger.warning
    log(
        state,
        state=state,
        event_id=str(row.event_id),
        trace_id=str(row.trace_id),
        topic=row.topic,
        attempt=row.attempt,
        error=error,
    )
