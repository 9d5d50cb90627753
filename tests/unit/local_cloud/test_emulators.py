from __future__ import annotations

import ipaddress
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from local_cloud.emulators import EMULATORS
from local_cloud.emulators.emulator import StartedEmulator
from local_cloud.emulators.external import External, check_endpoint, is_nearby
from local_cloud.errors import AcpError
from local_cloud.net import free_port
from local_cloud.processes import ServiceError
from local_cloud.run_state import DEFAULT
from local_cloud.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path, tmp_path / "state")


def test_the_default_is_one_of_the_table() -> None:
    assert DEFAULT in EMULATORS


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("http://localhost:4566", "http://localhost:4566"),
        ("http://127.0.0.1:4566/", "http://127.0.0.1:4566"),
        ("https://[::1]:4566", "https://[::1]:4566"),
        ("http://172.17.0.2:4566", "http://172.17.0.2:4566"),
        (" http://10.0.0.7 ", "http://10.0.0.7"),
    ],
)
def test_a_loopback_or_private_endpoint_is_taken(url: str, accepted: str) -> None:
    assert check_endpoint(url) == accepted


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://sqs.us-east-1.amazonaws.com", "that is AWS itself"),
        ("https://vpce-1.sqs.us-east-1.vpce.AMAZONAWS.com.", "that is AWS itself"),
        ("https://lambda.us-east-1.api.aws", "that is AWS itself"),
        ("https://sqs.cn-north-1.amazonaws.com.cn", "that is AWS itself"),
        ("http://8.8.8.8:4566", "neither this machine's loopback nor a private address"),
        ("http://169.254.169.254", "neither this machine's loopback nor a private address"),
        ("http://0.0.0.0:4566", "neither this machine's loopback nor a private address"),
        ("http://[2600:1f00::1]", "neither this machine's loopback nor a private address"),
        ("localhost:4566", "no URL of a scheme, a host and a port"),
        ("ftp://localhost", "no URL of a scheme, a host and a port"),
        ("http://", "no URL of a scheme, a host and a port"),
        ("http://localhost:port", "no URL of a scheme, a host and a port"),
        ("http://user:key@localhost:4566", "no URL of a scheme, a host and a port"),
        ("http://localhost:4566/sqs", "no URL of a scheme, a host and a port"),
    ],
)
def test_an_endpoint_that_could_be_the_real_aws_is_refused(url: str, why: str) -> None:
    with pytest.raises(AcpError, match=why) as caught:
        check_endpoint(url)
    assert "http://localhost:4566" in caught.value.remedy


def test_a_name_with_a_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "93.184.216.34")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(AcpError, match=r"93\.184\.216\.34 is neither"):
        check_endpoint("http://some.name:4566")


@pytest.mark.parametrize("address", ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "fd00::1", "192.168.1.1"])
def test_a_private_address_is_known_in_each_of_its_forms(address: str) -> None:
    assert is_nearby(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["::ffff:8.8.8.8", "fe80::1", "::", "224.0.0.1"])
def test_public_and_reserved_addresses_are_not_private(address: str) -> None:
    assert not is_nearby(ipaddress.ip_address(address))


def test_an_external_cloud_without_url_names_the_missing_variable(workspace: Workspace) -> None:
    with pytest.raises(AcpError, match="needs AWS_ENDPOINT_URL"):
        External(workspace).endpoint(None, None)


def test_an_external_cloud_that_does_not_answer_is_named(workspace: Workspace) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(AcpError, match=f"No local cloud answers at {url}"):
        External(workspace).endpoint(url, None)
    assert not External(workspace).is_there(url)
    assert External(workspace).holder(url, "a-stack") is None


@pytest.mark.parametrize("name", EMULATORS)
def test_the_api_of_a_stack_is_found_on_the_emulator(workspace: Workspace, name: str) -> None:
    deployed = "https://ab12cd34.execute-api.us-east-1.amazonaws.com/v1/"
    url = EMULATORS[name](workspace).api_url("http://localhost:4566", deployed)
    assert url == "http://localhost:4566/_aws/execute-api/ab12cd34/v1"


class Slower(StartedEmulator):
    """An emulator that finds its port taken."""

    name = title = "slower"
    health_path = "/"

    def prepare(self) -> None: ...

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", "import time; time.sleep(1); print('address in use')"]

    def environ(self, port: int) -> Mapping[str, str]:
        return {}


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def test_a_foreign_server_on_the_port_is_not_ours(workspace: Workspace) -> None:
    with HTTPServer(("127.0.0.1", 0), Healthy) as of_another:
        Thread(target=of_another.serve_forever, daemon=True).start()
        emulator = Slower(workspace)
        endpoint = f"http://localhost:{of_another.server_port}"
        try:
            emulator.start(endpoint)
            with pytest.raises(ServiceError, match="ended while it started") as caught:
                emulator.wait_until_ready(endpoint)
        finally:
            emulator.stop()
            of_another.shutdown()
    assert caught.value.details == "address in use"
