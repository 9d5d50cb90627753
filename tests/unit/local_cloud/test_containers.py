"""What functions in containers get to know, and the error if there can be no containers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import docker.errors
import pytest
import samcli.local.docker.utils
from samcli.local.docker.exceptions import ContainerNotReachableException

from local_cloud import containers
from local_cloud.cloud import Cloud
from local_cloud.containers import FromContainer, NoContainersError, bridge_of, find_engine, function_environment
from local_cloud.progress import Progress
from local_cloud.run_state import RunState
from local_cloud.workspace import CHECKOUT, Workspace

if TYPE_CHECKING:
    from pathlib import Path


class FakeSecrets:
    def __init__(self, **texts: str) -> None:
        self.texts = texts

    def get_secret_value(self, SecretId: str) -> dict[str, str]:  # noqa: N803 - boto3's spelling
        return {"Name": SecretId.removeprefix("arn:"), "SecretString": self.texts[SecretId.removeprefix("arn:")]}


class FakeCloud:
    endpoint = "http://localhost:4566"

    def __init__(self, variables: dict[str, object], **secrets: str) -> None:
        self.secrets = FakeSecrets(**secrets)
        self.functions = SimpleNamespace(
            get_function_configuration=lambda FunctionName: {"Environment": {"Variables": variables}}  # noqa: N803
        )

    def put_secret(self, name: str, value: str) -> str:
        self.secrets.texts[name] = value
        return f"arn:{name}"


class FakeEngine:
    def __init__(self, *pools: dict[str, str], **information: Any) -> None:
        self.pools, self.information = pools, information
        self.networks = self

    def info(self) -> dict[str, Any]:
        return {"OperatingSystem": "Debian GNU/Linux 12", "SecurityOptions": []} | self.information

    def get(self, name: str) -> Any:
        assert name == "bridge"
        return SimpleNamespace(attrs={"IPAM": {"Config": list(self.pools)}})


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("http://localhost:4566/000000000000/q", "http://host.docker.internal:4566/000000000000/q"),
        ("postgresql://a:b@127.0.0.1:5432/c", "postgresql://a:b@host.docker.internal:5432/c"),
        ("http://sqs.localhost:4566/q", "http://sqs.localhost:4566/q"),
        ("https://db.example:5432/localhost", "https://db.example:5432/localhost"),
        ("", ""),
    ],
)
def test_loopback_alone_is_renamed(text: str, seen: str) -> None:
    assert FromContainer()(text) == seen


def test_a_container_gets_the_deployed_environment_with_its_hosts_name() -> None:
    cloud = FakeCloud(
        {
            "DATABASE_SECRET_ARN": "arn:database",
            "API_TOKEN_SECRET_ARN": "arn:token",
            "TOPIC_QUEUE_URLS": '{"a.b": "http://localhost:4566/q"}',
            "CLOUD_ENDPOINT_URL": "",
            "LEASE_SECONDS": 30,
            "MARKET_DATA_URL": "http://127.0.0.1:7000",
        },
        database="postgresql://app:pass@127.0.0.1:5432/x",
        token="t",
    )
    seen = FromContainer()
    assert function_environment(cloud, "relay", seen) == {  # type: ignore[arg-type]  # as much of one as is asked for
        "DATABASE_SECRET_ARN": "arn:database/from-containers",
        "API_TOKEN_SECRET_ARN": "arn:token",
        "TOPIC_QUEUE_URLS": '{"a.b": "http://host.docker.internal:4566/q"}',
        "CLOUD_ENDPOINT_URL": "http://host.docker.internal:4566",
        "LEASE_SECONDS": "30",
        "MARKET_DATA_URL": "http://host.docker.internal:7000",
    }
    assert cloud.secrets.texts["database/from-containers"] == "postgresql://app:pass@host.docker.internal:5432/x"
    assert cloud.secrets.texts["database"] == "postgresql://app:pass@127.0.0.1:5432/x"
    assert seen.ports == {4566, 5432, 7000}


@pytest.mark.parametrize(
    ("pools", "interface"),
    [
        ([{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}], "172.17.0.1/16"),
        ([{"Subnet": "10.1.0.0/24"}], "10.1.0.1/24"),
        (
            [{"Subnet": "fd00::/64", "Gateway": "fd00::1"}, {"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.9"}],
            "10.1.0.9/24",
        ),
    ],
)
def test_the_bridge_s_address_is_known_before_there_is_one(
    monkeypatch: pytest.MonkeyPatch, pools: list[dict[str, str]], interface: str
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert str(bridge_of(FakeEngine(*pools))) == interface


def test_docker_desktop_needs_no_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bridge_of(FakeEngine(OperatingSystem="Docker Desktop")) is None
    monkeypatch.setattr("sys.platform", "darwin")
    assert bridge_of(FakeEngine()) is None


def test_a_rootless_engine_is_named_as_the_culprit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(NoContainersError, match="rootless"):
        bridge_of(FakeEngine(SecurityOptions=["name=seccomp", "name=rootless"]))


def test_without_an_engine_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_there() -> None:
        raise ContainerNotReachableException("none is there")

    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    monkeypatch.setattr(samcli.local.docker.utils, "get_validated_container_client", none_there)
    with pytest.raises(NoContainersError) as raised:
        find_engine()
    assert "Install" in raised.value.remedy
    assert "DOCKER_HOST is unix:///nonexistent/docker.sock" in raised.value.remedy


@pytest.mark.parametrize("error", [docker.errors.NotFound("network bridge not found"), ConnectionResetError("reset")])
def test_an_engine_that_leaves_or_lacks_a_bridge_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    class Engine(FakeEngine):
        def get(self, name: str) -> Any:
            raise error

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(containers, "find_engine", Engine)
    with pytest.raises(NoContainersError, match=str(error)):
        containers.prepare(Workspace(tmp_path, tmp_path, tmp_path), object(), FakeCloud({}), {})  # type: ignore[arg-type]


def test_samconfig_names_the_file_that_up_writes() -> None:
    written = containers.environment_file(Workspace.from_environ({}))
    config = tomllib.loads((CHECKOUT / "samconfig.toml").read_text())["default"]
    for command in ("local_invoke", "local_start_api"):
        parameters = config[command]["parameters"]
        assert CHECKOUT / parameters["env_vars"] == written
        assert parameters["add_host"] == [f"{containers.HOST}:host-gateway"]


def test_up_goes_on_without_containers_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class WithoutDocker(Cloud):
        def prepare_containers(self, run: RunState) -> None:
            msg = "No Docker engine answers."
            raise NoContainersError(msg)

    WithoutDocker(Workspace(CHECKOUT, tmp_path, tmp_path))._containers(RunState(), Progress())
    assert "Containers: not for sam local invoke: No Docker engine answers." in capsys.readouterr().err


def test_an_engine_that_accepts_and_never_answers_costs_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()

    def never_answers() -> Any:
        ended.wait()
        raise ContainerNotReachableException("it went away")

    monkeypatch.setattr(samcli.local.docker.utils, "get_validated_container_client", never_answers)
    monkeypatch.setattr(containers, "ENGINE_SECONDS", 0.2)
    try:
        Deployed(Workspace(CHECKOUT, tmp_path, tmp_path))._containers(RunState(), Progress())
    finally:
        ended.set()
    said = "Containers: not for sam local invoke: The Docker engine did not answer within 0.2 s."
    assert said in capsys.readouterr().err


def test_a_process_ends_soon_where_the_engine_stays_silent() -> None:
    code = (
        "from local_cloud import containers\n"
        "try: containers.within(containers.ENGINE_SECONDS, containers._bridge)\n"
        "except containers.NoContainersError as error: print(error)"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"DOCKER_HOST": f"tcp://127.0.0.1:{silent.getsockname()[1]}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
    assert time.monotonic() - began < 40
    assert "The Docker engine did not answer within 5 s.\n" in done.stdout
    assert "Restart it, so that docker info answers." in done.stdout


def test_what_the_engine_itself_calls_a_timeout_is_passed_on() -> None:
    def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        containers.within(30, fail)


class Deployed(Cloud):
    def aws(self, run: RunState) -> Any:
        return object()

    def outputs(self, run: RunState) -> dict[str, str]:
        return {}
