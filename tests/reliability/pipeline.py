"""The pipeline under test: messages in Postgres, an endpoint for the queues, and relays as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from tests.conftest import TestDatabase
from tests.integration import seeds

from control_plane.model.subscription import Subscription
from control_plane.ops.dead_letters import DeadLetterFilter, redrive
from control_plane.ops.subscriptions import SubscriptionReport, sync_subscriptions
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

SIGNAL_LAB, SYSTEM_EVENTS = "signal_lab", "system_events"
"""The subscriptions that every scenario has; a subscription's queue has the same name."""

type Delivery = tuple[str, str]
"""A subscription and an event's id."""

_OF_RELAYS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'acp-relay'"
_WAITING = f"SELECT {_OF_RELAYS} AND wait_event_type = 'Lock'"


@dataclass(slots=True)
class Result:
    """The result of a scenario, counted in deliveries; a delivery is one message for one subscription."""

    deliveries: int
    in_flight: int
    duplicated: int
    lost: int
    attempts_spent: int
    dead_lettered: int
    seconds: float


class RelayProcess:
    """One relay process."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._killed = False

    @property
    def last_words(self) -> str | None:
        """Returns the end of its log if the process ended without being killed."""
        return None if self._killed or self.alive else self._log.read_text()[-2000:]

    def has_counted(self, metric: str) -> bool:
        """Whether its log contains that metric."""
        return f'"{metric}"' in self._log.read_text()

    def kill(self) -> None:
        """Kills the process by SIGKILL, so that it cannot clean up."""
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
    """A scenario: its database, queues and relays, and the deliveries in flight at its faults."""

    server: PostgresServer
    database: TestDatabase
    endpoint: QueueEndpoint
    folder: Path
    in_flight: Counter[Delivery] = field(default_factory=Counter)
    relays: list[RelayProcess] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _watch: psycopg.Connection[Any] | None = None

    # The parts of the pipeline

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
        subscriptions: Sequence[str] = (SIGNAL_LAB, SYSTEM_EVENTS),
    ) -> RelayProcess:
        """Starts one more relay, which knows these subscriptions; durations are in seconds."""
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
            "DATABASE_URL": self.database.url("acp_relay"),
            "CLOUD_ENDPOINT_URL": self.endpoint.url,
            "SUBSCRIPTION_QUEUE_URLS": json.dumps({name: self.endpoint.queue_url(name) for name in subscriptions}),
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

    def store_more(self, count: int) -> None:
        """Stores that many more messages of system.events."""
        with connect(self.database.app_url, application_name="test") as connection:
            seeds.store(connection, seeds.failures(FAILURES + count)[FAILURES:])

    def subscribe(self, **topics: str) -> SubscriptionReport:
        """Makes these the only active subscriptions; a new one gets all stored messages of its topic."""
        wanted = {name: Subscription(topic, from_beginning=True) for name, topic in topics.items()}
        with connect(self.database.owner_url, application_name="migration") as connection:
            return sync_subscriptions(connection, wanted)

    def redrive(self) -> int:
        """Redrives all dead letters; returns how many."""
        with connect(self.database.owner_url, application_name="redrive") as connection:
            report = redrive(connection, DeadLetterFilter(), requested_by="test", everything=True)
        return sum(report.redriven.values())

    def pass_time(self) -> None:
        """Makes all waiting deliveries due now, and claimed ones, too, if no relay is alive."""
        self.query(
            "WITH due AS (SELECT ctid FROM pending_deliveries WHERE claim_token IS NULL OR %s FOR UPDATE SKIP LOCKED)"
            " UPDATE pending_deliveries AS pending SET next_attempt_at = now() FROM due WHERE pending.ctid = due.ctid"
            " RETURNING 1",
            not any(relay.alive for relay in self.relays),
        )

    def work_off(self, *, seconds: float = FINISH_SECONDS) -> None:
        """Returns when nothing is pending; meanwhile every delivery is made due every half second."""

        passed = time.monotonic()

        def is_done() -> bool:
            nonlocal passed
            if time.monotonic() > passed + 0.5:
                self.pass_time()
                passed = time.monotonic()
            return self.pending() == 0

        self.wait(is_done, "nothing pending", seconds=seconds)

    def team(self, size: int, *, clock_hours: float = 0, **settings: Any) -> list[RelayProcess]:
        """Starts several relays that begin to work at the same time; ``clock_hours`` applies to the last one."""
        connection = connect(self.database.owner_url, application_name="lock")
        try:
            connection.execute("BEGIN")
            connection.execute("LOCK TABLE pending_deliveries IN ACCESS EXCLUSIVE MODE")
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
        """Crashes Postgres and starts it again on the same port."""
        if self._watch is not None:
            self._watch.close()
        self.server.stop("immediate")
        self.server.start()

    def cut_connections(self) -> int:
        """Ends the connections of all relays; returns how many there were."""
        return len(self.query(f"SELECT pg_terminate_backend(pid) {_OF_RELAYS}"))

    @contextmanager
    def settlement_held(self) -> Iterator[None]:
        """Answers the held sends; inside the block, a lock on the claimed rows keeps the relay's settlement waiting.

        Later sends are held again, so that the settlement stays small: Postgres completes the statement of a client
        that is gone only if the result fits its send buffer.
        """
        connection = connect(self.database.owner_url, application_name="lock")
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT FROM pending_deliveries WHERE claim_token IS NOT NULL FOR UPDATE")
            self.endpoint.release()
            self.wait(lambda: bool(self.query(_WAITING)), "a settlement that waits")
            yield
        finally:
            connection.close()
            self.recover()

    # What the scenario observes

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Runs a query on a connection that faults spare; after a restart of Postgres it is opened again."""
        if self._watch is None or self._watch.closed:
            self._watch = psycopg.connect(self.database.admin_url, autocommit=True, application_name="watch")
        return self._watch.execute(statement.encode(), parameters).fetchall()

    def _deliveries(self, condition: str, *parameters: Any) -> set[Delivery]:
        """Returns those deliveries of ``outbox_states AS state`` that meet a condition."""
        rows = self.query(
            f"SELECT state.subscription, state.event_id::text FROM outbox_states AS state WHERE {condition}",
            *parameters,
        )
        return {(subscription, event_id) for subscription, event_id in rows}

    def claimed(self, relay: RelayProcess | None = None) -> set[Delivery]:
        """Returns the deliveries that one relay, or any, has claimed now."""
        rows = self.query(
            "SELECT subscription, event_id::text FROM pending_deliveries JOIN outbox ON id = outbox_id"
            " WHERE claim_token IS NOT NULL AND coalesce(claimed_by = %s, true)",
            relay and relay.name,
        )
        return {(subscription, event_id) for subscription, event_id in rows}

    def claimants(self) -> set[str]:
        """Returns the names of the relays that have claimed deliveries now."""
        rows = self.query("SELECT DISTINCT claimed_by FROM pending_deliveries WHERE claim_token IS NOT NULL")
        return {name for (name,) in rows}

    def tried_again(self) -> set[Delivery]:
        """Returns the deliveries that were not made at the first try, including those that got an attempt back."""
        return self._deliveries(
            "state = 'delivered' AND (delivery_attempts > 1 OR (id, state.subscription) IN"
            " (SELECT outbox_id, subscription FROM delivery_failures))"
        )

    def dead_letters(self) -> set[Delivery]:
        """Returns the deliveries that were dead-lettered."""
        return self._deliveries("state = 'dead_lettered'")

    def some_ticks(self, count: int) -> list[str]:
        """Returns so many event ids of market.ticks. Sorted by id, they lie anywhere among the messages."""
        rows = self.query(
            "SELECT event_id::text FROM outbox WHERE topic = 'market.ticks' ORDER BY event_id LIMIT %s", count
        )
        return [event_id for (event_id,) in rows]

    def delivered(self, subscription: str | None = None) -> int:
        """Returns how many deliveries are made, of one subscription or of all."""
        ((count,),) = self.query(
            "SELECT count(*) FROM deliveries WHERE coalesce(subscription = %s, true)", subscription
        )
        return int(count)

    def pending(self) -> int:
        """Returns how many deliveries are pending."""
        ((count,),) = self.query("SELECT count(*) FROM pending_deliveries")
        return int(count)

    def miscounted(self) -> list[tuple[Any, ...]]:
        """Returns what is counted otherwise than recorded: the subscription, what it is, counted, recorded."""
        return self.query(
            "WITH recorded AS ("
            " SELECT subscription, 'published' AS what, count(*) AS n FROM deliveries GROUP BY subscription"
            " UNION ALL SELECT subscription, 'given up', count(*) FROM dead_letters WHERE kind = 'relay' GROUP BY 1"
            " UNION ALL SELECT subscription, CASE WHEN error ~ '^the lease ran out' THEN 'lost' ELSE 'failed' END,"
            " count(*) FROM delivery_failures GROUP BY 1, 2"
            "), counted AS ("
            " SELECT name AS subscription, what, sum(n) AS n FROM flow_counts CROSS JOIN LATERAL unnest("
            " CASE outcome WHEN 'dead_lettered' THEN ARRAY['failed', 'given up']"
            " WHEN 'exhausted' THEN ARRAY['given up'] ELSE ARRAY[outcome] END) AS what"
            " WHERE stage = 'outbox' AND outcome <> 'released' GROUP BY 1, 2"
            ") SELECT subscription, what, counted.n, recorded.n FROM recorded"
            " FULL JOIN counted USING (subscription, what) WHERE counted.n IS DISTINCT FROM recorded.n"
        )

    def in_queues(self) -> int:
        """Returns how many messages are in the queues; one that is there twice counts twice."""
        return sum(self.endpoint.counts().values())

    def accepted(self) -> Counter[Delivery]:
        """Returns how often each event is in each queue."""
        return Counter((one.queue, one.event_id) for one in self.endpoint.accepted() if one.event_id is not None)

    def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
        """Waits for a condition. Raises TimeoutError, or AssertionError at once if a relay has ended by itself."""
        ends = time.monotonic() + seconds
        while not condition():
            for relay in self.relays:
                assert relay.last_words is None, f"{relay.name} ended: {relay.last_words}"
            if time.monotonic() > ends:
                raise TimeoutError(f"{what}: not within {seconds:g} s; {self.describe()}")
            time.sleep(POLL_SECONDS)

    def requests(self, queue: str | None = None) -> list[Request]:
        """Returns the send requests to one queue, or to all."""
        return [request for request in self.endpoint.requests() if queue in {None, request.queue}]

    def describe(self) -> str:
        """Describes the state of the scenario, for failure messages."""
        return (
            f"{self.delivered()} delivered, {self.pending()} pending, {len(self.claimed())} claimed, "
            f"{dict(self.endpoint.counts())} accepted, {self.endpoint.held()} requests held, "
            f"{sum(relay.alive for relay in self.relays)} of {len(self.relays)} relays alive; logs in {self.folder}"
        )

    # The phases of a relay's work, reached by holding what it waits for

    def work_until(self, delivered: int) -> None:
        """Waits until so many deliveries are made; the queues are slowed down so that plenty is left."""
        self.endpoint.set(latency_ms=20)
        self.wait(lambda: self.delivered() >= delivered, f"{delivered} delivered")

    def wait_for_sends(self) -> None:
        """Returns when the queues have accepted another message."""
        before = self.in_queues()
        self.wait(lambda: self.in_queues() > before, "another send")

    def recover(self) -> None:
        """Ends the faults of the queues and answers what they hold."""
        self.endpoint.heal()
        self.endpoint.release()

    def hold_sends(self, *, accepted: bool, senders: int = CONCURRENCY) -> None:
        """Holds all answers; returns when all senders wait for one and nothing else changes any more."""
        self.endpoint.set(hold=True, accepts="before" if accepted else "after")
        self.wait(lambda: self.endpoint.held() >= senders, f"{senders} sends wait for their answers")
        self.stand_still()

    def stand_still(self) -> None:
        """Returns when nothing was settled or claimed for a moment."""
        since, seen = time.monotonic(), self._settled_and_claimed()

        def still() -> bool:
            nonlocal since, seen
            now = self._settled_and_claimed()
            if now != seen:
                since, seen = time.monotonic(), now
            return time.monotonic() > since + STILL_SECONDS

        self.wait(still, "nothing is settled or claimed any more")

    def _settled_and_claimed(self) -> tuple[int, set[Delivery]]:
        return self.delivered(), self.claimed()

    def kill(self, relay: RelayProcess) -> set[Delivery]:
        """Kills a relay, then returns and notes the same as ``note_sent``."""
        relay.kill()
        self.wait(lambda: not self._last_words(), "the server sees that it is gone")
        return self.note_sent(relay)

    def note_sent(self, relay: RelayProcess) -> set[Delivery]:
        """Returns what a relay has claimed; counts as in flight what the queue has accepted of it, each time."""
        claimed, accepted = self.claimed(relay), self.accepted()
        self.in_flight |= Counter({delivery: accepted[delivery] for delivery in claimed})
        return claimed

    @contextmanager
    def fault_of_the_database(self) -> Iterator[None]:
        """Counts as in flight whatever is claimed before or after the block, in which connections are lost."""
        claimed = self.claimed()
        yield
        self.in_flight.update(claimed | self.claimed())

    def _last_words(self) -> bool:
        # Postgres still executes a dead client's last statement; its server process ends when it cannot answer.
        alone = not any(relay.alive for relay in self.relays)
        return alone and bool(
            self.query("SELECT FROM pg_stat_activity WHERE usename = 'acp_relay' AND datname = current_database()")
        )

    # The end

    def finish(self) -> Result:
        """Waits until every delivery is made or dead-lettered, and counts them."""
        self.wait(lambda: self.pending() == 0, "every delivery made or given up on", seconds=FINISH_SECONDS)
        seconds = time.monotonic() - self.started
        for relay in self.relays:
            relay.kill()
        # The expected deliveries come from tables that the relay never changes, not from the rows that it moves.
        expected = self.query("SELECT name, event_id::text FROM outbox JOIN subscriptions USING (topic)")
        made = self.query(
            "SELECT subscription, event_id::text, delivery_attempts, message_id"
            " FROM deliveries JOIN outbox ON id = outbox_id"
        )
        message_ids: dict[Delivery, set[str]] = {}
        for one in self.endpoint.accepted():
            message_ids.setdefault((one.queue, str(one.event_id)), set()).add(one.message_id)
        accepted, dead = self.accepted(), self.dead_letters()
        assert accepted.keys() <= set(expected), "a queue holds a message that no subscription has"
        delivered = set()
        for subscription, event_id, _, message_id in made:
            delivery = subscription, event_id
            assert message_id in message_ids.get(delivery, set()), f"{delivery}: {message_id} is not the queue's"
            delivered.add(delivery)
        assert len(delivered) == len(made)
        assert not delivered & dead
        return Result(
            deliveries=len(expected),
            in_flight=self.in_flight.total(),
            duplicated=self.duplicates().total(),
            lost=len(set(expected) - delivered - dead),
            attempts_spent=sum(attempts - 1 for _, _, attempts, _ in made),
            dead_lettered=len(dead),
            seconds=seconds,
        )

    def duplicates(self) -> Counter[Delivery]:
        """Returns how many more times than once each event is in a queue."""
        accepted = self.accepted()
        return accepted - Counter(accepted.keys())
