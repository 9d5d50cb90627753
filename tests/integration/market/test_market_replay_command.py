"""``python -m market_replay`` as a process."""

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "market_replay", *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def port_in(file: Path, process: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(file.read_text())


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_logs_each_request(tmp_path: Path, number: signal.Signals) -> None:
    with started("--port-file", str(tmp_path / "port")) as process:
        port = port_in(tmp_path / "port", process)
        assert status(port, "/health") == 200
        assert status(port, "/v8/finance/chart/AAPL?range=1d&interval=1m") == 200
        process.send_signal(number)
        out, log = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "")
    first, *requests = log.splitlines()
    assert first == f"market_replay: http://127.0.0.1:{port}"
    assert [line.split()[1:4:2] for line in requests] == [["GET", "200"], ["GET", "200"]]


def test_quiet_suppresses_the_log(tmp_path: Path) -> None:
    with started("--quiet", "--port-file", str(tmp_path / "port")) as process:
        status(port_in(tmp_path / "port", process), "/health")
        process.terminate()
        assert process.communicate(timeout=10) == ("", "")


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started("--port", str(port)) as process:
            _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"127.0.0.1:{port}" in log
    assert "in use" in log
