from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.waiting import wait_until

from local_cloud.processes import Service, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The service writes a line when it is ready; with "family", it starts a grandchild that ignores SIGTERM and outlives
# it.
SERVER = """
import pathlib, signal, subprocess, sys, time
mode, ready = sys.argv[1], pathlib.Path(sys.argv[2])
if mode == "fails":
    print("cannot: the reason", flush=True)
    sys.exit(3)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "family":
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", deaf])
    print(child.pid, flush=True)
ready.write_text("ready")
time.sleep(600)
"""

STARTER = """
import os, pathlib, sys, time
from local_cloud.processes import Service
base = pathlib.Path(sys.argv[1])
service = Service("sample", records=base / "services", log=base / "logs" / "sample.log")
service.start([sys.executable, "-c", "import time; time.sleep(600)"], env=os.environ, cwd=base)
print("started", flush=True)
time.sleep(600)
"""

# It is killed when it has started the service and not yet recorded its pid.
KILLED_STARTER = """
import os, pathlib, signal, sys
from local_cloud import processes
processes.psutil.Process = lambda pid: os.kill(os.getpid(), signal.SIGKILL)
base = pathlib.Path(sys.argv[1])
service = processes.Service("sample", records=base / "services", log=base / "logs" / "sample.log")
service.start([sys.executable, "-c", sys.argv[2], "family", str(base / "ready")], env=os.environ, cwd=base)
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service("sample", records=tmp_path / "services", log=tmp_path / "logs" / "sample.log")
    yield service
    service.stop(grace_seconds=0.5)


def start(service: Service, tmp_path: Path, mode: str = "plain") -> Path:
    ready = tmp_path / "ready"
    ready.unlink(missing_ok=True)
    service.start([sys.executable, "-c", SERVER, mode, str(ready)], env=os.environ, cwd=tmp_path)
    return ready


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_started_service_is_found_by_another_object(service: Service, tmp_path: Path) -> None:
    ready = start(service, tmp_path)
    service.wait_until(ready.exists, seconds=20)
    other = Service("sample", records=tmp_path / "services", log=service.log)
    assert other.process == service.process
    assert other.identity == service.identity
    assert not service.crashed


def test_a_service_lives_in_a_session_of_its_own(service: Service, tmp_path: Path) -> None:
    start(service, tmp_path)
    assert service.process is not None
    assert os.getsid(service.process.pid) == service.process.pid != os.getsid(0)


def test_stopping_leaves_neither_process_nor_record(service: Service, tmp_path: Path) -> None:
    ready = start(service, tmp_path)
    service.wait_until(ready.exists, seconds=20)
    assert service.process is not None
    pid = service.process.pid
    assert service.stop()
    assert gone(pid)
    assert service.process is None
    assert not list((tmp_path / "services").iterdir())
    assert not service.stop()


def test_a_service_that_ignores_the_request_is_killed(service: Service, tmp_path: Path) -> None:
    ready = start(service, tmp_path, "deaf")
    service.wait_until(ready.exists, seconds=20)
    assert service.process is not None
    pid = service.process.pid
    service.stop(grace_seconds=0.2)
    assert gone(pid)


def test_children_of_a_crashed_service_are_ended(service: Service, tmp_path: Path) -> None:
    ready = start(service, tmp_path, "family")
    service.wait_until(ready.exists, seconds=20)
    assert service.process is not None
    service.process.kill()
    child = int(service.log.read_text())
    wait_until(lambda: service.crashed)
    assert not gone(child)
    service.stop(grace_seconds=0.2)
    assert gone(child)


def test_service_that_ends_at_start_is_reported_with_its_log(service: Service, tmp_path: Path) -> None:
    ready = start(service, tmp_path, "fails")
    with pytest.raises(ServiceError, match="ended while it started") as caught:
        service.wait_until(ready.exists, seconds=20)
    assert caught.value.details == "cannot: the reason"


def test_a_service_that_is_not_ready_in_time_is_reported(service: Service, tmp_path: Path) -> None:
    start(service, tmp_path)
    with pytest.raises(ServiceError, match="not ready within"):
        service.wait_until(lambda: False, seconds=0.1)


def test_port_is_owned_if_the_service_or_its_child_listens(service: Service, tmp_path: Path) -> None:
    child = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child + '; time.sleep(600)'!r}])"
    service.start([sys.executable, "-c", program], env=os.environ, cwd=tmp_path)
    wait_until(lambda: service.log.read_text().endswith("\n"))
    port = int(service.log.read_text())
    assert service.listens_on(port)
    with socket.create_server(("127.0.0.1", 0)) as of_another:
        assert not service.listens_on(of_another.getsockname()[1])
    service.stop(grace_seconds=0.5)
    assert not service.listens_on(port)


def test_reused_pid_is_neither_adopted_nor_killed(service: Service, tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        start(service, tmp_path)
        service.stop()
        record = {"pid": stranger.pid, "created": psutil.Process(stranger.pid).create_time() - 3600}
        (tmp_path / "services" / "sample.json").write_text(json.dumps(record))
        assert service.process is None
        assert service.crashed
        service.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_starting_again_replaces_the_running_one(service: Service, tmp_path: Path) -> None:
    start(service, tmp_path)
    assert service.process is not None
    first = service.process.pid
    start(service, tmp_path)
    assert gone(first)
    assert service.process is not None
    assert service.process.pid != first


def test_a_service_whose_start_was_cut_short_is_ended(service: Service, tmp_path: Path) -> None:
    starter = subprocess.run([sys.executable, "-c", KILLED_STARTER, str(tmp_path), SERVER], check=False)
    assert starter.returncode == -signal.SIGKILL
    wait_until((tmp_path / "ready").exists)
    child = int(service.log.read_text())
    assert service.crashed
    assert service.stop(grace_seconds=0.2)
    assert gone(child)
    assert not list((tmp_path / "services").iterdir())


def test_service_survives_an_interrupt_of_its_terminal(service: Service, tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            STARTER,
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"started\n"
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait(20)
    assert service.process is not None
