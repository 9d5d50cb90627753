"""The pipeline under test: 5,000 promises in Postgres, an endpoint for the queues, relays as processes between them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from tests.conftest import TestDatabase
from tests.integration import seeds

from control_plane.platform.database import connect
from local_cloud.postgres import PostgresServer
from queue_endpoint import QueueEndpoint, Request

ROOT = Path(__file__).parents[2]
TICKS, FAILURES = 4_500, 500
EVENTS = TICKS + FAILURES
LEASE_SECONDS = 4.5
CONCURRENCY = 4
CONNECT_TIMEOUT, READ_TIMEOUT = 0.5, 3.5
COOL_DOWN_SECONDS = 0.5
FINISH_SECONDS = 60.0
POLL_SECONDS = 0.02
STILL_SECONDS = 0.3

_OF_RELAYS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'acp-relay'"
_WAITING = f"SELECT {_OF_RELAYS} AND wait_event_type = 'Lock'"


@dataclass(slots=True)
class Result:
    """What a scenario came to, counted in messages."""

    events: int
    in_flight: int
    duplicated: int
    lost: int
    attempts_spent: int
    dead_lettered: int
    seconds: float


class RelayProcess:
    """One relay, by its name."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._killed = False

    @property
    def last_words(self) -> str | None:
        """The end of its log, where it ended by itself."""
        return None if self._killed or self.alive else self._log.read_text()[-2000:]

    def has_counted(self, metric: str) -> bool:
        """Whether its log holds that metric."""
        return f'"{metric}"' in self._log.read_text()

    def kill(self) -> None:
        """SIGKILL: no last word."""
        self._killed = True
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


@dataclass
class Pipeline:
    """A scenario: its parts, and what was in flight at its faults."""

    server: PostgresServer
    database: TestDatabase
    endpoint: QueueEndpoint
    folder: Path
    in_flight: Counter[str] = field(default_factory=Counter)
    relays: list[RelayProcess] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _watch: psycopg.Connection[Any] | None = None

    # Its parts

    def relay(
        self,
        *,
        claim_size: int = 200,
        concurrency: int = CONCURRENCY,
        lease_seconds: float = LEASE_SECONDS,
        cool_down_seconds: float = COOL_DOWN_SECONDS,
        max_attempts: int = 5,
        linger_seconds: float = 2,
        read_timeout: float = READ_TIMEOUT,
        clock_hours: float = 0,
    ) -> RelayProcess:
        """Starts one more. Durations in seconds."""
        name = f"relay-{len(self.relays) + 1}"
        options = {
            "linger_seconds": linger_seconds,
            "remaining_seconds": 60,
            "send_timeouts": [CONNECT_TIMEOUT, read_timeout],
            "clock_hours": clock_hours,
        }
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "layers" / "core"),
            "DATABASE_URL": self.database.app_url,
            "CLOUD_ENDPOINT_URL": self.endpoint.url,
            "TOPIC_QUEUE_URLS": json.dumps(
                {
                    "market.ticks": self.endpoint.queue_url("ticks"),
                    "system.events": self.endpoint.queue_url("system"),
                }
            ),
            "RELAY_CLAIM_SIZE": str(claim_size),
            "RELAY_PUBLISH_CONCURRENCY": str(concurrency),
            "LEASE_SECONDS": str(lease_seconds),
            "BREAKER_COOL_DOWN_SECONDS": str(cool_down_seconds),
            "MAX_DELIVERY_ATTEMPTS": str(max_attempts),
        }
        log_file = self.folder / f"{name}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("relay_host.py")), name, json.dumps(options)],
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        relay = RelayProcess(name, process, log_file)
        self.relays.append(relay)
        return relay

    def promise_more(self, count: int) -> None:
        with connect(self.database.app_url, application_name="test") as connection:
            seeds.promise(connection, seeds.failures(FAILURES + count)[FAILURES:])

    def team(self, size: int, *, clock_hours: float = 0, **settings: Any) -> list[RelayProcess]:
        """Starts several, which all begin to work at once; ``clock_hours`` is the last one's."""
        connection = connect(self.database.owner_url, application_name="lock")
        try:
            connection.execute("BEGIN")
            connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
            team = [self.relay(**settings) for _ in range(size - 1)]
            team.append(self.relay(clock_hours=clock_hours, **settings))
            self.wait(lambda: len(self.query(_WAITING)) >= size, "all wait for the start", seconds=90)
        finally:
            connection.close()
        return team

    def close(self) -> None:
        for relay in self.relays:
            relay.kill()
        if self._watch is not None:
            self._watch.close()

    # Faults of the database

    def restart_postgres(self) -> None:
        """A crash, and a new start on the same port."""
        if self._watch is not None:
            self._watch.close()
        self.server.stop("immediate")
        self.server.start()

    def cut_connections(self) -> int:
        """Ends every relay's connection; says how many there were."""
        return len(self.query(f"SELECT pg_terminate_backend(pid) {_OF_RELAYS}"))

    @contextmanager
    def settlement_held(self) -> Iterator[None]:
        """In the block, the claimed rows are locked and a relay waits for them, with all it sent answered."""
        connection = connect(self.database.owner_url, application_name="lock")
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT FROM outbox WHERE claim_token IS NOT NULL FOR UPDATE")
            self.recover()
            self.wait(lambda: bool(self.query(_WAITING)), "a settlement that waits")
            yield
        finally:
            connection.close()

    # What it sees

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Asked on a connection that no fault is meant for; a restart ends it too, and it is opened again."""
        if self._watch is None or self._watch.closed:
            self._watch = psycopg.connect(self.database.admin_url, autocommit=True, application_name="watch")
        return self._watch.execute(statement.encode(), parameters).fetchall()

    def claimed(self, relay: RelayProcess | None = None) -> set[str]:
        """Events claimed now, by one relay or by any."""
        rows = self.query(
            "SELECT event_id::text FROM outbox WHERE claim_token IS NOT NULL AND coalesce(claimed_by = %s, true)",
            relay and relay.name,
        )
        return {event_id for (event_id,) in rows}

    def claimants(self) -> set[str]:
        """The names of the relays that have something claimed now."""
        return {name for (name,) in self.query("SELECT DISTINCT claimed_by FROM outbox WHERE claim_token IS NOT NULL")}

    def tried_again(self) -> set[str]:
        """Events that were kept by a later attempt than their first."""
        rows = self.query(
            "SELECT event_id::text FROM outbox WHERE dead_lettered_at IS NULL AND"
            " (delivery_attempts > 1 OR id IN (SELECT outbox_id FROM delivery_failures))"
        )
        return {event_id for (event_id,) in rows}

    def dead_letters(self) -> set[str]:
        return {
            event_id
            for (event_id,) in self.query("SELECT event_id::text FROM outbox WHERE dead_lettered_at IS NOT NULL")
        }

    def some_ticks(self, count: int) -> set[str]:
        rows = self.query(
            "SELECT event_id::text FROM outbox WHERE topic = 'market.ticks' ORDER BY event_id LIMIT %s", count
        )
        return {event_id for (event_id,) in rows}

    def delivered(self) -> int:
        ((count,),) = self.query("SELECT count(*) FROM outbox WHERE delivered_at IS NOT NULL")
        return int(count)

    def open(self) -> int:
        ((count,),) = self.query("SELECT count(*) FROM outbox WHERE delivered_at IS NULL AND dead_lettered_at IS NULL")
        return int(count)

    def in_queues(self) -> int:
        """Messages in the queues, one that is there twice counted twice."""
        return sum(self.endpoint.counts().values())

    def accepted(self) -> Counter[str]:
        """How often each event is in a queue."""
        return Counter(one.event_id for one in self.endpoint.accepted() if one.event_id is not None)

    def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
        """Raises TimeoutError, and AssertionError at once where a relay has ended by itself."""
        ends = time.monotonic() + seconds
        while not condition():
            for relay in self.relays:
                assert relay.last_words is None, f"{relay.name} ended: {relay.last_words}"
            if time.monotonic() > ends:
                raise TimeoutError(f"{what}: not within {seconds:g} s; {self.describe()}")
            time.sleep(POLL_SECONDS)

    def requests(self, queue: str | None = None) -> list[Request]:
        """Sends to one queue, or to all."""
        return [request for request in self.endpoint.requests() if queue in {None, request.queue}]

    def describe(self) -> str:
        """Where things stand, for whoever reads a failure."""
        return (
            f"{self.delivered()} delivered, {self.open()} open, {len(self.claimed())} claimed, "
            f"{dict(self.endpoint.counts())} accepted, {self.endpoint.held()} requests held, "
            f"{sum(relay.alive for relay in self.relays)} of {len(self.relays)} relays alive; logs in {self.folder}"
        )

    # The phases of a relay's work, reached by holding what it waits for

    def work_until(self, delivered: int) -> None:
        """Lets the relays deliver that many, with the queue a little slow, so that plenty is left."""
        self.endpoint.set(latency_ms=20)
        self.wait(lambda: self.delivered() >= delivered, f"{delivered} delivered")

    def wait_for_sends(self) -> None:
        """Returns when more is in the queues than was."""
        before = self.in_queues()
        self.wait(lambda: self.in_queues() > before, "another send")

    def recover(self) -> None:
        """The queues are well again."""
        self.endpoint.heal()
        self.endpoint.release()

    def hold_sends(self, *, accepted: bool, senders: int = CONCURRENCY) -> None:
        """Returns when all senders wait for answers, their messages in the queue or not, and nothing else moves."""
        self.endpoint.set(hold=True, accepts="before" if accepted else "after")
        self.wait(lambda: self.endpoint.held() >= senders, f"{senders} sends wait for their answers")
        self.stand_still()

    def stand_still(self) -> None:
        """Returns when what was answered is settled; a relay may claim what another topic still has room for."""
        since, seen = time.monotonic(), self._settled_and_claimed()

        def still() -> bool:
            nonlocal since, seen
            now = self._settled_and_claimed()
            if now != seen:
                since, seen = time.monotonic(), now
            return time.monotonic() > since + STILL_SECONDS

        self.wait(still, "nothing is settled or claimed any more")

    def _settled_and_claimed(self) -> tuple[int, set[str]]:
        return self.delivered(), self.claimed()

    def kill(self, relay: RelayProcess) -> set[str]:
        """Kills it, then as ``note_sent``."""
        relay.kill()
        self.wait(lambda: not self._last_words(), "the server sees that it is gone")
        return self.note_sent(relay)

    def note_sent(self, relay: RelayProcess) -> set[str]:
        """Returns what a relay has claimed, and notes what of that the queue has accepted, once for each acceptance."""
        claimed, accepted = self.claimed(relay), self.accepted()
        self.in_flight |= Counter({event_id: accepted[event_id] for event_id in claimed})
        return claimed

    @contextmanager
    def fault_of_the_database(self) -> Iterator[None]:
        """In the block, its connections are lost; what is claimed before or after may have been in flight."""
        claimed = self.claimed()
        yield
        self.in_flight.update(claimed | self.claimed())

    def _last_words(self) -> bool:
        # What a dead client had sent is still executed; then its server process finds nobody to answer.
        alone = not any(relay.alive for relay in self.relays)
        return alone and bool(
            self.query("SELECT FROM pg_stat_activity WHERE usename = 'acp_app' AND datname = current_database()")
        )

    # The end

    def finish(self) -> Result:
        """Waits until every promise is kept or given up, and counts; nothing may have been lost."""
        self.wait(lambda: self.open() == 0, "every promise kept or given up", seconds=FINISH_SECONDS)
        seconds = time.monotonic() - self.started
        for relay in self.relays:
            relay.kill()
        rows = self.query(
            "SELECT event_id::text, delivered_at IS NOT NULL, dead_lettered_at IS NOT NULL, delivery_attempts,"
            " message_id, claim_token IS NULL FROM outbox"
        )
        message_ids: dict[str | None, set[str]] = {}
        for one in self.endpoint.accepted():
            message_ids.setdefault(one.event_id, set()).add(one.message_id)
        accepted = self.accepted()
        assert accepted.keys() <= {row[0] for row in rows}, "the queue holds what nobody promised"
        assert all(unclaimed for *_, unclaimed in rows)
        for event_id, delivered, dead, _, message_id, _ in rows:
            assert delivered != dead
            assert not delivered or message_id in message_ids.get(event_id, set()), f"{event_id}: {message_id}"
        return Result(
            events=len(rows),
            in_flight=self.in_flight.total(),
            duplicated=self.duplicates().total(),
            lost=sum(1 for event_id, _, dead, *_ in rows if event_id not in accepted and not dead),
            attempts_spent=sum(attempts - 1 for _, _, dead, attempts, *_ in rows if not dead),
            dead_lettered=sum(1 for _, _, dead, *_ in rows if dead),
            seconds=seconds,
        )

    def duplicates(self) -> Counter[str]:
        """How often each event is in a queue beyond its first time."""
        accepted = self.accepted()
        return accepted - Counter(accepted.keys())
