"""The limit to race: the outbox's own claim and settle in a loop, one connection, nothing published in between."""

import os
import time
from datetime import timedelta
from uuid import uuid4

from bench.child import Parent
from control_plane.model.lifecycle import Accepted, settle
from control_plane.outbox import store
from control_plane.platform.database import connect
from control_plane.platform.settings import RelaySettings

MARKET_TICKS = "market.ticks"
CLAIM_BYTES = 16 * 1_048_576


def main() -> None:
    """Prepare, wait, claim and settle until nothing is left, report."""
    parent = Parent()
    settings = RelaySettings.from_environ(os.environ)
    attempts, cool_down = settings.max_delivery_attempts, timedelta(seconds=settings.breaker_cool_down_seconds)
    published = 0
    since = store.BEGINNING
    with connect(os.environ["DATABASE_URL"], application_name="acp-bench") as connection:
        parent.wait_for_go()
        started, cpu_started = time.perf_counter(), time.process_time()
        while True:
            claim = store.claim(
                connection,
                token=uuid4(),
                claimed_by="bench",
                lanes={MARKET_TICKS: store.Lane(settings.claim_size, since)},
                max_bytes=CLAIM_BYTES,
                lease_seconds=settings.lease_seconds,
                max_attempts=attempts,
            )
            if not len(claim):
                break
            _, since = claim.reached[MARKET_TICKS]
            settlements = [
                (message, settle(Accepted("unsent"), attempt=1, max_attempts=attempts, cool_down=cool_down))
                for message in claim.messages
            ]
            published += len(store.settle(connection, claimed_by="bench", settlements=settlements))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    parent.report({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": {"published": published}})


if __name__ == "__main__":
    main()
