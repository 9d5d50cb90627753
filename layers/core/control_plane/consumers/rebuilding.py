"""What a consumer does while its tables are being rebuilt: it writes to them and to their shadows."""

from collections.abc import Callable, Sequence
from typing import Any

from psycopg import Connection, Error

from control_plane.consumers.once import QUERIES
from control_plane.model.contract import Event
from control_plane.platform.shadow import in_shadow

_CONFLICT = "40"
"""The class of the SQLSTATEs of serialization failures and deadlocks: the whole transaction is tried again."""


def fold_events[Folded](
    connection: Connection[Any],
    consumer: str,
    fold: Callable[[Any, Sequence[Event]], Folded],
    events: Sequence[Event],
) -> Folded:
    """Folds events into a consumer's tables, and into their shadows while it is being rebuilt.

    Returns what the fold of its tables returned: the shadows tell nobody anything.
    It belongs to the effect's transaction, before whatever else the effect reads or writes of these tables. Where the
    shadows refuse, the live flow goes on and the rebuild fails. Raises psycopg.Error.
    """
    row = connection.execute(QUERIES["is_rebuilding"].sql, {"consumer": consumer}).fetchone()
    folded = fold(connection, events)
    if row is None or not row[0]:
        return folded
    try:
        with connection.transaction(), in_shadow(connection):
            fold(connection, events)
    except Error as error:
        if (error.sqlstate or _CONFLICT).startswith(_CONFLICT):
            raise
        connection.execute(QUERIES["spoil_rebuild"].sql, {"consumer": consumer, "error": str(error)})
    return folded
