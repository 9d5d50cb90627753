"""A bare loop that claims and settles on one of the layouts, on one connection, and publishes nothing.

Options: layout (its name in :data:`bench.layouts.LAYOUTS`), subscription, topic.
"""

import os
import time
from uuid import uuid4

from bench.child import Parent
from bench.layouts import DUE_AT, LAYOUTS, claim, settle
from control_plane.outbox.claims import BEGINNING
from control_plane.platform.database import connect
from control_plane.platform.settings import RelaySettings


def main() -> None:
    """Prepares, waits for the start, claims and settles until nothing is left, and reports."""
    parent = Parent()
    options = parent.options()
    layout, subscription, topic = LAYOUTS[options["layout"]], options["subscription"], options["topic"]
    size = RelaySettings.from_environ(os.environ).claim_size
    published = 0
    since = BEGINNING
    with connect(os.environ["DATABASE_URL"], application_name="acp-bench") as connection:
        parent.wait_for_go()
        started, cpu_started = time.perf_counter(), time.process_time()
        while True:
            token = uuid4()
            rows = claim(
                connection, layout, subscription=subscription, topic=topic, since=since, size=size, token=token
            )
            if not rows:
                break
            since = max(row[DUE_AT] for row in rows)
            published += settle(connection, layout, rows, subscription=subscription, token=token)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        # A session tells its counts of rows at most once a second, and whoever started this reads them next.
        connection.execute("SELECT pg_stat_force_next_flush()")
    parent.report({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": {"published": published}})


if __name__ == "__main__":
    main()
