"""An engine as a process that tests can kill; its argument is DATABASE_URL. It works until it is killed."""

import sys
import time

from tests.integration.operations.world import KINDS

from control_plane.operations.engine import run_operations
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry

if __name__ == "__main__":
    with connect(sys.argv[1], application_name="doomed") as connection:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            run_operations(connection, KINDS, Telemetry("doomed"), lambda: 60.0, lease_seconds=0.2)
            time.sleep(0.02)
