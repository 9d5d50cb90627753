"""Finance's part in an erasure: the rows of SignalLab, the detector and the episodes about what is erased."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from psycopg import Connection

from domains.finance.signal_lab import QUERIES


def forget(connection: Connection[Any], operation_id: UUID, event_ids: Sequence[UUID]) -> int:
    """Removes the rows about a running erasure's entity, or these events; returns how many. Raises psycopg.Error."""
    row = connection.execute(
        QUERIES["forget"].sql, {"operation_id": operation_id, "event_ids": list(event_ids)}
    ).fetchone()
    assert row is not None, "a function's value is a row"
    return int(row[0])
