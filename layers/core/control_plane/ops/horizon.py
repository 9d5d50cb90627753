"""The transaction horizon: whoever holds an old snapshot keeps vacuum from removing anything that died since."""

from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.ops.timeline import QUERIES

PINNED_AFTER_SECONDS: Final = 600.0
PINNED_AFTER_TRANSACTIONS: Final = 100_000
"""Where it cannot be seen since when."""


@dataclass(frozen=True, slots=True)
class HorizonHolder:
    """Who pins the horizon."""

    kind: str
    """``session``, ``prepared transaction`` or ``replication slot``."""
    name: str
    """The session's pid, the transaction's gid, the slot's name."""
    username: str | None
    application: str | None
    age_seconds: float | None
    """None for a slot, and for a session of another role where pg_read_all_stats is not granted."""
    transactions: int
    """How many have begun since."""

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
    """The oldest holder of the horizon, if it has held it for so long; None where all is well."""
    with connection.cursor(row_factory=class_row(HorizonHolder)) as cursor:
        return cursor.execute(
            QUERIES["horizon_holder"].sql, {"seconds": seconds, "transactions": transactions}
        ).fetchone()
