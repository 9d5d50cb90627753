"""The connection: one per warm environment.

It is opened when first needed, checked before use, and reopened when stale.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import Event, Timer
from typing import Any, Final

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from control_plane.model.errors import (
    ConfigurationError,
    ControlPlaneError,
    DatabaseUnavailable,
    SchemaVersionMismatch,
)
from control_plane.platform.conninfo import parse_url, tls_defaults, weakens_rds
from control_plane.platform.queries import load_queries
from control_plane.platform.refusals import Attempt, explain, refuses_password
from control_plane.platform.session import SESSION_LOST, TRACKED, check_session, refuses_options, startup_options

SCHEMA_VERSION = 14
"""The number of the newest migration this code needs; a test holds it equal to db/migrations."""

OLDER_LAYOUT: Final = "events_and_outbox"
"""The name of the first migration of a layout that was never released."""

REFUSED_LAYOUT: Final = (
    "the database has an older layout that was never released, and no migration leads from it to this one: make a new, "
    "empty database, put its URL into the secrets, and run MigrationFunction; on the local cloud run "
    "`scripts/acp down`, which deletes the old one, and `scripts/acp up`"
)

CONNECT_TIMEOUT_SECONDS = 5

CHECKED_SECONDS: Final = 1.0
"""How long a session counts as checked within an invocation."""

PREPARE_AFTER: Final = 2
"""How often a statement is asked before it is prepared."""

QUERIES: Final = load_queries(__package__)

logger: Final = logging.getLogger(__name__)


class Database:
    """A function's access to Postgres.

    ``url`` is called at each opening, so that a rotated secret is picked up; ``origin`` names in errors what it reads.
    The connection is in autocommit mode: a transaction is visible where the caller opens it.

    ``role`` is the role of the control plane whose work this is, which the session's own must be or be a member of.
    ``patience_seconds`` is for where somebody waits for the answer: neither opening the connection nor checking it, nor
    the work in :meth:`bounded`, takes longer, whatever has become of the server or of the way to it.
    ``prepares`` is for functions that ask the same few statements again and again: see :func:`connect`.
    """

    def __init__(
        self,
        url: Callable[[], str],
        *,
        application_name: str,
        origin: str = "the database URL",
        check_schema: bool = True,
        role: str | None = None,
        patience_seconds: int | None = None,
        prepares: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._origin = origin
        self._role = role
        self._application_name = application_name
        self._check_schema = check_schema
        self._patience_seconds = patience_seconds
        self._prepares = prepares
        self._monotonic = monotonic
        self._checked_at = monotonic()
        self._connection: Connection[tuple[Any, ...]] | None = None

    def connection(self) -> Connection[tuple[Any, ...]]:
        """Returns a session that just answered, takes writes and has the settings that our SQL needs.

        Do not call this within a transaction. Raises DatabaseUnavailable, UnsuitableDatabase, SchemaVersionMismatch,
        ConfigurationError.
        """
        if self._connection is not None and not self._is_usable(self._connection):
            self._connection.close()
            self._connection = None
        if self._connection is None:
            connection = self._open()
            if self._check_schema:
                try:
                    with self._patience(connection):
                        check_schema(connection)
                        if self._role is not None:
                            check_role(connection, self._role, origin=self._origin)
                except BaseException:
                    connection.close()  # If it were kept, the next call would take it for checked.
                    raise
            self._connection = connection
        self._checked_at = self._monotonic()
        return self._connection

    def same_connection(self) -> Connection[tuple[Any, ...]]:
        """Returns the session of :meth:`connection`, unasked where that has checked it within the last second.

        It is for the next message of a batch, after :meth:`connection` was called in the same invocation: between two
        invocations the environment may be frozen, and its clock with it. Raises as :meth:`connection` does.
        """
        connection = self._connection
        if (
            connection is not None
            and connection.info.transaction_status is TransactionStatus.IDLE
            and self._monotonic() - self._checked_at < CHECKED_SECONDS
        ):
            return connection
        return self.connection()

    @contextmanager
    def bounded(self) -> Iterator[Connection[tuple[Any, ...]]]:
        """Yields :meth:`connection` for work that must end within the patience, or raises DatabaseUnavailable."""
        connection = self.connection()
        with self._patience(connection):
            yield connection

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection[tuple[Any, ...]]:
        url = self._url()
        try:
            return self._connect(url)
        except DatabaseUnavailable as error:
            # The secret may have been rotated after it was read and before the login.
            if not error.password_refused or (newer := self._url()) == url:
                raise
        return self._connect(newer)

    def _connect(self, url: str) -> Connection[tuple[Any, ...]]:
        return connect(
            url,
            application_name=self._application_name,
            origin=self._origin,
            timeout_seconds=self._patience_seconds or CONNECT_TIMEOUT_SECONDS,
            prepares=self._prepares,
        )

    def _is_usable(self, connection: Connection[Any]) -> bool:
        # A frozen environment loses its sockets without either side noticing; a former writer becomes a replica; and an
        # invocation that was cut short leaves its transaction open.
        if connection.info.transaction_status is not TransactionStatus.IDLE:
            return False
        try:
            with self._patience(connection):
                check_session(connection)
        except (psycopg.Error, ControlPlaneError):
            return False  # Any problem shows again when a new connection is opened.
        return True

    def _patience(self, connection: Connection[Any]) -> AbstractContextManager[None]:
        return nullcontext() if self._patience_seconds is None else cut_off(connection, self._patience_seconds)


@contextmanager
def cut_off(connection: Connection[Any], after_seconds: float) -> Iterator[None]:
    """Breaks the connection under work that takes too long, and raises DatabaseUnavailable.

    A server's own timeouts do not help if the server hangs or its packets are lost.
    """
    late = Event()

    def cut() -> None:
        late.set()
        hang_up(connection)

    timer = Timer(after_seconds, cut)
    timer.start()
    try:
        yield
    except psycopg.OperationalError as error:
        if late.is_set():
            raise DatabaseUnavailable(
                f"Postgres did not answer within {after_seconds:g} seconds: is it overloaded, or the way to it blocked?"
            ) from error
        raise
    finally:
        timer.cancel()
        timer.join()  # A late timer could break a later user of the file descriptor.


def hang_up(connection: Connection[Any]) -> None:
    """Breaks the connection, so that a thread that waits for an answer stops waiting.

    Any thread may call this, unless another thread is closing the connection.
    """
    with suppress(OSError, psycopg.OperationalError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


def connect(
    url: str,
    *,
    application_name: str,
    origin: str = "the database URL",
    timeout_seconds: int = CONNECT_TIMEOUT_SECONDS,
    prepares: bool = False,
) -> Connection[tuple[Any, ...]]:
    """Returns an autocommit session on a server that takes writes.

    If ``prepares``, statements that repeat are prepared, unless a pooler may give the next transaction another
    session, which would not know them. The server's certificate is verified unless ``url`` says otherwise. The
    session has the settings that our SQL takes for granted, and its transactions are READ COMMITTED. Raises
    DatabaseUnavailable, UnsuitableDatabase or ConfigurationError; none shows the password. They name ``origin`` as
    the thing to correct.
    """
    parameters = parse_url(url, name=origin)
    defaults = tls_defaults(parameters)
    # This finds a replica at once, or after a failover the former writer; it costs nothing from version 14 on.
    defaults["target_session_attrs"] = parameters.get("target_session_attrs") or "read-write"
    defaults["client_encoding"] = "UTF8"
    if weakens_rds(parameters):
        logger.warning(
            "sslmode=%s in %s gives up verifying RDS's certificate: leave it out, and it is verified",
            parameters["sslmode"],
            origin,
        )
    os.environ.update(TRACKED)
    try:
        try:
            connection = _open(
                make_conninfo(url, **defaults, options=startup_options(parameters.get("options"))),
                application_name,
                timeout_seconds,
            )
        except psycopg.OperationalError as error:
            if not refuses_options(error):
                raise
            # This is a pooler. The check finds out whether its sessions have the settings that we need.
            connection = _open(make_conninfo(url, **defaults), application_name, timeout_seconds)
    except (psycopg.OperationalError, UnicodeError) as error:  # The host is no name: psycopg raises the codec's error.
        text = explain(error, Attempt(parameters | defaults, origin))
        raise DatabaseUnavailable(text, password_refused=refuses_password(error)) from error
    try:
        with cut_off(connection, timeout_seconds):
            is_own = check_session(connection)
    except SESSION_LOST as error:
        connection.close()
        raise DatabaseUnavailable(explain(error, Attempt(parameters | defaults, origin))) from error
    except BaseException:
        connection.close()
        raise
    if prepares and is_own:
        connection.prepare_threshold = PREPARE_AFTER
    return connection


def _open(conninfo: str, application_name: str, timeout_seconds: int) -> Connection[tuple[Any, ...]]:
    connection = psycopg.connect(
        conninfo,
        autocommit=True,
        connect_timeout=timeout_seconds,
        application_name=application_name,
        # A transaction pooler gives each transaction another session, which does not know the prepared statements: they
        # wait until the check has found out whose the session is.
        prepare_threshold=None,
        keepalives_idle=30,
        keepalives_interval=5,
        keepalives_count=3,
        # Keepalives detect nothing while sent data is unacknowledged; this time-out does, on Linux.
        tcp_user_timeout=10_000,
    )
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    return connection


def check_role(connection: Connection[Any], role: str, *, origin: str) -> None:
    """Raises ConfigurationError where the session may not do all that ``role`` may: its URL is another function's."""
    row = connection.execute(QUERIES["session_role"].sql, {"role": role}).fetchone()
    assert row is not None
    found, may_work = row
    if not may_work:
        problem = (
            f"{origin} is for another role: this function works as {role}, and was given {found}. Put {role}'s URL "
            f"there; a role of another name must be granted {role} (docs/deploy.md)"
        )
        raise ConfigurationError([problem])


def check_schema(connection: Connection[Any]) -> None:
    """Raises SchemaVersionMismatch if the schema is older than this code; a newer schema is accepted."""
    try:
        row = connection.execute(
            "SELECT coalesce(max(version), 0), coalesce(bool_or(version = 1 AND name = %s), false)"
            " FROM schema_migrations",
            [OLDER_LAYOUT],
        ).fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    version, is_older_layout = row or (0, False)
    if is_older_layout:
        raise SchemaVersionMismatch(REFUSED_LAYOUT)
    if version < SCHEMA_VERSION:
        raise SchemaVersionMismatch(
            f"the database's schema is at version {version}, this code needs {SCHEMA_VERSION}: run "
            "`sam remote invoke MigrationFunction --stack-name STACK`, or on the local cloud `scripts/acp db migrate`"
        )
