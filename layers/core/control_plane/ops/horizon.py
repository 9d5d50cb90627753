"""The transaction horizon: an old snapshot keeps vacuum from removing any row that died after it."""

from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.ops.timeline import QUERIES

PINNED_AFTER_SECONDS: Final = 600.0
PINNED_AFTER_TRANSACTIONS: Final = 100_000
"""The limit for a holder whose age in seconds cannot be seen."""


@dataclass(frozen=True, slots=True)
class HorizonHolder:
    """The session, prepared transaction or replication slot that holds the horizon back."""

    kind: str
    """``session``, ``prepared transaction`` or ``replication slot``."""
    name: str
    """The session's pid, the transaction's gid, the slot's name."""
    username: str | None
    application: str | None
    age_seconds: float | None
    """None for a replication slot, and for a session of another role if pg_read_all_stats is not granted."""
    transactions: int
    """How many transactions have begun since."""

    def __str__(self) -> str:
        whose = ", ".join(filter(None, (self.username, self.application)))
        since = f"{self.transactions} transactions" if self.age_seconds is None else f"{self.age_seconds / 60:.0f} min"
        return (
            f"the transaction horizon has been pinned for {since} by {self.kind} {self.name}"
            + (f" ({whose})" if whose else "")
            + ": dead rows pile up"
        )


def pinned_horizon(
    connection: Connection[Any],
    *,
    seconds: float = PINNED_AFTER_SECONDS,
    transactions: int = PINNED_AFTER_TRANSACTIONS,
) -> HorizonHolder | None:
    """Returns the oldest holder of the horizon, or None if nothing has held it for too long."""
    with connection.cursor(row_factory=class_row(HorizonHolder)) as cursor:
        return cursor.execute(
            QUERIES["horizon_holder"].sql, {"seconds": seconds, "transactions": transactions}
        ).fetchone()
