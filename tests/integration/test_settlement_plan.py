"""The cost of a settlement must not depend on the table's size when the session made its first settlement."""

from typing import Any
from uuid import uuid4

from psycopg import Connection
from tests.integration import seeds

from control_plane.model.lifecycle import Disposition, Settlement
from control_plane.outbox import claims, settlements


def deliver(connection: Connection[Any], *, rows: int) -> int:
    """Claims and settles up to that many messages."""
    claim = claims.claim(
        connection,
        token=uuid4(),
        claimed_by="r1",
        lanes={"signal_lab": claims.LaneLimits(rows, 2**40, 10)},
        lease_seconds=30,
        max_attempts=5,
    )
    published = Settlement(Disposition.PUBLISHED, message_id="m")
    return len(
        settlements.settle(
            connection, settled_by="r1", settlements=[(one.message, published) for one in claim.deliveries]
        )
    )


def test_settling_never_reads_the_whole_backlog(app: Connection[Any], owner: Connection[Any]) -> None:
    looks = seeds.ticks(140)
    for number in range(12):  # A session that caches plans has chosen one after six executions, at the latest.
        seeds.store(app, looks[3 * number : 3 * number + 3])
        owner.execute("VACUUM ANALYZE pending_deliveries")
        assert deliver(app, rows=3) == 3
    seeds.store(app, looks[36:])
    owner.execute(
        "INSERT INTO pending_deliveries (outbox_id, subscription, next_attempt_at)"
        " SELECT number, 'signal_lab', now() + interval '1 hour' FROM generate_series(1000000, 1060000) AS number"
    )
    with app.transaction():
        assert deliver(app, rows=100) == 100
        ((read,),) = app.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'pending_deliveries'"
        ).fetchall()
    assert read < 1_000
