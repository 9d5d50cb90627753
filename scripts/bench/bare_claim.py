"""A bare loop to compare the relay with: it claims and settles on one connection, and publishes nothing.

It uses the outbox's own statements.
"""

import os
import time
from datetime import timedelta
from uuid import uuid4

from bench.child import Parent
from control_plane.model.lifecycle import Accepted, settle
from control_plane.outbox import claims, settlements
from control_plane.outbox.relay import CLAIM_BYTES
from control_plane.platform.database import connect
from control_plane.platform.settings import RelaySettings


def main() -> None:
    """Prepares, waits for the start, claims and settles until nothing is left, and reports."""
    parent = Parent()
    settings = RelaySettings.from_environ(os.environ)
    (subscription,) = settings.subscription_queue_urls
    attempts, cool_down = settings.max_delivery_attempts, timedelta(seconds=settings.breaker_cool_down_seconds)
    published = 0
    since = claims.BEGINNING
    with connect(os.environ["DATABASE_URL"], application_name="acp-bench") as connection:
        parent.wait_for_go()
        started, cpu_started = time.perf_counter(), time.process_time()
        while True:
            claim = claims.claim(
                connection,
                token=uuid4(),
                claimed_by="bench",
                lanes={
                    subscription: claims.LaneLimits(
                        row_limit=settings.claim_size,
                        byte_limit=CLAIM_BYTES,
                        suspect_limit=settings.publish_concurrency,
                        since=since,
                    )
                },
                lease_seconds=settings.lease_seconds,
                max_attempts=attempts,
            )
            if not claim.rows:
                break
            since = max(row.due_at for row in claim.rows)
            outcomes = [
                (
                    delivery.message,
                    settle(Accepted("unsent"), attempt=1, max_attempts=attempts, cool_down=cool_down),
                )
                for delivery in claim.deliveries
            ]
            published += len(settlements.settle(connection, settled_by="bench", settlements=outcomes))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    parent.report({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": {"published": published}})


if __name__ == "__main__":
    main()
