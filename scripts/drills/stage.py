"""The stage of a drill: the deployed pipeline, what a drill makes fail in it, and what the drill observes."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import psutil
import psycopg

from control_plane.ingestion.service import BREAKER_OPEN
from control_plane.ingestion.store import database_time, newest_occurrences
from control_plane.outbox.sqs import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS
from control_plane.platform.breakers import Breaker, read_breakers
from domains.finance.events import MarketTick
from drills import mending, messages
from drills.messages import QUERIES, Batch, OutboxMessage, Story
from drills.record import Change
from local_cloud import database
from local_cloud.aws import AWS_ERRORS
from local_cloud.errors import AcpError
from local_cloud.functions import function_name
from local_cloud.logs import read_lines
from queue_endpoint import QueueEndpoint, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from psycopg import Connection

    from drills.narrator import Narrator
    from drills.record import DrillRecord
    from local_cloud.cloud import Cloud
    from local_cloud.run_state import RunState

COOL_DOWN_SECONDS: Final = 3
SEND_SECONDS: Final = CONNECT_TIMEOUT_SECONDS + READ_TIMEOUT_SECONDS
LEASE_SECONDS: Final = math.floor(SEND_SECONDS) + 1
"""The shortest lease that the relay accepts, which is more than a send may take."""
_TURN_SECONDS = 1
"""How long each of the drill's relays lingers; the next one starts when it ends."""
_LOOK_SECONDS = 0.1
_QUIET_SECONDS = 8
"""A relay that made no query for this long has ended, since a lingering relay reads the breakers every few seconds."""
_HANDOVER_SECONDS = 120
_FAILURES_IN_A_ROW = 5
_SERIES = "1m"
"""The series of the bars that ingestion asks for."""


class NotSeenError(AcpError):
    """Raised when something that a drill waited for did not happen in time."""


@dataclass(frozen=True, slots=True)
class Look:
    """The drill's messages and the breaker at one moment."""

    messages: Sequence[OutboxMessage]
    breaker: Breaker

    def all(self, state: str) -> bool:
        """Whether every message is in this state."""
        return bool(self.messages) and all(message.state == state for message in self.messages)

    def of(self, event_ids: Sequence[UUID]) -> Look:
        """Returns the same look with the messages of these events only."""
        return Look([message for message in self.messages if message.event_id in set(event_ids)], self.breaker)

    @property
    def attempts_spent(self) -> int:
        """Attempts that failed, or were made beyond the first of a delivered message."""
        return sum(
            max(len(message.failed_at), message.attempts - (message.delivered_at is not None))
            for message in self.messages
        )


class Stage:
    """The deployed pipeline as one drill uses it: the drill stores events, makes faults and observes."""

    def __init__(
        self,
        cloud: Cloud,
        run: RunState,
        record: DrillRecord,
        narrator: Narrator,
        connection: Connection[Any],
        *,
        is_of_source: bool,
    ) -> None:
        self.cloud = cloud
        self.run = run
        self.narrator = narrator
        self.connection = connection
        self.aws = cloud.aws(run)
        self.environ = cloud.environ(run)
        self.queue = mending.queue_name(cloud, run)
        self.breaker = mending.source_name(run) if is_of_source else messages.SUBSCRIPTION
        self._record = record
        self._trace_ids: list[UUID] = []
        self._story = Story()
        self._failures: SimpleQueue[str] = SimpleQueue()
        self._failures_in_a_row = 0

    def say(self, text: str) -> None:
        """Prints something that happened, or that the drill did."""
        self.narrator.say(text, style="bold")

    def claim(self, claim: str, *, held: bool, seen: str) -> None:
        """Reports one claim of the drill, whether it held, and what was seen."""
        self.narrator.claim(claim, held=held, seen=seen)

    def function(self, name: str) -> str:
        """A deployed function's name."""
        return function_name(self.cloud.outputs(self.run), name)

    def invoke(self, function: str, event: dict[str, Any]) -> Any:
        """Invokes a deployed function and returns its result."""
        return self.aws.invoke(self.function(function), event)

    # --- what is stored -----------------------------------------------------------------------------------------------

    def make(self, count: int) -> Batch:
        """Makes events of the drill's own, whose ids are known before they are stored."""
        if not self._trace_ids:
            self.follow(uuid4())
        return Batch.make(
            drill=self._record.drill, trace_id=self._trace_ids[0], count=count, now=database_time(self.connection)
        )

    def store(self, batch: Batch) -> list[UUID]:
        """Stores the events with their outbox messages; returns the events' ids."""
        batch.store(self.connection)
        self.say(f"{len(batch.looks)} events stored with their messages, in one transaction")
        return batch.ids

    def follow(self, trace_id: UUID) -> None:
        """Includes the messages of this ingestion run in each look from now on."""
        self._trace_ids.append(trace_id)
        self.narrator.result.trace_ids.append(str(trace_id))

    # --- what is made to fail -----------------------------------------------------------------------------------------

    def set_market_fault(self, symbol: str, fault: dict[str, Any]) -> None:
        """Makes the market replay fail for a symbol, or for all."""
        self._record.market_faults.append(symbol)
        self._record.save(self.cloud.workspace)
        mending.set_market_fault(self.environ["MARKET_DATA_URL"], symbol, fault)

    def end_market_fault(self, symbol: str) -> None:
        """Ends a fault of the market replay."""
        mending.set_market_fault(self.environ["MARKET_DATA_URL"], symbol, None)

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[QueueEndpoint]:
        """Puts an endpoint that can be made to fail between the deployed relay and the real queues.

        Inside the block, the drill starts one relay after another, as a schedule without pauses would.
        """
        with serve(upstream=self.aws.endpoint) as endpoint:
            relay = self.function("relay")
            self._redirect(relay, endpoint)
            stopped = threading.Event()
            thread = threading.Thread(target=self._relay, args=(relay, stopped), name="relays", daemon=True)
            thread.start()
            try:
                yield endpoint
            finally:
                # Without this, the relay and this thread would wait for the time-outs of held or failing requests.
                endpoint.heal()
                endpoint.release()
                stopped.set()
                thread.join(_TURN_SECONDS + 2 * SEND_SECONDS)

    def _redirect(self, relay: str, endpoint: QueueEndpoint) -> None:
        during = {
            "AWS_ENDPOINT_URL_SQS": endpoint.url,
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "BREAKER_COOL_DOWN_SECONDS": str(COOL_DOWN_SECONDS),
            # Relays that the schedule starts do not linger, so that none runs longer than the drill.
            "RELAY_LINGER_SECONDS": "0",
        }
        variables = mending.variables(self.aws, relay)
        change = Change.of(variables, during)
        self._record.functions[relay] = change
        self._record.save(self.cloud.workspace)
        since = database_time(self.connection)
        mending.change_variables(self.aws, relay, change)
        self.say(
            f"{relay} sends through the drill's endpoint now; lease {LEASE_SECONDS} s instead of "
            f"{variables.get('LEASE_SECONDS', '30')}, cool-down {COOL_DOWN_SECONDS} s instead of "
            f"{variables.get('BREAKER_COOL_DOWN_SECONDS', '30')}"
        )
        # A lingering relay ends when another one lingers. The schedule's relays no longer do, so the drill starts one.
        self.aws.invoke(relay, {"linger_seconds": _TURN_SECONDS})
        deadline = time.monotonic() + _HANDOVER_SECONDS
        while self._count("relays_begun_before", since=since, quiet_seconds=_QUIET_SECONDS):
            self.narrator.show("waiting for the relay under way, which has other settings, to end")
            if time.monotonic() > deadline:
                msg = f"A relay that began before the drill is still at work after {_HANDOVER_SECONDS} s."
                raise AcpError(msg, remedy="Give relays less time to stay: scripts/acp up --linger 90")
            time.sleep(0.5)

    def _relay(self, relay: str, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                self.aws.invoke(relay, {"linger_seconds": _TURN_SECONDS})
                self._failures.put("")
            except (AcpError, *AWS_ERRORS) as error:
                self._failures.put(str(error.args[0]))
                stopped.wait(0.5)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def look(self) -> Look:
        """Reads the messages and the breaker as they are now."""
        breakers = read_breakers(self.connection, [self.breaker])
        return Look(
            messages.read(self.connection, self._trace_ids),
            breakers[0] if breakers else Breaker(self.breaker),
        )

    def until(self, condition: Callable[[Look], bool], *, what: str, seconds: float = 40) -> Look:
        """Prints what happens until the condition holds. Raises NotSeenError if it does not in time."""
        deadline = time.monotonic() + seconds
        while True:
            look = self._watch(what)
            if condition(look):
                return look
            if time.monotonic() > deadline:
                msg = f"Not seen within {seconds:.0f} s: {what}."
                raise NotSeenError(msg, remedy="See scripts/acp logs relay and scripts/acp logs signal-lab")
            time.sleep(_LOOK_SECONDS)

    def watch(self, seconds: float, *, what: str) -> Look:
        """Prints what happens for so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._watch(what)
            time.sleep(_LOOK_SECONDS)
        return self._watch(what)

    def _watch(self, what: str) -> Look:
        self._report_failures()
        look = self.look()
        for line in self._story.tell(look.messages, look.breaker):
            self.narrator.say(line)
        states = " · ".join(f"{count} {state}" for state, count in messages.counts(look.messages).items())
        self.narrator.show(f"{states}  breaker {messages.breaker_state(look.breaker)}  waiting for: {what}")
        return look

    def _report_failures(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                failure = self._failures.get_nowait()
                self._failures_in_a_row = self._failures_in_a_row + 1 if failure else 0
                if failure:
                    self.narrator.say(failure, style="yellow")
                if self._failures_in_a_row == _FAILURES_IN_A_ROW:
                    msg = f"The deployed relay fails again and again: {failure}"
                    raise AcpError(msg, remedy="See scripts/acp logs relay")

    def accepted(self, endpoint: QueueEndpoint, event_ids: Sequence[UUID]) -> dict[UUID, list[str]]:
        """Returns, for each event, the message ids that SignalLab's queue gave it; other queues get it, too."""
        found: dict[UUID, list[str]] = {event_id: [] for event_id in event_ids}
        for one in endpoint.accepted():
            if one.queue == self.queue and one.event_id is not None and UUID(one.event_id) in found:
                found[UUID(one.event_id)].append(one.message_id)
        return found

    def effects(self, event_ids: Sequence[UUID]) -> int:
        """Returns how many effects these events had in SignalLab."""
        return self._count("effects", event_ids=list(event_ids))

    def absorbed(self, event_ids: Sequence[UUID], *, since: float, seconds: float = 20) -> set[UUID]:
        """Returns the events that SignalLab's log, since that time, reports as duplicates."""
        deadline = time.monotonic() + seconds
        wanted = set(event_ids)
        while True:
            seen = set()
            for line in read_lines(self.aws, self.function("signal-lab"), start_milliseconds=int(since * 1000)):
                for text in line.message.splitlines():
                    if '"duplicate"' in text:
                        with contextlib.suppress(ValueError, KeyError, TypeError):
                            seen.add(UUID(json.loads(text)["event_id"]))
            if wanted <= seen or time.monotonic() > deadline:
                return wanted & seen
            self.narrator.show("waiting for SignalLab's log to tell of the second deliveries")
            time.sleep(0.5)

    def stored_by(self, trace_id: UUID) -> int:
        """Returns how many events a run stored."""
        return len(messages.read(self.connection, [trace_id]))

    def openings(self, breaker: Breaker) -> int:
        """Returns how many events report this opening of the source's breaker."""
        return self._count("openings", source=breaker.name, kind=BREAKER_OPEN, opened_at=breaker.opened_at)

    def newest_bar(self, symbol: str) -> datetime:
        """Returns when the newest bar of a symbol began."""
        newest: datetime = newest_occurrences(
            self.connection,
            source=self.breaker,
            event_type=MarketTick.event_type,
            series=_SERIES,
            entity_ids=[symbol],
        )[symbol]
        return newest

    def bars(self, symbol: str, since: datetime, until: datetime) -> int:
        """Returns how many minutes of a symbol are stored, both ends included."""
        return self._count("bars", source=self.breaker, entity_id=symbol, since=since, until=until)

    def age(self, instant: datetime) -> float:
        """Returns the seconds since an instant, by the database's clock."""
        return (database_time(self.connection) - instant).total_seconds()

    def make_due(self, ids: Sequence[int]) -> None:
        """Makes the next attempt of these messages due now."""
        self.connection.execute(QUERIES["make_due"].sql, {"ids": list(ids), "subscription": messages.SUBSCRIPTION})

    def redrive(self) -> int:
        """Redrives the drill's dead letters; returns how many."""
        url = database.owner_url(self.cloud.postgres(self.run), self.run)
        with psycopg.connect(url, autocommit=True) as owner:
            return mending.redrive_drills(owner, lambda: mending.run_operations(self.cloud, self.run))

    def _count(self, query: str, **parameters: Any) -> int:
        row = self.connection.execute(QUERIES[query].sql, parameters).fetchone()
        assert row is not None, "an aggregate has a row"
        return int(row[0])


def process_behind(port: int, server_port: int) -> psutil.Process:
    """Returns the process of this host that is connected from `port` to `server_port`. Raises AcpError for none."""
    for pid, ends in _connections():
        if ends == (port, server_port):
            return psutil.Process(pid)
    msg = f"No process of this host holds the relay's connection (port {port})."
    raise AcpError(msg, remedy="relay-killed needs a local cloud whose functions are processes of this host.")


def _connections() -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields the process and the two ports of each of this user's TCP connections."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.pid is not None and connection.laddr and connection.raddr:
                yield connection.pid, (connection.laddr.port, connection.raddr.port)
    except psutil.AccessDenied:  # macOS lists all connections for root only
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                for owned in process.net_connections(kind="tcp"):
                    if owned.laddr and owned.raddr:
                        yield process.pid, (owned.laddr.port, owned.raddr.port)
