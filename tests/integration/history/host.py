"""A process that works on operations until it is killed: OperationsFunction's engine on one connection.

It says that it is ready, and begins once it has read a line.
"""

import sys
import time
from typing import TYPE_CHECKING

from control_plane.operations.engine import Engine
from control_plane.operations.history.erasure import Erasure
from control_plane.operations.history.rebuild import Rebuild
from control_plane.operations.history.retention import Retention
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from domains import DOMAINS, EVENT_TYPES, load_forgetting

if TYPE_CHECKING:
    from control_plane.operations.kind import Kind


def main(url: str, items: int) -> None:
    consumers = [consumer for domain in DOMAINS for consumer in domain.consumers]
    kinds: list[Kind] = [Retention(), Erasure(load_forgetting()), Rebuild(consumers, EVENT_TYPES)]
    with connect(url, application_name="operations") as connection:
        engine = Engine(connection, kinds, Telemetry("test"), lease_seconds=0.2, step_items=items)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        while True:
            if not engine.work():
                time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
