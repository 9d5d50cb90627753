"""The guarantee *once in effect*; docs/writing_a_consumer.md shows a consumer that uses it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)


@contextmanager
def once(
    connection: Connection[Any], *, consumer: str, event_id: UUID, operation_id: UUID | None = None
) -> Iterator[bool]:
    """Opens a transaction for one consumer's effect of one event; yields whether the effect is still to be made.

    The effect, its ``processed_events`` row and its count commit together, or, where the block raises, not at all::

        with once(connection, consumer="my_consumer", event_id=event.event_id) as is_first:
            if is_first:
                connection.execute("INSERT INTO …")

    If one event is delivered twice at the same time, the second waits for the first; it makes the effect only if the
    first one failed. The effect must be made through ``connection``. Raises psycopg.Error.

    A consumer for which a replay is safe hands on the ``operation_id`` of the delivery: if that operation is a replay,
    the effect is made once more, and once only. Without it, what was processed is a duplicate whoever sends it again.
    """
    query = "mark_processed" if operation_id is None else "mark_replayed"
    with connection.transaction():
        row = connection.execute(
            QUERIES[query].sql, {"consumer": consumer, "event_id": event_id, "operation_id": operation_id}
        ).fetchone()
        assert row is not None, "a function's value is a row"
        yield bool(row[0])
