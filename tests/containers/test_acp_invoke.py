"""`acp invoke`: what it prints, which errors it explains, and what the container gets to see."""

import json
import os
import re
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.containers.conftest import INVOKE_SECONDS, Containers
from tests.e2e.conftest import CHECKOUT, run_acp, wait_for


def test_it_prints_the_answer_and_logs_to_standard_error(containers: Containers) -> None:
    ran = containers.cloud.acp("invoke", "maintenance", timeout=INVOKE_SECONDS)
    assert ran.returncode == 0, ran.stderr
    assert "deleted_events" in json.loads(ran.stdout)
    assert "REPORT RequestId" in ran.stderr


def test_it_fails_where_the_function_does_and_names_the_error(containers: Containers, tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text('{"linger_seconds": "long"}')
    ran = containers.cloud.acp("invoke", "RelayFunction", "-e", str(event), timeout=INVOKE_SECONDS)
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["errorType"] == "ConfigurationError"
    assert "RelayFunction failed: ConfigurationError: linger_seconds of the event is 'long'" in ran.stderr


def test_the_container_gets_no_user_credentials_and_no_password(
    containers: Containers, engine: Any, tmp_path: Path
) -> None:
    event = tmp_path / "event.json"
    event.write_text('{"linger_seconds": 20}')
    state = containers.folder / ".acp" / "state"
    mine = {"AWS_ACCESS_KEY_ID": "AKIAMINE", "AWS_SECRET_ACCESS_KEY": "mine", "AWS_SESSION_TOKEN": "mine"}
    process = subprocess.Popen(
        [CHECKOUT / "scripts" / "acp", "invoke", "relay", "-e", str(event)],
        env={**os.environ, **mine, "ACP_STATE": str(state)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        label = {"label": "sam.cli.function.name=RelayFunction"}
        running = partial(engine.containers.list, filters=label)
        (container,) = wait_for(running, seconds=INVOKE_SECONDS, what="a container")
        environment = dict(entry.split("=", 1) for entry in container.attrs["Config"]["Env"])
    finally:
        output, _ = process.communicate(timeout=INVOKE_SECONDS)
    assert process.returncode == 0, output
    assert environment["AWS_ACCESS_KEY_ID"] == environment["AWS_SECRET_ACCESS_KEY"] == "test"
    assert "AWS_SESSION_TOKEN" not in environment
    run = json.loads((state / "run.json").read_text())
    assert not any(password in str(environment) for password in run["role_passwords"].values())


def test_without_docker_it_says_what_to_install(containers: Containers) -> None:
    nowhere = {**os.environ, "DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    ran = subprocess.run(
        [CHECKOUT / "scripts" / "acp", "invoke", "relay"],
        env=nowhere | {"ACP_STATE": str(containers.folder / ".acp" / "state")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert "No Docker engine answers." in ran.stderr
    assert "Install" in ran.stderr
    assert "DOCKER_HOST is unix:///nonexistent/docker.sock" in ran.stderr
    tests = subprocess.run(
        [CHECKOUT / "scripts" / "test", "--containers"],
        env=nowhere,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert tests.returncode != 0
    assert "No Docker engine answers." in tests.stdout + tests.stderr
    assert "skipped" not in tests.stdout


def test_a_cloud_that_is_down_says_how_to_start_it(tmp_path: Path) -> None:
    ran = run_acp(tmp_path / "state")("invoke", "relay")
    assert ran.returncode == 3
    assert "scripts/acp up" in ran.stderr


def test_only_the_bridge_address_leads_to_the_bridged_servers(containers: Containers) -> None:
    environment = (containers.folder / ".acp" / "state" / "sam-local.json").read_text()
    ports = {int(port) for port in re.findall(r"host\.docker\.internal:(\d+)", environment)}
    assert len(ports) == 3, "the local cloud, the market and the receiver of traces; Postgres is named by a secret"
    for port in ports:
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((outward_address(), port), timeout=5)


def outward_address() -> str:
    """Returns this machine's own address towards the internet, else another address of loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.2"
        return str(probe.getsockname()[0])
