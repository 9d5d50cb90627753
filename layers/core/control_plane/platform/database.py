"""The connection: one per warm environment, opened when first needed, checked and reopened when stale."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import Event, Timer
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from control_plane.domain.errors import ConfigurationError, DatabaseUnavailable, SchemaVersionMismatch
from control_plane.platform.settings import DatabaseSettings

SCHEMA_VERSION = 5
"""The number of the newest migration this code needs; a test holds it equal to db/migrations."""

CONNECT_TIMEOUT_SECONDS = 5


class Database:
    """The functions' way to Postgres.

    ``url`` is called at each opening, so that a rotated secret is picked up. The connection is in autocommit mode:
    a transaction is visible where the caller opens it.

    ``patience_seconds`` is for where somebody waits for the answer: neither opening the connection nor checking it, nor
    the work in :meth:`bounded`, takes longer, whatever has become of the server or of the way to it.
    """

    def __init__(
        self,
        url: Callable[[], str],
        *,
        application_name: str,
        check_schema: bool = True,
        patience_seconds: int | None = None,
    ) -> None:
        self._url = url
        self._application_name = application_name
        self._check_schema = check_schema
        self._patience_seconds = patience_seconds
        self._connection: Connection[tuple[Any, ...]] | None = None

    def connection(self) -> Connection[tuple[Any, ...]]:
        """A connection that just answered. Raises DatabaseUnavailable, SchemaVersionMismatch, ConfigurationError."""
        if self._connection is not None and not self._answers(self._connection):
            self._connection.close()
            self._connection = None
        if self._connection is None:
            connection = connect(
                self._url(),
                application_name=self._application_name,
                timeout_seconds=self._patience_seconds or CONNECT_TIMEOUT_SECONDS,
            )
            if self._check_schema:
                try:
                    with self._patience(connection):
                        check_schema(connection)
                except BaseException:
                    connection.close()  # kept, it would pass for checked at the next call
                    raise
            self._connection = connection
        return self._connection

    @contextmanager
    def bounded(self) -> Iterator[Connection[tuple[Any, ...]]]:
        """:meth:`connection` for work that is cut off once patience ends; raises DatabaseUnavailable then."""
        connection = self.connection()
        with self._patience(connection):
            yield connection

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answers(self, connection: Connection[Any]) -> bool:
        # A frozen environment loses its sockets without either side noticing.
        try:
            with self._patience(connection):
                connection.execute("SELECT 1")
        except (psycopg.OperationalError, DatabaseUnavailable):
            return False
        return True

    def _patience(self, connection: Connection[Any]) -> AbstractContextManager[None]:
        return nullcontext() if self._patience_seconds is None else cut_off(connection, self._patience_seconds)


@contextmanager
def cut_off(connection: Connection[Any], after_seconds: float) -> Iterator[None]:
    """Ends the connection under work that takes longer, and raises DatabaseUnavailable.

    A server's own timeouts do not help where it is the server that hangs, or its packets that are lost.
    """
    late = Event()

    def cut() -> None:
        late.set()
        with suppress(OSError, psycopg.OperationalError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)

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
        timer.join()  # lest it cuts what the file descriptor belongs to next


def connect(
    url: str, *, application_name: str, timeout_seconds: int = CONNECT_TIMEOUT_SECONDS
) -> Connection[tuple[Any, ...]]:
    """An autocommit connection. Raises DatabaseUnavailable or ConfigurationError; neither holds the password."""
    described = parse_url(url)
    target = "{user}@{host}:{port}/{dbname}".format(
        **{"user": "?", "host": "?", "port": 5432, "dbname": "?"} | described
    )
    try:
        return psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=timeout_seconds,
            application_name=application_name,
            # A transaction pooler hands each transaction to another session, which does not know what was prepared.
            prepare_threshold=None,
            keepalives_idle=30,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=10_000,  # keepalives say nothing while data is unacknowledged; ignored off Linux
        )
    except (psycopg.OperationalError, UnicodeError) as error:  # a host that is no name: psycopg lets the codec's out
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatabaseUnavailable(f"Postgres at {target} cannot be used: {reason}") from error


def parse_url(url: str, *, name: str = "the database URL") -> dict[str, Any]:
    """The connection's parameters. Raises ConfigurationError, which names ``name`` and shows nothing of the URL."""
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parameters = None
    # An @ or / of a password that is not percent-encoded shifts the rest of it into the host's or the database's place.
    if parameters is None or any("@" in str(parameters.get(part, "")) for part in ("host", "dbname")):
        raise ConfigurationError(
            [
                (
                    f"{name} cannot be read: it must look like postgresql://user:password@host:5432/database, "
                    "with %40, %2F and %25 for @, / and % in the password"
                )
            ]
        )
    return parameters


def check_schema(connection: Connection[Any]) -> None:
    """Raises SchemaVersionMismatch where the schema is behind this code; one that is ahead is welcome."""
    try:
        row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    version = row[0] if row else 0
    if version < SCHEMA_VERSION:
        raise SchemaVersionMismatch(
            f"the database's schema is at version {version}, this code needs {SCHEMA_VERSION}: "
            "run `scripts/acp db migrate`, or invoke MigrationFunction"
        )


def database_url(settings: DatabaseSettings, read_secret: Callable[[str], str]) -> str:
    """The URL itself, or the secret's: a URL as plain text, or JSON with a ``url``. Raises ConfigurationError."""
    if settings.url is not None:
        parse_url(settings.url, name="DATABASE_URL")
        return settings.url
    assert settings.secret_arn is not None
    secret = read_secret(settings.secret_arn).strip()
    url: object = secret
    if secret.startswith("{"):
        try:
            url = json.loads(secret).get("url")
        except ValueError:
            url = None
    if not isinstance(url, str):
        raise ConfigurationError(
            [f"the secret {settings.secret_arn} is neither a postgresql:// URL nor a JSON object with a url"]
        )
    parse_url(url, name=f"the URL in the secret {settings.secret_arn}")
    return url
