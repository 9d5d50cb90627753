"""A local cloud for functions in containers. Its schedules are off, so only the tests act."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import CHECKOUT, UP_SECONDS, LocalCloud, processes_of, run_acp, wait_for
from tests.otlp import Tap, tapping

from local_cloud.containers import NoContainersError, find_engine
from local_cloud.net import free_port, port_is_free

NEVER = "cron(0 0 1 1 ? 2099)"
INVOKE_SECONDS = 240
WHAT_SAM_READS = (".aws-sam", "events", "functions", "layers", "samconfig.toml", "template.yaml")


@dataclass(frozen=True)
class Containers:
    """The local cloud, and SAM's commands as a user types them."""

    cloud: LocalCloud
    folder: Path
    """The folder in which SAM runs: like the checkout, but with this cloud's state."""
    traces: Tap
    """The receiver of the stack's traces."""

    def invoke(self, function: str, event: str | dict[str, Any], *options: str) -> dict[str, Any]:
        """Runs `sam local invoke` and returns its answer; the event is a sample's name, or content."""
        if isinstance(event, dict):
            path = self.folder / "event.json"
            path.write_text(json.dumps(event))
        else:
            path = Path("events") / event
        ran = self.sam("local", "invoke", function, "-e", str(path), *options)
        assert ran.returncode == 0, ran.stderr
        answer = json.loads(ran.stdout or "null")
        assert isinstance(answer, dict), ran.stderr
        assert "errorType" not in answer, ran.stderr
        return answer

    @contextlib.contextmanager
    def start_api(self) -> Iterator[str]:
        """Runs `sam local start-api` and yields the API's URL."""
        port = free_port()
        with (self.folder / "start-api.log").open("w+") as log:
            process = subprocess.Popen(
                self._sam("local", "start-api", f"--port={port}"),
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

            def listens() -> bool:
                assert process.poll() is None, (self.folder / "start-api.log").read_text()
                return not port_is_free(port)

            try:
                wait_for(listens, seconds=60, what="sam local start-api")
                yield f"http://127.0.0.1:{port}"
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(60)

    def sam(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._sam(*arguments),
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INVOKE_SECONDS,
            check=False,
        )

    @staticmethod
    def _sam(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "samcli", *arguments]

    @property
    def _environ(self) -> dict[str, str]:
        return {**os.environ, "SAM_CLI_TELEMETRY": "0"}


@pytest.fixture(scope="session")
def engine() -> Any:
    """The Docker engine. If there is none, all tests fail at once with what to install."""
    try:
        return find_engine()
    except NoContainersError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def traces() -> Iterator[Tap]:
    """A receiver of traces; without one, the stack has no TraceFunction."""
    with tapping() as tap:
        yield tap


@pytest.fixture(scope="session")
def containers(engine: Any, traces: Tap, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    folder = tmp_path_factory.mktemp("checkout")
    state = folder / ".acp" / "state"
    acp = run_acp(state)
    try:
        up = acp(
            *("up", "--market=replay", f"--ingestion-schedule={NEVER}", f"--relay-schedule={NEVER}"),
            f"--set=TracesEndpoint={traces.url}",
            timeout=UP_SECONDS,
        )
        assert up.returncode == 0, up.stdout + up.stderr
        assert "sam local invoke reaches it" in up.stderr
        for name in WHAT_SAM_READS:
            (folder / name).symlink_to(CHECKOUT / name)
        yield Containers(LocalCloud(json.loads(acp("env", "--json").stdout), acp), folder, traces)
    finally:
        down = acp("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert processes_of(state) == []
