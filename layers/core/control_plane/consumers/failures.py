"""Records why a consumer failed on a message, so that the message's dead letter can say so."""

from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.consumers.once import QUERIES
from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform.backlog import limit_statements
from control_plane.platform.database import Database

RECORD_SECONDS: Final = 2.0
"""How long a record may take: the batch's other messages wait for it."""


@dataclass(frozen=True, slots=True)
class ConsumeFailure:
    """One failure of a consumer on one message."""

    subscription: str
    message_id: str
    event_id: UUID | None
    """None where neither the body nor the attributes hold one."""
    trace_id: UUID | None
    attempt: int
    """How often the queue has given out the message; 0 where it does not say."""
    error: str


def record_failure(connection: Connection[Any], failure: ConsumeFailure) -> None:
    """Records a failure in a transaction of its own. ``connection`` is in autocommit mode. Raises psycopg.Error."""
    with connection.transaction():
        limit_statements(connection, RECORD_SECONDS)
        connection.execute(QUERIES["record_failure"].sql, asdict(failure))


class FailureRecorder:
    """Records the failures of one batch. Once Postgres cannot be reached, it records no more: nobody waits again."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_off = False

    def stop(self) -> None:
        """Makes it record nothing more, because Postgres cannot be reached."""
        self._is_off = True

    def __call__(self, failure: ConsumeFailure) -> None:
        """Records a failure. Raises psycopg.Error, and what keeps a connection from opening."""
        if self._is_off:
            return
        try:
            record_failure(self._database.connection(), failure)
        except DatabaseUnavailable:
            self.stop()
            raise
