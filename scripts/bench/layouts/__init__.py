"""Layouts of an outbox side by side: the one that is used, the one before it, and two that were not chosen.

Each is what a bare loop asks of the database, a claim and a settlement; ``queries.sql`` has the statements. In Python
all loops do the same for a row, nearly nothing, so that the difference between two of them is the layouts'. Every
settlement asks for the claim's token: only the claim's holder may settle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from control_plane.outbox import claims
from control_plane.platform.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from psycopg import Connection

QUERIES = load_queries(__package__)
OUTBOX_ID, DUE_AT = 1, 4
"""Places in a claimed row, of every layout."""
CLAIM_BYTES = 8 * 1_048_576
MESSAGE_IDS = [str(UUID(int=number)) for number in range(10_000)]
"""What a queue would have said: as long as SQS's."""
_LEASE_SECONDS = 30.0
_MAX_ATTEMPTS = 5

type Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The statements of one layout, and the tables that they write to."""

    title: str
    setup: str | None
    """The statement that makes its tables and fills them with what the used layout's tables hold."""
    claim: str
    settle: str
    tables: tuple[str, ...]


USED = Layout(
    title="narrow row, deleted",
    setup=None,
    claim=claims.QUERIES["claim"].sql,
    settle=claims.QUERIES["settle"].sql,
    tables=("public.outbox", "public.pending_deliveries", "public.deliveries"),
)
LAYOUTS: Mapping[str, Layout] = {
    "new": USED,
    "old": Layout(
        title="message updated twice",
        setup=QUERIES["set_up_old"].sql,
        claim=QUERIES["claim_old"].sql,
        settle=QUERIES["settle_old"].sql,
        tables=("old_layout.outbox",),
    ),
    "flagged": Layout(
        title="narrow row, kept and flagged",
        setup=QUERIES["set_up_flagged"].sql,
        claim=QUERIES["claim_flagged"].sql,
        settle=QUERIES["settle_flagged"].sql,
        tables=("public.outbox", "flagged_layout.deliveries"),
    ),
    "windows": Layout(
        title="windows, no rows",
        setup=QUERIES["set_up_windows"].sql,
        claim=QUERIES["claim_windows"].sql,
        settle=QUERIES["settle_windows"].sql,
        tables=("windows_layout.outbox", "windows_layout.readers"),
    ),
}
"""By the name that the bench calls each."""


def claim(
    connection: Connection[Any],
    layout: Layout,
    *,
    subscription: str,
    topic: str,
    since: datetime,
    size: int,
    token: UUID,
) -> Sequence[Row]:
    """Claims up to ``size`` messages of the first subscription."""
    return connection.execute(
        layout.claim,
        {
            "claim_token": token,
            "claimed_by": "bench",
            "subscriptions": [subscription],
            "topics": [topic],
            "since": [since],
            "row_limits": [size],
            "suspect_limits": [4],
            "byte_limits": [CLAIM_BYTES],
            "lease_seconds": _LEASE_SECONDS,
            "max_attempts": _MAX_ATTEMPTS,
            "lost": claims.LEASE_RAN_OUT,
            "leases_per_attempt": claims.LEASES_PER_ATTEMPT,
        },
    ).fetchall()


def settle(connection: Connection[Any], layout: Layout, rows: Sequence[Row], *, subscription: str, token: UUID) -> int:
    """Settles claimed messages as published; returns how many it took effect for."""
    count = len(rows)
    return len(
        connection.execute(
            layout.settle,
            {
                "settled_by": "bench",
                "outbox_ids": [row[OUTBOX_ID] for row in rows],
                "subscriptions": [subscription] * count,
                "operation_ids": [None] * count,
                "claim_tokens": [token] * count,
                "dispositions": ["published"] * count,
                "message_ids": MESSAGE_IDS[:count],
                "errors": [None] * count,
                "delays_seconds": [0.0] * count,
                "are_suspect": [False] * count,
            },
        ).fetchall()
    )
