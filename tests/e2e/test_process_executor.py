"""The process executor in a real LocalStack, which these tests start in host mode on a free port."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import textwrap
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LOCALSTACK_PYTHON = ROOT / ".acp/venvs/localstack/bin/python"
FUNCTIONS_PYTHON = ROOT / ".acp/venvs/runtime/bin/python"

APP = """
    import os, subprocess, sys
    print("loading")
    import in_layer
    if os.environ["MODE"] == "bad init":
        raise RuntimeError("no such setting")

    def handler(event, context):
        print("event", event)
        match event.get("do"):
            case "fail":
                raise ValueError("this went wrong")
            case "crash":
                os._exit(7)
            case "hang":
                subprocess.Popen([sys.executable, "-c", "while True: pass"])
                while True:
                    pass
            case "call":
                import boto3
                return boto3.client("sts").get_caller_identity()["Account"]
        return {
            "pid": os.getpid(),
            "layer": in_layer.which,
            "path": sys.path[:3],
            "environment": dict(os.environ),
            "arn": context.invoked_function_arn,
            "size": len(event.get("data", "")),
        }
"""


@dataclass(frozen=True)
class LocalStack:
    process: subprocess.Popen[bytes]
    endpoint: str

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self, service: str) -> Any:
        session: Any = boto3.Session("test", "test", region_name="eu-west-1")  # any service: no overload takes that
        return session.client(service, endpoint_url=self.endpoint)

    def create_function(self, name: str, *, layers: list[str], environment: dict[str, str], timeout_s: int) -> None:
        functions = self.client("lambda")
        functions.create_function(
            FunctionName=name,
            Runtime="python3.13",
            Handler="app.handler",
            Role="arn:aws:iam::000000000000:role/any",
            Code={"ZipFile": zipped({"app.py": textwrap.dedent(APP)})},
            Layers=layers,
            Environment={"Variables": {"MODE": "good"} | environment},
            Timeout=timeout_s,
        )
        functions.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.2})

    def invoke(self, name: str, event: dict[str, Any]) -> tuple[Any, str | None, str]:
        """Invokes a function; returns the payload, the kind of error if any, and the tail of the log."""
        result = self.client("lambda").invoke(FunctionName=name, Payload=json.dumps(event), LogType="Tail")
        log = base64.b64decode(result["LogResult"]).decode()
        return json.loads(result["Payload"].read()), result.get("FunctionError"), log

    def publish_layer(self, name: str, files: dict[str, str]) -> str:
        arn = self.client("lambda").publish_layer_version(LayerName=name, Content={"ZipFile": zipped(files)})
        assert isinstance(arn["LayerVersionArn"], str)
        return arn["LayerVersionArn"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed package; LocalStack's own environment builds it, so that no other environment changes."""
    folder = tmp_path_factory.mktemp("plugin")
    build = [str(LOCALSTACK_PYTHON), "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT / "scripts/localstack", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@contextlib.contextmanager
def localstack(plugin: Path, state: Path) -> Iterator[LocalStack]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for folder in ("tmp", "cache"):
        (state / folder).mkdir(parents=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(state),
        "PYTHONPATH": str(plugin),
        "XDG_CACHE_HOME": str(state / "cache"),
        "TMPDIR": str(state / "tmp"),
        "FILESYSTEM_ROOT": str(state / "files"),
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_SERVER": "bound",
        "LOCALSTACK_HOST": f"localhost:{port}",
        "SQS_ENDPOINT_STRATEGY": "path",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "DNS_ADDRESS": "0",
        "OVERRIDE_IN_DOCKER": "0",
        "LAMBDA_RUNTIME_EXECUTOR": "process",
        "LAMBDA_RUNTIME_ENVIRONMENT_TIMEOUT": "60",
        "ACP_LAMBDA_PYTHON": str(FUNCTIONS_PYTHON),
        "SECRET_OF_THE_HOST": "x",
    }
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(
            [LOCALSTACK_PYTHON, "-m", "localstack.runtime.main"],
            env=environment,
            cwd=state,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        endpoint = f"http://127.0.0.1:{port}"

        def up() -> bool:
            assert process.poll() is None, (state / "log").read_text()
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{endpoint}/_localstack/health", timeout=1).close()
                return True
            return False

        wait_until(up)
        yield LocalStack(process, endpoint)
    finally:
        process.kill()
        process.wait()


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def test_functions_with_layers_run_as_processes_and_end_with_localstack(plugin: Path, tmp_path: Path) -> None:
    with localstack(plugin, tmp_path / "state") as cloud:
        layers = [
            cloud.publish_layer("first", {"python/in_layer.py": "which = 'first'"}),
            cloud.publish_layer("second", {"python/in_layer.py": "which = 'second'"}),
        ]
        cloud.create_function("shop", layers=layers, environment={"AWS_ENDPOINT_URL": "", "N": "1"}, timeout_s=2)

        answer, failed, log = cloud.invoke("shop", {"data": "x" * 5_000_000})
        assert not failed, answer
        assert (answer["layer"], answer["size"]) == ("second", 5_000_000)
        assert answer["arn"].startswith("arn:aws:lambda:eu-west-1:000000000000:function:shop")
        assert answer["environment"]["AWS_ENDPOINT_URL"] == cloud.endpoint
        assert answer["environment"]["N"] == "1"
        assert "SECRET_OF_THE_HOST" not in answer["environment"]
        assert not [name for name in answer["environment"] if name.startswith("LOCALSTACK") or name == "PYTHONPATH"]
        assert "Init Duration" in log

        again, _, log = cloud.invoke("shop", {})
        assert again["pid"] == answer["pid"]
        assert "Init Duration" not in log
        assert cloud.invoke("shop", {"do": "call"})[:2] == ("000000000000", None)

        answer, failed, _ = cloud.invoke("shop", {"do": "fail"})
        assert (failed, answer["errorType"], answer["errorMessage"]) == ("Unhandled", "ValueError", "this went wrong")
        assert "in handler" in answer["stackTrace"][0]

        answer, failed, log = cloud.invoke("shop", {"do": "hang"})
        assert failed == "Unhandled"
        assert answer["errorMessage"].endswith("Task timed out after 2.00 seconds")
        assert "Status: timeout" in log
        assert len(cloud.children()) == 0

        after, _, _ = cloud.invoke("shop", {})
        assert after["pid"] != again["pid"]
        answer, failed, _ = cloud.invoke("shop", {"do": "crash"})
        assert (failed, answer["errorType"]) == ("Unhandled", "Runtime.ExitError")
        assert cloud.invoke("shop", {})[0]["pid"] != after["pid"]

        cloud.create_function("broken", layers=layers, environment={"MODE": "bad init"}, timeout_s=2)
        answer, failed, log = cloud.invoke("broken", {})
        assert (failed, answer["errorType"], answer["errorMessage"]) == ("Unhandled", "RuntimeError", "no such setting")
        assert "app.py" in answer["stackTrace"][0]
        assert "Phase: init\tStatus: error\tError Type: RuntimeError" in log

        lines = logged(cloud, "/aws/lambda/shop", 9 * 3)
        kinds = [line.split(" ")[0] for line in lines]
        assert kinds.count("START") == kinds.count("END") == kinds.count("REPORT") == 8
        assert lines[0].strip() == "loading"
        assert [line for line in lines if line.startswith("[ERROR] ValueError: this went wrong\r")]
        assert [line for line in logged(cloud, "/aws/lambda/broken", 4) if line.startswith("[ERROR] RuntimeError")]

        children = cloud.children()
        assert children, "a warm process is there"
        cloud.process.send_signal(signal.SIGTERM)
        cloud.process.wait(30)
        wait_until(lambda: not any(map(running, children)))


def logged(cloud: LocalStack, group: str, at_least: int) -> list[str]:
    """Returns the messages of a log group's only stream, once there are so many."""
    logs = cloud.client("logs")
    found: list[str] = []

    def complete() -> bool:
        with contextlib.suppress(logs.exceptions.ResourceNotFoundException):
            (stream,) = logs.describe_log_streams(logGroupName=group)["logStreams"]
            events = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True)
            found[:] = [event["message"] for event in events["events"]]
        return len(found) >= at_least

    wait_until(complete)
    return found


def test_functions_end_when_localstack_is_killed(plugin: Path, tmp_path: Path) -> None:
    with localstack(plugin, tmp_path / "state") as cloud:
        layer = cloud.publish_layer("only", {"python/in_layer.py": "which = 'only'"})
        for name in ("idle", "busy"):
            cloud.create_function(name, layers=[layer], environment={}, timeout_s=600)
            cloud.invoke(name, {})
        cloud.client("lambda").invoke(FunctionName="busy", InvocationType="Event", Payload='{"do": "hang"}')
        wait_until(lambda: len(cloud.children()) == 3)  # The busy function has started a child.
        children = cloud.children()
        cloud.process.kill()
        cloud.process.wait()
        wait_until(lambda: not any(map(running, children)))
