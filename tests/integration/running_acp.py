"""acp as a process, on the running cloud of a test: a folder, Postgres's folder, a database, then acp's arguments."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import PASSWORD
from tests.integration.running_cloud import RunningCloud

from acp_cli import cli
from local_cloud import database, queues
from local_cloud.aws import LocalCloud
from local_cloud.postgres import PostgresServer
from local_cloud.run_state import RunState


class BusyAws(LocalCloud):
    """A cloud whose functions never come to an end."""

    def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        sys.stderr.write("asked\n")
        while True:
            time.sleep(60)


class SeenCloud(RunningCloud):
    """One whose services and queues need not be asked."""

    def running(self) -> RunState:
        run = super().running()
        assert run.deployment is not None
        run.deployment.outputs["IngestionFunctionName"] = "ingestion"
        return run

    def describe(self, run: RunState) -> dict[str, str]:
        return {"PostgreSQL": "127.0.0.1", "market data": "replay, because – it’s a test"}

    def aws(self, run: RunState) -> LocalCloud:
        return BusyAws("http://127.0.0.1:1")


if __name__ == "__main__":
    folder, data, name, *arguments = sys.argv[1:]
    database.NAME = name
    vars(queues)["queue_depths"] = lambda *_: []
    server = PostgresServer(Path(data), password=PASSWORD)
    vars(cli)["_open_cloud"] = lambda _: SeenCloud(Path(folder), server)
    sys.argv = ["acp", *arguments]
    cli.main()
