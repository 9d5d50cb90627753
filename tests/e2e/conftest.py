"""The pipeline, deployed by `scripts/acp up` as by a user, in a state folder of the tests' own.

The tests run on each local cloud, or on those that --cloud names, so that they do not depend on one emulator.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import psycopg
import pytest
from tests.e2e.clouds import DIFFERENCES, Differences
from tests.interrupts import clean_up_when_interrupted, run
from tests.otlp import Tap, tapping
from xdist.scheduler import LoadScopeScheduling

CHECKOUT = Path(__file__).parent.parent.parent
UP_SECONDS = 600
OF_THEIR_OWN = ("test_demo.py", "test_process_executor.py")
"""The files whose tests deploy a cloud of their own."""
HOST_SECRET = "SECRET_OF_THE_HOST"
"""A variable of the user's that no function may see."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cloud",
        action="append",
        choices=[*DIFFERENCES],
        help="what stands in for AWS; may be repeated; default: each",
    )


def pytest_configure(config: pytest.Config) -> None:
    clean_up_when_interrupted(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes every test of the cloud run on each local cloud."""
    if "cloud_name" in metafunc.fixturenames:
        metafunc.parametrize("cloud_name", _clouds(metafunc.config), indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that a cloud does not run."""
    left_out = [item for item in items if isinstance(item, pytest.Function) and _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Function) -> bool:
    callspec = getattr(item, "callspec", None)
    names = {item.path.name, f"{item.path.name}::{item.originalname}"}
    return callspec is not None and bool(names & _left_out(callspec.params.get("cloud_name", "")).keys())


class ByCloud(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """Runs each cloud's tests in a process of their own, because they share what is deployed there.

    Tests that deploy a cloud of their own share nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.partition("::")[0].endswith(OF_THEIR_OWN):
            return nodeid
        return next((name for name in DIFFERENCES if f"[{name}" in nodeid), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByCloud:
    # --dist loadgroup cannot be used: with pytest 9.2, xdist 3.8.0 no longer sees the groups.
    return ByCloud(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return all(collection_path.name in _left_out(name) for name in _clouds(config)) or None


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"clouds: {', '.join(_clouds(config))}",
        *(f"not on {cloud}: {test}, as {why}" for cloud in _clouds(config) for test, why in _left_out(cloud).items()),
    ]


def _clouds(config: pytest.Config) -> list[str]:
    return config.getoption("--cloud") or [*DIFFERENCES]


def _left_out(cloud: str) -> Mapping[str, str]:
    return DIFFERENCES[cloud].left_out if cloud in DIFFERENCES else {}


@dataclass(frozen=True)
class LocalCloud:
    """A running local cloud, with what `acp env --json` says of it."""

    environ: dict[str, str]
    acp: Callable[..., subprocess.CompletedProcess[str]]

    def __hash__(self) -> int:
        return id(self)

    @property
    def endpoint_url(self) -> str:
        return self.environ["AWS_ENDPOINT_URL"]

    def output(self, name: str) -> str:
        return self.environ[name]

    def client(self, service: str) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]  # the stubs want a literal
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def invoke(self, function: str, event: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Invokes a function; returns its answer, and whether it succeeded."""
        answer = self.client("lambda").invoke(
            FunctionName=self.output(f"{function}Name"), Payload=json.dumps(event).encode()
        )
        return json.loads(answer["Payload"].read()), "FunctionError" not in answer

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.environ["DATABASE_URL"]) as connection:
            return connection.execute(statement, parameters).fetchall()

    def log(self, function: str) -> list[dict[str, str]]:
        """Returns the lines that a function has logged as JSON within ten minutes."""
        events = self.client("logs").filter_log_events(
            logGroupName=f"/aws/lambda/{self.output(f'{function}Name')}",
            startTime=int(datetime.now(UTC).timestamp() - 600) * 1000,
        )
        lines = [line for event in events["events"] for line in event["message"].splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def settled(self) -> bool:
        """Whether every message is delivered and every tick consumed."""
        (pending,) = self.query("SELECT count(*) FROM pending_deliveries")[0]
        (unconsumed,) = self.query(
            """
            SELECT count(*) FROM outbox_states AS delivery
            WHERE subscription = 'signal_lab' AND state = 'delivered' AND NOT EXISTS (
                SELECT FROM processed_events AS processed
                WHERE processed.event_id = delivery.event_id AND processed.consumer = 'signal_lab'
            )
            """
        )[0]
        return (pending, unconsumed) == (0, 0)


@dataclass(frozen=True)
class Market:
    """The replay server's faults."""

    url: str

    def break_symbol(self, symbol: str, fault: dict[str, Any]) -> None:
        self._send("PUT", f"/faults/{symbol}", json.dumps(fault).encode())

    def mend(self) -> None:
        self._send("DELETE", "/faults")

    def _send(self, method: str, path: str, body: bytes | None = None) -> None:
        with urlopen(Request(self.url + path, data=body, method=method), timeout=10):
            pass


def wait_for(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """The condition's first truthy value; fails the test, naming what did not happen, when the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds:g} s")


def run_acp(state: Path, **variables: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    def acp(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return run(
            [CHECKOUT / "scripts" / "acp", *arguments],
            env={**os.environ, "ACP_STATE": str(state), "NO_COLOR": "1", "COLUMNS": "200", **variables},
            timeout=timeout,
        )

    return acp


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory, cloud_name: str) -> Path:
    return tmp_path_factory.mktemp(cloud_name) / "state"


@pytest.fixture(scope="session")
def cloud_name(request: pytest.FixtureRequest) -> str:
    """The cloud's name, as in --cloud."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def differences(cloud_name: str) -> Differences:
    """The cloud's differences from AWS."""
    return DIFFERENCES[cloud_name]


@pytest.fixture(scope="session")
def traces(cloud_name: str) -> Iterator[Tap]:
    """The receiver of traces of the cloud's stack."""
    with tapping() as tap:
        yield tap


@pytest.fixture(scope="session")
def local_cloud(state: Path, cloud_name: str, traces: Tap) -> Iterator[LocalCloud]:
    """One local cloud for all tests; each test leaves it as it found it."""
    acp = run_acp(state, **{HOST_SECRET: "x"})
    every_function = ("--set", f"TracesEndpoint={traces.url}")  # without it, there is no TraceFunction
    try:
        up = acp("up", "--cloud", cloud_name, "--market", "replay", *every_function, timeout=UP_SECONDS)
        assert up.returncode == 0, up.stdout + up.stderr
        yield LocalCloud(json.loads(acp("env", "--json").stdout), acp)
    finally:
        down = acp("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert processes_of(state) == []


@pytest.fixture
def market(local_cloud: LocalCloud) -> Iterator[Market]:
    market = Market(local_cloud.environ["MARKET_DATA_URL"])
    yield market
    market.mend()


def processes_of(state: Path) -> Sequence[str]:
    """Returns the command lines of processes that work in the state folder."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        text = " ".join(process.info["cmdline"] or []) + " " + (process.info["cwd"] or "")
        if str(state) in text:
            found.append(text)
    return found
