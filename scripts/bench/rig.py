"""The rig on which the bench measures: a PostgreSQL as in production, filled databases, a queue, timed processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import boto3
import psutil
import psycopg
from psycopg import sql

from control_plane.platform.queries import load_queries
from domains.finance.events import MARKET_TICKS
from local_cloud import database
from local_cloud.aws import LocalCloud
from local_cloud.build import TEMPLATE
from local_cloud.emulators.localstack import LocalStack
from local_cloud.environ import isolated
from local_cloud.errors import AcpError
from local_cloud.postgres import PostgresServer
from local_cloud.roles import OWNER, READER, RELAY
from local_cloud.run_state import RunState
from local_cloud.template import read_template
from local_cloud.workspace import locked
from queue_endpoint import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from local_cloud.workspace import Workspace

QUERIES = load_queries("bench")
SUBSCRIPTION = "signal_lab"
"""The subscription of market.ticks that is measured if no other is named."""
_LIMIT_SECONDS = 900.0
"""A measured process is killed after so many seconds."""


class BenchError(AcpError):
    """Raised when a measurement could not be made, or did not measure what it should."""


@dataclass(frozen=True, slots=True)
class Seed:
    """Messages and events that a database starts with; each is pending or delivered for each of the subscriptions."""

    pending: int
    delivered: int = 0
    padding: int = 0
    """Bytes that are added to every body."""
    topic: str = MARKET_TICKS
    subscriptions: tuple[str, ...] = (SUBSCRIPTION,)


@dataclass(frozen=True, slots=True)
class Database:
    """One database of the bench's server."""

    relay_url: str
    reader_url: str
    admin_url: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Queues:
    """The queue of each subscription that a relay serves, and the endpoint they are at."""

    endpoint_url: str
    urls: Mapping[str, str]


class Child:
    """A measured process. It prepares, waits for `go`, and reports; at the end of the block it is killed if it runs."""

    def __init__(self, program: str, command: Sequence[str], *, environ: Mapping[str, str], log: Path) -> None:
        self._program = program
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
            )
        self._watchdog = threading.Timer(_LIMIT_SECONDS, self._process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self._process.kill()
        with self._process:  # Closes its pipes and waits for it.
            pass

    def wait_until_ready(self) -> None:
        """Waits until the process is prepared. Raises BenchError if it fails."""
        if self._line() != b"ready\n":
            raise self._failed()

    def go(self) -> None:
        """Starts the measurement."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # The child has ended; reading its report will show why.
            self._process.stdin.write(b"go\n")

    def report(self) -> dict[str, Any]:
        """Waits for the process's report and returns it. Raises BenchError if it fails."""
        line = self._line()
        if not line:
            raise self._failed()
        measured: dict[str, Any] = json.loads(line)
        return measured

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _failed(self) -> BenchError:
        self._process.wait(10)
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        return BenchError(f"{self._program} failed (exit code {self._process.returncode}).", details=tail)


@dataclass
class Rig:
    """The server and the queue, with the means to make databases and start measured processes."""

    workspace: Workspace
    folder: Path
    server: PostgresServer
    passwords: RunState
    queues: Queues
    relay_settings: Mapping[str, str]
    """The settings of the measured relays and of the programs they are compared with: those of the template."""
    endpoint_url: str | None = None
    """The URL of an SQS to use instead of a LocalStack that the bench starts."""
    latency_ms: float = 0
    _templates: dict[tuple[Seed, ...], str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @contextlib.contextmanager
    def fresh(self, *seeds: Seed) -> Iterator[Database]:
        """Makes a database with these rows, a copy of the same template each time, and drops it after use."""
        if seeds not in self._templates:
            self._templates[seeds] = self._seeded(seeds)
        with self._dropped(self._clone(self._templates[seeds])) as name:
            yield self._database(name)

    @contextlib.contextmanager
    def filled(self, seed: Seed) -> Iterator[Database]:
        """Makes a database with these rows and drops it after use. Use it for rows that are too many to copy."""
        with self._dropped(self._seeded([seed])) as name:
            yield self._database(name)

    def fill(self, filled: Database, seed: Seed) -> None:
        """Adds these rows to a database."""
        asked = {
            "topic": seed.topic,
            "subscriptions": list(seed.subscriptions),
            "padding": seed.padding,
            "event_id": None,
        }
        with psycopg.connect(filled.admin_url, autocommit=True) as connection:
            # Checking foreign keys row by row would take longer than inserting the rows.
            connection.execute("SET session_replication_role = replica")
            connection.execute(QUERIES["make_subscriptions"].sql, asked)
            # The delivered rows come first, because they are older.
            for rows, delivered in ((seed.delivered, True), (seed.pending, False)):
                connection.execute(QUERIES["make_events"].sql, {**asked, "count": rows, "delivered": delivered})

    def url_as(self, role: str, database: Database) -> str:
        """Returns a database's URL for a role."""
        return self.server.url(role, database.name, self.passwords.role_passwords[role])

    def child(
        self,
        program: str,
        database: Database,
        queues: Queues | None = None,
        options: Mapping[str, Any] | None = None,
        more_environ: Mapping[str, str] | None = None,
    ) -> Child:
        """Starts a program of this package."""
        command = [sys.executable, "-m", f"bench.{program}", json.dumps(options or {})]
        return self._child(program, command, {**self.environ(database, queues), **(more_environ or {})})

    def peer(self, program: str, command: Sequence[str], environ: Mapping[str, str]) -> Child:
        """Starts a program of another environment than the bench's."""
        return self._child(program, command, environ)

    def _child(self, program: str, command: Sequence[str], environ: Mapping[str, str]) -> Child:
        return Child(program, command, environ=environ, log=self.folder / f"{program}-{next(self._numbers)}.log")

    def environ(self, database: Database, queues: Queues | None = None) -> dict[str, str]:
        """Returns the relay function's environment, with the folders that it imports from in Lambda."""
        queues = queues or self.queues
        return {
            **isolated(os.environ),
            "DATABASE_URL": database.relay_url,
            "DATABASE_READER_URL": database.reader_url,
            "CLOUD_ENDPOINT_URL": queues.endpoint_url,
            "SUBSCRIPTION_QUEUE_URLS": json.dumps(dict(queues.urls)),
            **self.relay_settings,
            "PYTHONPATH": self.pythonpath("relay"),
        }

    def pythonpath(self, function: str) -> str:
        """Returns the folders that a function imports from in Lambda, and the bench's."""
        checkout = self.workspace.checkout
        folders = (checkout / "functions" / function, checkout / "layers" / "core", checkout / "scripts")
        return os.pathsep.join(map(str, folders))

    def checkpoint(self) -> None:
        """Makes Postgres write all changes to disk now, so that it does not do so during a measurement."""
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def server_cpu_seconds(self) -> float:
        """Returns the processor time that the server has used, by its sessions too, those that have ended included."""
        postmaster = self.server.process
        assert postmaster is not None, "the rig's server runs"
        while True:
            # A session that ends meanwhile is counted nowhere until the postmaster has noticed: then it is read again.
            with contextlib.suppress(psutil.NoSuchProcess):
                times = [process.cpu_times() for process in postmaster.children()]
                own = postmaster.cpu_times()
                ended = own.children_user + own.children_system
                return float(own.user + own.system + ended + sum(one.user + one.system for one in times))

    def facts(self) -> dict[str, Any]:
        """Returns facts about the machine and its software."""
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            names = (
                "server_version",
                "fsync",
                "synchronous_commit",
                "full_page_writes",
                "shared_buffers",
                "autovacuum",
            )
            settings = {name: _one(connection, sql.SQL("SHOW {}").format(sql.Identifier(name))) for name in names}
        return {
            "cores": psutil.cpu_count(),
            "processor": _processor(),
            "memory_mib": psutil.virtual_memory().total >> 20,
            "system": platform.platform(),
            "python": platform.python_version(),
            "boto3": boto3.__version__,
            "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
            "powertools": version("aws-lambda-powertools"),
            "load_average_at_start": round(os.getloadavg()[0], 2),
            "postgres": settings,
        }

    def _clone(self, template: str) -> str:
        name = f"bench_{next(self._numbers)}"
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                    sql.Identifier(name), sql.Identifier(template), sql.Identifier(OWNER)
                )
            )
        return name

    def _seeded(self, seeds: Sequence[Seed]) -> str:
        name = self._clone(database.NAME)
        filled = self._database(name)
        for seed in seeds:
            self.fill(filled, seed)
        if any(seed.pending or seed.delivered for seed in seeds):  # plans for empty tables would be of no use later
            with psycopg.connect(filled.admin_url, autocommit=True) as connection:
                connection.execute("VACUUM (ANALYZE) events, outbox, pending_deliveries, deliveries")
        return name

    def _database(self, name: str) -> Database:
        relay, reader = (self.server.url(role, name, self.passwords.role_passwords[role]) for role in (RELAY, READER))
        return Database(relay, reader, self.server.url(database=name), name)

    @contextlib.contextmanager
    def _dropped(self, name: str) -> Iterator[str]:
        try:
            yield name
        finally:
            with psycopg.connect(self.server.url(), autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def open_rig(
    workspace: Workspace,
    *,
    endpoint_url: str | None = None,
    latency_ms: float = 0,
    say: Callable[[str], object] = lambda _: None,
) -> Iterator[Rig]:
    """Starts PostgreSQL and the queue in a folder of their own, and removes all of it at the end."""
    workspace.home.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=workspace.home)))
        passwords = RunState()
        say("PostgreSQL")
        server = PostgresServer(folder / "postgres", password=passwords.superuser_password)
        stack.callback(server.stop, "immediate")
        server.start()
        database.prepare(server, passwords)
        database.bring_up_to_date(workspace, database.owner_url(server, passwords))
        say("the queue")
        endpoint = stack.enter_context(serve(latency_ms=latency_ms, record=False))
        yield Rig(
            workspace,
            folder,
            server,
            passwords,
            Queues(endpoint.url, {SUBSCRIPTION: endpoint.queue_url("market-ticks")}),
            deployed_settings(workspace),
            endpoint_url,
            latency_ms,
        )


@contextlib.contextmanager
def emulated_sqs(rig: Rig, say: Callable[[str], object]) -> Iterator[str]:
    """Yields the URL of the rig's endpoint, or of a LocalStack that is started here and stopped after use."""
    with contextlib.ExitStack() as stack:
        endpoint_url = rig.endpoint_url
        if endpoint_url is None:
            say("LocalStack")
            localstack = LocalStack(dataclasses.replace(rig.workspace, state=rig.folder / "localstack"))
            with locked(rig.workspace.venvs, "bench", on_wait=say):
                localstack.prepare()
            endpoint_url = localstack.endpoint(None, None)
            stack.callback(localstack.stop)
            localstack.start(endpoint_url)
            localstack.wait_until_ready(endpoint_url)
        yield endpoint_url


@contextlib.contextmanager
def new_queue(endpoint_url: str) -> Iterator[Queues]:
    """Makes a queue and deletes it after use."""
    client = LocalCloud(endpoint_url).queues
    url = client.create_queue(QueueName=f"acp-bench-{os.getpid()}-{os.urandom(4).hex()}")["QueueUrl"]
    try:
        yield Queues(endpoint_url, {SUBSCRIPTION: url})
    finally:
        client.delete_queue(QueueUrl=url)


def deployed_settings(workspace: Workspace, function: str = "RelayFunction") -> dict[str, str]:
    """Returns the part of a function's environment in the template that is the same in every deployment."""
    template = read_template(workspace.checkout / TEMPLATE)
    variables = template["Resources"][function]["Properties"]["Environment"]["Variables"]
    return {name: str(value) for name, value in variables.items() if isinstance(value, str | int | float)}


def _one(connection: psycopg.Connection[Any], statement: sql.Composed) -> Any:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
