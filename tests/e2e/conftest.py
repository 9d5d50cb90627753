"""The pipeline, deployed by `scripts/acp up` as a user would, in a state folder of the tests' own.

On LocalStack, or on what --cloud says: what passes on both is the template's merit, not an emulator's.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import psycopg
import pytest
from tests.e2e.clouds import DIFFERENCES, Differences

CHECKOUT = Path(__file__).parent.parent.parent
UP_SECONDS = 600


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cloud", choices=[*DIFFERENCES], default="localstack", help="what stands in for AWS")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return collection_path.name in _differences(config).left_out or None


def pytest_report_header(config: pytest.Config) -> list[str]:
    left_out = _differences(config).left_out
    return [f"cloud: {config.getoption('--cloud')}", *(f"left out: {name}, as {why}" for name, why in left_out.items())]


def _differences(config: pytest.Config) -> Differences:
    return DIFFERENCES[config.getoption("--cloud")]


@dataclass(frozen=True)
class LocalCloud:
    """A running local cloud, by what `acp env --json` says of it."""

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
        """A function's answer, and whether it succeeded."""
        answer = self.client("lambda").invoke(
            FunctionName=self.output(f"{function}Name"), Payload=json.dumps(event).encode()
        )
        return json.loads(answer["Payload"].read()), "FunctionError" not in answer

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.environ["DATABASE_URL"]) as connection:
            return connection.execute(statement, parameters).fetchall()

    def settled(self) -> bool:
        """Whether every promise is kept and every tick consumed."""
        (open_promises,) = self.query(
            "SELECT count(*) FROM outbox WHERE delivered_at IS NULL AND dead_lettered_at IS NULL"
        )[0]
        (unconsumed,) = self.query(
            """
            SELECT count(*) FROM outbox
            WHERE topic = 'market.ticks' AND delivered_at IS NOT NULL AND NOT EXISTS (
                SELECT FROM processed_events AS processed
                WHERE processed.event_id = outbox.event_id AND processed.consumer = 'signal_lab'
            )
            """
        )[0]
        return (open_promises, unconsumed) == (0, 0)


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
        return subprocess.run(
            [CHECKOUT / "scripts" / "acp", *arguments],
            env={**os.environ, "ACP_STATE": str(state), "NO_COLOR": "1", "COLUMNS": "200", **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return acp


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("acp") / "state"


@pytest.fixture(scope="session")
def cloud_name(pytestconfig: pytest.Config) -> str:
    name: str = pytestconfig.getoption("--cloud")
    return name


@pytest.fixture(scope="session")
def differences(pytestconfig: pytest.Config) -> Differences:
    """In what the cloud differs from AWS."""
    return _differences(pytestconfig)


@pytest.fixture(scope="session")
def local_cloud(state: Path, cloud_name: str) -> Iterator[LocalCloud]:
    """Up once for all tests: they share it, and each leaves it as it found it."""
    acp = run_acp(state)
    try:
        up = acp("up", "--cloud", cloud_name, "--market", "replay", timeout=UP_SECONDS)
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
    """Command lines of processes that work in the state folder."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        text = " ".join(process.info["cmdline"] or []) + " " + (process.info["cwd"] or "")
        if str(state) in text:
            found.append(text)
    return found
