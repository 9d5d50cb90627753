"""The relay's side of Postgres: what to claim next, which queues are worth asking, what became of what was claimed."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event, Lock, Timer
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import Connection

from control_plane.model.errors import DatabaseUnavailable
from control_plane.model.lifecycle import Outcome, QueueFault, Settlement, settle
from control_plane.outbox import store
from control_plane.outbox.publisher import Message
from control_plane.platform.breakers import Breaker, BreakerPolicy, Breakers, queue_name
from control_plane.platform.database import hang_up
from control_plane.platform.telemetry import Telemetry

RECONNECT_SECONDS: Final = 5.0
"""How long a relay waits for a database that went away under it."""
RECONNECT_PAUSE_SECONDS: Final = 0.2
LAST_SECONDS: Final = 0.5
"""Of an invocation, in which Postgres is not waited for any more: to say so."""
QUEUE_FAULT_DELAY: Final = timedelta(seconds=2)
"""Before a row is tried again whose queue failed, while its breaker is still closed."""
SWEEP_SECONDS: Final = 5.0
"""How often claims start from the beginning again: for what came back, and for what was committed late."""
BACKLOG_SECONDS: Final = 1
"""That the count of open promises may take."""
LATE_COMMIT: Final = timedelta(seconds=30)
"""How far back a claim looks where a sweep has just found nothing: rows of transactions that were then under way."""
OVERLAP: Final = timedelta(seconds=2)
"""How far back a claim looks where the last one took all: transactions commit later than they date their rows."""
DUTY_SECONDS: Final = 1.0
"""How often a lingering relay looks whether another has come to take over."""

_TOO_LATE: Final = (
    "Postgres did not answer before the invocation's time was over: is it overloaded, or does somebody hold a lock on "
    "the outbox? What was sent and is not settled comes again when its lease ends"
)


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """How a relay works; durations in seconds."""

    claim_size: int
    lease_seconds: float
    max_attempts: int
    publish_concurrency: int
    breaker: BreakerPolicy


@dataclass(frozen=True, slots=True)
class Report:
    """A message's outcome, and when it was known by ``time.monotonic()``."""

    message: Message
    outcome: Outcome
    known_at: float
    send_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What a look for work found."""

    claim: store.Claim
    from_the_beginning: bool
    """Nothing that is due was passed over."""
    is_relieved: bool
    """Another lingering relay has taken over."""


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


class Ledger:
    """Claims, settlements and breakers over one connection. One thread uses it; what any thread may call says so."""

    def __init__(
        self,
        *,
        connection: Callable[[], Connection[Any]],
        queue_urls: Mapping[str, str],
        policy: RelayPolicy,
        telemetry: Telemetry,
        name: str,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = connection
        self._policy = policy
        self._telemetry = telemetry
        self._name = name
        self._monotonic = monotonic
        self._sleep = sleep
        self._topics = tuple(queue_urls)
        self._queue_names = {topic: queue_name(url) for topic, url in queue_urls.items()}
        self._database: Connection[Any] | None = None
        self._breakers = Breakers(self._connected, policy.breaker)
        self._views: dict[str, _BreakerView] = {}
        self._since: dict[str, datetime] = {}
        self._swept_at: float | None = None
        self._oldest_worth_a_look = store.BEGINNING
        self._duty = uuid4()
        self._asked_at = 0.0
        self._is_late = Event()
        self._closing = Lock()

    @contextmanager
    def ends_in(self, seconds: float) -> Iterator[None]:
        """In the block, whoever still waits for Postgres when the time is nearly up gets a DatabaseUnavailable.

        A connection that is just being opened has its own limit. Without this, a lock that somebody holds on the outbox
        would take the invocation's last word from it.
        """
        self._is_late.clear()
        timer = Timer(max(seconds - LAST_SECONDS, 0), self._end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _end(self) -> None:
        self._is_late.set()
        with self._closing:
            if self._database is not None:
                hang_up(self._database)

    def open(self, *, lingers: bool) -> None:
        """For one invocation. One that lingers takes over from whoever lingers now. Raises DatabaseUnavailable."""
        self._database = self._connection()
        self._swept_at = None
        self._views = {}
        if lingers:
            self._duty = uuid4()
            self._asked_at = self._monotonic()
            self._execute(lambda connection: store.take_over(connection, token=self._duty, name=self._name))

    def close(self, *, lingered: bool) -> tuple[int, float] | None:
        """Leaves the post, if it is still this relay's; returns how many promises are open, and the oldest's age.

        None where Postgres does not say: what the invocation did is done all the same.
        """
        try:
            if lingered:
                store.leave(self._connected(), token=self._duty)
            with self._connected().transaction():
                self._connected().execute(f"SET LOCAL statement_timeout = '{BACKLOG_SECONDS}s'")
                return store.backlog(self._connected())
        except (psycopg.Error, DatabaseUnavailable) as error:
            self._telemetry.logger.warning("the backlog is unknown", error=str(error))
            return None

    def breaker_states(self) -> dict[str, str]:
        """By queue, as last seen."""
        return {name: view.breaker.state for name, view in self._views.items()}

    # --- claims -------------------------------------------------------------------------------------------------------

    def look(self, *, max_bytes: int, full: Collection[str], afresh: bool, lingers: bool) -> Look:
        """Claims what is due and may be sent, but for topics that are ``full``; ``afresh``, from the beginning."""
        now = self._monotonic()
        if lingers and now - self._asked_at >= DUTY_SECONDS:
            self._asked_at = now
            if not self._execute(lambda connection: store.is_on_duty(connection, token=self._duty)):
                return Look(store.Claim(uuid4()), from_the_beginning=False, is_relieved=True)
        sweeps = afresh or self._swept_at is None or now - self._swept_at >= SWEEP_SECONDS
        if sweeps:
            self._sweep(now)
        lanes = {
            topic: store.Lane(limit, since)
            for topic, since in self._since.items()
            if topic not in full and (limit := self._limit(topic, now))
        }
        claim = self._claim(lanes, max_bytes) if lanes else store.Claim(uuid4())
        return Look(claim, from_the_beginning=sweeps, is_relieved=False)

    def _claim(self, lanes: Mapping[str, store.Lane], max_bytes: int) -> store.Claim:
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
        for topic, lane in lanes.items():
            taken, reached = claim.reached.get(topic, (0, None))
            if reached is None:
                self._since[topic] = max(lane.since, self._oldest_worth_a_look)
                self._give_back_probe(topic)
            else:
                # Rows of one instant may not have had room together: what lies at it is looked at again.
                self._since[topic] = reached if taken >= lane.limit else max(lane.since, reached - OVERLAP)
        return claim

    def _give_back_probe(self, topic: str) -> None:
        """Nothing was there to probe with: whoever has something need not wait a cool-down for it."""
        name = self._queue_names.get(topic)
        if name is not None and not (view := self._views[name]).breaker.is_closed and not view.is_shut:
            view.is_shut = True
            self._execute(lambda _: self._breakers.give_back_probe(name))

    def _sweep(self, now: float) -> None:
        """Looks at every topic from the beginning, those without a queue included, and at every breaker."""
        database_now, topics = self._execute(store.open_topics)
        self._oldest_worth_a_look = database_now - LATE_COMMIT
        self._since = dict.fromkeys(self._topics, self._oldest_worth_a_look) | dict.fromkeys(topics, store.BEGINNING)
        breakers = self._execute(lambda _: self._breakers.read(sorted(set(self._queue_names.values()))))
        for name, breaker in breakers.items():
            # One that the breaker has yet to be told of knows more.
            if name not in self._views or not self._views[name].faults:
                self._views[name] = _BreakerView.of(breaker, now)
        self._swept_at = now

    def _limit(self, topic: str, now: float) -> int:
        """How many rows of a topic to claim: none while its queue's breaker is open, one as its probe."""
        name = self._queue_names.get(topic)
        if name is None or (view := self._views[name]).breaker.is_closed:
            return self._policy.claim_size
        if view.probe_at is None or now < view.probe_at or self._since[topic] != store.BEGINNING:
            # Not yet; or the last sweep found nothing of this topic to probe with.
            return 0
        # Whether it wins or another does: not again before the next sweep or the probe's own outcome.
        view.probe_at = None
        view.is_shut = not self._execute(lambda _: self._breakers.try_probe(name))
        return 0 if view.is_shut else 1

    # --- breakers -----------------------------------------------------------------------------------------------------

    def shut_because(self, topic: str) -> str | None:
        """Why nothing more is to be sent to the topic's queue, or None. Any thread may ask."""
        view = self._views[self._queue_names[topic]]
        return view.reason if view.is_shut else None

    def note_fault(self, topic: str, fault: QueueFault) -> None:
        """The queue failed: at the breaker's threshold it is shut, before Postgres hears. Any thread may say so."""
        view = self._views[self._queue_names[topic]]
        view.faults += 1
        view.reason = fault.reason
        view.is_shut |= view.breaker.consecutive_failures + view.faults >= self._policy.breaker.failure_threshold

    def has_news(self, batch: Sequence[Report]) -> bool:
        """Whether :meth:`hear` would have anything to do. Any thread may ask."""
        if batch[0].send_seconds is None:
            return False  # not asked at all
        name = self._queue_names[batch[0].message.topic]
        return not self._breakers.is_sound(name) or any(isinstance(report.outcome, QueueFault) for report in batch)

    def hear(self, batch: Sequence[Report]) -> None:
        """Tells the breaker whether the batch's queue is there, and what it said if not."""
        name = self._queue_names[batch[0].message.topic]
        fault = next((report.outcome for report in batch if isinstance(report.outcome, QueueFault)), None)
        if fault is not None:
            breaker = self._execute(lambda _: self._breakers.failed(name, fault.reason))
            if not breaker.is_closed:
                self._telemetry.logger.warning("breaker_open", state=breaker.state, error=fault.reason, queue=name)
        else:
            self._execute(lambda _: self._breakers.succeeded(name))
            if self._views[name].breaker.held_by is not None:
                return
            breaker = Breaker(name)
        self._views[name] = _BreakerView.of(breaker, self._monotonic())

    # --- settlements --------------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[tuple[Message, Settlement]]) -> tuple[float, Sequence[store.Settled]]:
        """Records outcomes. Returns when this began, and what took effect."""
        started = self._monotonic()
        tries = 0

        def record(connection: Connection[Any]) -> Sequence[store.Settled]:
            nonlocal tries
            tries += 1
            settled = store.settle(connection, claimed_by=self._name, settlements=settlements)
            if tries == 1 or len(settled) == len(settlements):
                return settled
            # It may have been committed before its answer was lost.
            message_ids = {message.outbox_id: one.message_id for message, one in settlements if one.message_id}
            return [*settled, *store.settled_before(connection, message_ids)]

        return started, self._execute(record)

    def settlement(self, report: Report) -> Settlement:
        """What an outcome turns its row into. Any thread may ask."""
        view = self._views.get(self._queue_names.get(report.message.topic, ""))
        # An open breaker keeps the row back by itself, and lets it go in the moment that it closes.
        is_kept_back = view is not None and not view.breaker.is_closed
        return settle(
            report.outcome,
            attempt=report.message.attempt,
            max_attempts=self._policy.max_attempts,
            cool_down=timedelta() if is_kept_back else QUEUE_FAULT_DELAY,
        )

    # --- the connection -----------------------------------------------------------------------------------------------

    def _connected(self) -> Connection[Any]:
        if self._database is None:
            opened = self._connection()
            with self._closing:
                self._database = opened
                if self._is_late.is_set():
                    raise DatabaseUnavailable(_TOO_LATE)
        return self._database

    def _execute[T](self, statement: Callable[[Connection[Any]], T]) -> T:
        """Runs a statement, again on a new connection where the old one breaks, for as long as a restart takes.

        What is out may be sent already: settled, it need not be sent again. Twice is safe: settlements are fenced, a
        claim whose answer was lost comes back by its lease, and a breaker that counts a failure twice opens the sooner.
        """
        give_up_at = self._monotonic() + RECONNECT_SECONDS
        failure = None
        while not self._is_late.is_set():
            try:
                return statement(self._connected())
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, DatabaseUnavailable) as error:
                failure = error
                # After a failover the one that was the writer still answers: only a new connection finds the new one.
                with self._closing:
                    if self._database is not None:
                        self._database.close()
                    self._database = None
                if self._is_late.is_set():
                    break
                if self._monotonic() >= give_up_at:
                    raise
                self._sleep(RECONNECT_PAUSE_SECONDS)
        raise DatabaseUnavailable(_TOO_LATE) from failure
