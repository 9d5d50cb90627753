"""Where a drill takes place: the deployed pipeline, with what is made to fail, and eyes on its messages."""

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
"""The shortest that the relay accepts: more than a send may take."""
_TURN_SECONDS = 1
"""How long each of the drill's relays stays; the next one follows at once."""
_LOOK_SECONDS = 0.1
_QUIET_SECONDS = 8
"""A relay that stays asks for breakers every few seconds at least."""
_HANDOVER_SECONDS = 120
_FAILURES_IN_A_ROW = 5
_SERIES = "1m"
"""The bars that ingestion asks for."""


class NotSeenError(AcpError):
    """What a drill waited for did not happen in time."""


@dataclass(frozen=True, slots=True)
class Look:
    """How the drill's messages and the breaker are at one moment."""

    messages: Sequence[OutboxMessage]
    breaker: Breaker

    def all(self, state: str) -> bool:
        """Whether every message is in this state."""
        return bool(self.messages) and all(message.state == state for message in self.messages)

    def of(self, event_ids: Sequence[UUID]) -> Look:
        """At these events alone."""
        return Look([message for message in self.messages if message.event_id in set(event_ids)], self.breaker)

    @property
    def attempts_spent(self) -> int:
        """Attempts that failed, or were made beyond the first of a delivered message."""
        return sum(
            max(len(message.failed_at), message.attempts - (message.delivered_at is not None))
            for message in self.messages
        )


class Stage:
    """What one drill stores, makes fail and sees."""

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
        """Something happened, or was done by the drill."""
        self.narrator.say(text, style="bold")

    def claim(self, claim: str, *, held: bool, seen: str) -> None:
        """One thing that the drill shows."""
        self.narrator.claim(claim, held=held, seen=seen)

    def function(self, name: str) -> str:
        """A deployed function's name."""
        return function_name(self.cloud.outputs(self.run), name)

    def invoke(self, function: str, event: dict[str, Any]) -> Any:
        """Run a deployed function and wait."""
        return self.aws.invoke(self.function(function), event)

    # --- what is stored -----------------------------------------------------------------------------------------------

    def make(self, count: int) -> Batch:
        """Events of the drill's own, whose ids are known before anybody can claim them."""
        if not self._trace_ids:
            self.follow(uuid4())
        return Batch.make(
            drill=self._record.drill, trace_id=self._trace_ids[0], count=count, now=database_time(self.connection)
        )

    def store(self, batch: Batch) -> list[UUID]:
        """Store them and their outbox messages. Returns their ids."""
        batch.store(self.connection)
        self.say(f"{len(batch.looks)} events stored with their messages, in one transaction")
        return batch.ids

    def follow(self, trace_id: UUID) -> None:
        """Look at what this run stored, too."""
        self._trace_ids.append(trace_id)
        self.narrator.result.trace_ids.append(str(trace_id))

    # --- what is made to fail -----------------------------------------------------------------------------------------

    def set_market_fault(self, symbol: str, fault: dict[str, Any]) -> None:
        """Have the market replay fail."""
        self._record.market_faults.append(symbol)
        self._record.save(self.cloud.workspace)
        mending.set_market_fault(self.environ["MARKET_DATA_URL"], symbol, fault)

    def end_market_fault(self, symbol: str) -> None:
        """Have it work again."""
        mending.set_market_fault(self.environ["MARKET_DATA_URL"], symbol, None)

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[QueueEndpoint]:
        """Before the real queues, an endpoint that goes wrong as it is told; the deployed relay sends through it.

        Relays run one after another meanwhile, as a schedule that never pauses would start them.
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
                # What is held or wrong would keep the relay, and this, for as long as its time-outs.
                endpoint.heal()
                endpoint.release()
                stopped.set()
                thread.join(_TURN_SECONDS + 2 * SEND_SECONDS)

    def _redirect(self, relay: str, endpoint: QueueEndpoint) -> None:
        during = {
            "AWS_ENDPOINT_URL_SQS": endpoint.url,
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "BREAKER_COOL_DOWN_SECONDS": str(COOL_DOWN_SECONDS),
            # Those that the schedule starts drain and end: none outlasts the drill.
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
        # One that stays goes when another comes to stay, which those of the schedule no longer do.
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
        """Now."""
        breakers = read_breakers(self.connection, [self.breaker])
        return Look(
            messages.read(self.connection, self._trace_ids),
            breakers[0] if breakers else Breaker(self.breaker),
        )

    def until(self, condition: Callable[[Look], bool], *, what: str, seconds: float = 40) -> Look:
        """Tell what happens until the condition holds. Raises NotSeenError where it does not in time."""
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
        """Tell what happens for that long."""
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
        """The message ids under which the real queue holds, or held, each of these events."""
        found: dict[UUID, list[str]] = {event_id: [] for event_id in event_ids}
        for one in endpoint.accepted():
            if one.event_id is not None and UUID(one.event_id) in found:
                found[UUID(one.event_id)].append(one.message_id)
        return found

    def effects(self, event_ids: Sequence[UUID]) -> int:
        """How often SignalLab was affected by them."""
        return self._count("effects", event_ids=list(event_ids))

    def absorbed(self, event_ids: Sequence[UUID], *, since: float, seconds: float = 20) -> set[UUID]:
        """The events of which SignalLab's log says, since then, that another delivery changed nothing."""
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
        """How many events a run stored."""
        return len(messages.read(self.connection, [trace_id]))

    def openings(self, breaker: Breaker) -> int:
        """How many events say that the source's breaker opened when it did."""
        return self._count("openings", source=breaker.name, kind=BREAKER_OPEN, opened_at=breaker.opened_at)

    def newest_bar(self, symbol: str) -> datetime:
        """When the newest bar of a symbol began."""
        newest: datetime = newest_occurrences(
            self.connection,
            source=self.breaker,
            event_type=MarketTick.event_type,
            series=_SERIES,
            entity_ids=[symbol],
        )[symbol]
        return newest

    def bars(self, symbol: str, since: datetime, until: datetime) -> int:
        """How many minutes of a symbol are stored, both ends included."""
        return self._count("bars", source=self.breaker, entity_id=symbol, since=since, until=until)

    def age(self, instant: datetime) -> float:
        """Seconds since then, by the database's clock."""
        return (database_time(self.connection) - instant).total_seconds()

    def make_due(self, ids: Sequence[int]) -> None:
        """Cut the wait of retries short."""
        self.connection.execute(QUERIES["make_due"].sql, {"ids": list(ids), "subscription": messages.SUBSCRIPTION})

    def redrive(self) -> int:
        """Send again what was given up on."""
        url = database.owner_url(self.cloud.postgres(self.run), self.run)
        with psycopg.connect(url, autocommit=True) as owner:
            return mending.redrive_drills(owner)

    def _count(self, query: str, **parameters: Any) -> int:
        row = self.connection.execute(QUERIES[query].sql, parameters).fetchone()
        assert row is not None, "an aggregate has a row"
        return int(row[0])


def process_behind(port: int, server_port: int) -> psutil.Process:
    """The process of this host that is connected from `port` to `server_port`. Raises AcpError where there is none."""
    for pid, ends in _connections():
        if ends == (port, server_port):
            return psutil.Process(pid)
    msg = f"No process of this host holds the relay's connection (port {port})."
    raise AcpError(msg, remedy="relay-killed needs a local cloud whose functions are processes of this host.")


def _connections() -> Iterator[tuple[int, tuple[int, int]]]:
    """Of this user's connected sockets the process, and the ports at both ends."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.pid is not None and connection.laddr and connection.raddr:
                yield connection.pid, (connection.laddr.port, connection.raddr.port)
    except psutil.AccessDenied:  # macOS shows all at once to root alone
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                for owned in process.net_connections(kind="tcp"):
                    if owned.laddr and owned.raddr:
                        yield process.pid, (owned.laddr.port, owned.raddr.port)
