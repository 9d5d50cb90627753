"""The connection: one per warm environment, opened when first needed, checked and reopened when stale."""

import logging
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from control_plane.domain.errors import DatabaseUnavailable, SchemaVersionMismatch
from control_plane.platform.conninfo import parse_url, tls_defaults, weakens_rds
from control_plane.platform.refusals import Attempt, explain, refuses_password

SCHEMA_VERSION = 3
"""The number of the newest migration this code needs; a test holds it equal to db/migrations."""

CONNECT_TIMEOUT_SECONDS = 5

logger: Final = logging.getLogger(__name__)


class Database:
    """The functions' way to Postgres.

    ``url`` is called at each opening, so that a rotated secret is picked up; ``origin`` names in errors what it reads.
    The connection is in autocommit mode: a transaction is visible where the caller opens it.
    """

    def __init__(
        self,
        url: Callable[[], str],
        *,
        application_name: str,
        origin: str = "the database URL",
        check_schema: bool = True,
    ) -> None:
        self._url = url
        self._origin = origin
        self._application_name = application_name
        self._check_schema = check_schema
        self._connection: Connection[tuple[Any, ...]] | None = None

    def connection(self) -> Connection[tuple[Any, ...]]:
        """A connection that just answered. Raises DatabaseUnavailable, SchemaVersionMismatch, ConfigurationError."""
        if self._connection is not None and not self._answers(self._connection):
            self._connection.close()
            self._connection = None
        if self._connection is None:
            connection = self._open()
            if self._check_schema:
                try:
                    check_schema(connection)
                except BaseException:
                    connection.close()  # kept, it would pass for checked at the next call
                    raise
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection[tuple[Any, ...]]:
        url = self._url()
        try:
            return connect(url, application_name=self._application_name, origin=self._origin)
        except DatabaseUnavailable as error:
            # The secret may have been rotated between the reading and the knocking.
            if not error.password_refused or (newer := self._url()) == url:
                raise
        return connect(newer, application_name=self._application_name, origin=self._origin)

    @staticmethod
    def _answers(connection: Connection[Any]) -> bool:
        # A frozen environment loses its sockets without either side noticing.
        try:
            connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def connect(url: str, *, application_name: str, origin: str = "the database URL") -> Connection[tuple[Any, ...]]:
    """An autocommit connection to a server that takes writes, its certificate verified unless ``url`` says otherwise.

    Raises DatabaseUnavailable or ConfigurationError; neither holds the password. ``origin`` is what they tell to mend.
    """
    parameters = parse_url(url, name=origin)
    defaults = tls_defaults(parameters)
    # A replica, or after a failover the writer that was, is found out at once; costs nothing from version 14 on.
    defaults["target_session_attrs"] = parameters.get("target_session_attrs") or "read-write"
    if weakens_rds(parameters):
        logger.warning(
            "sslmode=%s in %s gives up verifying RDS's certificate: leave it out, and it is verified",
            parameters["sslmode"],
            origin,
        )
    try:
        return psycopg.connect(
            make_conninfo(url, **defaults),
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name=application_name,
            # A transaction pooler hands each transaction to another session, which does not know what was prepared.
            prepare_threshold=None,
            keepalives_idle=30,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=10_000,  # keepalives say nothing while data is unacknowledged; ignored off Linux
        )
    except (psycopg.OperationalError, UnicodeError) as error:  # a host that is no name: psycopg lets the codec's out
        text = explain(error, Attempt(parameters | defaults, origin))
        raise DatabaseUnavailable(text, password_refused=refuses_password(error)) from error


def check_schema(connection: Connection[Any]) -> None:
    """Raises SchemaVersionMismatch where the schema is behind this code; one that is ahead is welcome."""
    try:
        row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    version = row[0] if row else 0
    if version < SCHEMA_VERSION:
        raise SchemaVersionMismatch(
            f"the database's schema is at version {version}, this code needs {SCHEMA_VERSION}: run "
            "`sam remote invoke MigrationFunction --stack-name STACK`, or on the local cloud `scripts/acp db migrate`"
        )
