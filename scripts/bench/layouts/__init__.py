"""Several layouts of an outbox: the one in use, the one before it, and two that were rejected.

For each, a bare loop claims and settles; ``queries.sql`` has the statements. In Python all loops do nearly nothing and
the same for each row, so a difference between two loops comes from their layouts. Every settlement asks for the claim's
token, because only the claim's holder may settle.
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
"""Positions in a claimed row, the same in every layout."""
CLAIM_BYTES = 8 * 1_048_576
MESSAGE_IDS = [str(UUID(int=number)) for number in range(10_000)]
"""Made-up message ids, as long as those of SQS."""
_LEASE_SECONDS = 30.0
_MAX_ATTEMPTS = 5

type Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The statements of one layout, and the tables that they write to."""

    title: str
    setup: str | None
    """The statement that makes the layout's tables and fills them from the tables of the layout in use."""
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
"""The layouts by the names that the bench uses for them."""


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
    """Settles claimed messages as published; returns for how many this took effect."""
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
                "send_seconds": [0.01] * count,
                "waited_seconds": [0.0] * count,
            },
        ).fetchall()
    )
