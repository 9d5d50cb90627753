"""Runs functions in Lambda's own runtime container with `sam local`, and lets them reach the local cloud.

A container calls this host host.docker.internal. So each function's environment is the deployed one with that name in
it, written to the file that samconfig.toml names. If the container engine runs on this very host (Linux), a forwarder
lets the containers in (local_cloud.bridge, docs/decisions/0012).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from local_cloud import bridge
from local_cloud.environ import isolated
from local_cloud.errors import AcpError
from local_cloud.workspace import write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from local_cloud.aws import LocalCloud
    from local_cloud.processes import Service
    from local_cloud.workspace import Workspace

HOST = "host.docker.internal"
ENVIRONMENT_FILE = "sam-local.json"
"""The file's path below the state folder; samconfig.toml names it."""
SECRET_COPY = "/from-containers"  # noqa: S105 - the end of a secret's name
"""The name of a secret's copy in which this host is called as containers call it."""
_READY_SECONDS = 10
ENGINE_SECONDS = 5.0
"""How many seconds an engine may take to answer; its client would wait a minute for each of its tries."""
_LOOPBACK = re.compile(r"(?<![\w.-])(?:localhost|127\.0\.0\.1):(\d+)")
_SECRET_SUFFIX = "_SECRET_ARN"  # noqa: S105 - the end of a variable's name


class NoContainersError(AcpError):
    """Raised when no container engine answers, or containers cannot reach this host.

    The remedy says what to install.
    """


def prepare(
    workspace: Workspace, forwarder: Service, cloud: LocalCloud, outputs: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Writes the functions' environment for containers, and lets containers in. Returns it by logical id.

    What exists already is kept. Raises NoContainersError.
    """
    # What asks the engine is imported first, because on a busy machine that alone takes seconds.
    import docker.errors  # noqa: F401, PLC0415 - slow, and not needed by other commands
    import samcli.local.docker.utils  # noqa: F401, PLC0415

    interface = within(ENGINE_SECONDS, _bridge)
    seen = FromContainer()
    functions = {
        output.removesuffix("Name"): function_environment(cloud, name, seen)
        for output, name in outputs.items()
        if output.endswith("FunctionName")
    }
    if interface is not None:
        _let_in(workspace, forwarder, interface, sorted(seen.ports))
    write_private(environment_file(workspace), json.dumps(functions, indent=2))
    return functions


def forget(workspace: Workspace, forwarder: Service) -> None:
    """Undoes `prepare`, because the cloud that the file describes is about to stop."""
    environment_file(workspace).unlink(missing_ok=True)
    forwarder.stop()


def environment_file(workspace: Workspace) -> Path:
    """Returns the file for `sam local --env-vars`."""
    return workspace.state / ENVIRONMENT_FILE


class FromContainer:
    """Translates this host's loopback addresses into what a container calls them, and remembers their ports."""

    def __init__(self) -> None:
        self.ports: set[int] = set()

    def __call__(self, text: str) -> str:
        """Returns the text with each `localhost:port` and `127.0.0.1:port` replaced."""

        def rename(match: re.Match[str]) -> str:
            self.ports.add(int(match[1]))
            return f"{HOST}:{match[1]}"

        return _LOOPBACK.sub(rename, text)


def function_environment(cloud: LocalCloud, function: str, seen: FromContainer) -> dict[str, str]:
    """Returns a deployed function's variables in the form that its container needs."""
    configuration = cloud.functions.get_function_configuration(FunctionName=function)
    variables = {
        name: seen(str(value)) for name, value in configuration.get("Environment", {}).get("Variables", {}).items()
    }
    for name, arn in variables.items():
        if name.endswith(_SECRET_SUFFIX) and arn:
            variables[name] = _secret(cloud, arn, seen)
    return variables | {"CLOUD_ENDPOINT_URL": seen(cloud.endpoint)}


def _secret(cloud: LocalCloud, arn: str, seen: FromContainer) -> str:
    """Returns the ARN of a secret for containers: the secret, or a copy that names this host as containers do."""
    secret = cloud.secrets.get_secret_value(SecretId=arn)
    text = seen(secret["SecretString"])
    return arn if text == secret["SecretString"] else cloud.put_secret(secret["Name"] + SECRET_COPY, text)


def within[T](seconds: float, ask: Callable[[], T]) -> T:
    """Returns the engine's answer. Raises NoContainersError if it accepts a question and does not answer in time."""
    answer: Future[T] = Future()

    def ask_it() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits
            answer.set_exception(error)

    # A daemon thread: the client cannot be interrupted, and must not keep the command from ending.
    threading.Thread(target=ask_it, name="container-engine", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        if answer.done():
            raise
        msg = f"The Docker engine did not answer within {seconds:g} s."
        raise NoContainersError(msg, remedy=f"Restart it, so that docker info answers. {_installation()}") from error


def find_engine() -> Any:
    """Returns a client of the engine that SAM will use."""
    # This import is slow, and other commands do not need it.
    from samcli.local.docker.exceptions import (  # noqa: PLC0415
        ContainerEnforcementException,
        ContainerNotReachableException,
    )
    from samcli.local.docker.utils import get_validated_container_client  # noqa: PLC0415

    try:
        return get_validated_container_client()
    except (ContainerNotReachableException, ContainerEnforcementException) as error:
        msg = "No Docker engine answers."
        raise NoContainersError(msg, remedy=_installation()) from error


def _installation() -> str:
    named = f" DOCKER_HOST is {os.environ['DOCKER_HOST']}." if "DOCKER_HOST" in os.environ else ""
    if sys.platform == "darwin":
        return f"Install and start Docker Desktop (https://docs.docker.com/desktop/), then run this again.{named}"
    return (
        "Install Docker (https://docs.docker.com/engine/install/; on Debian and Ubuntu: apt-get install docker.io), "
        "start it (sudo systemctl start docker), be a member of the group docker, and run this again: "
        f"docker info must answer.{named}"
    )


def _bridge() -> ipaddress.IPv4Interface | None:
    import docker.errors  # noqa: PLC0415 - slow, and not needed by other commands

    try:
        return bridge_of(find_engine())
    except (docker.errors.DockerException, OSError) as error:  # Errors of requests are OSErrors.
        msg = f"The Docker engine does not say how containers reach this host: {error}"
        raise NoContainersError(msg, remedy="Does docker network inspect bridge answer?") from error


def bridge_of(engine: Any) -> ipaddress.IPv4Interface | None:
    """Returns the bridge by which containers reach this host; None if the engine leads them to loopback by itself."""
    information = engine.info()
    if sys.platform != "linux" or "Docker Desktop" in information.get("OperatingSystem", ""):
        return None
    if "name=rootless" in information.get("SecurityOptions", []):
        msg = "The containers of a rootless Docker do not reach this host's loopback."
        raise NoContainersError(msg, remedy="Use the Docker engine of the system: docker context use default.")
    for pool in engine.networks.get("bridge").attrs["IPAM"]["Config"]:
        network = ipaddress.ip_network(pool["Subnet"])
        if isinstance(network, ipaddress.IPv4Network):
            # Before the first container the engine names no gateway. It will take the first address.
            gateway = pool.get("Gateway") or str(network[1])
            return ipaddress.IPv4Interface(f"{gateway.partition('/')[0]}/{network.prefixlen}")
    msg = "Docker's default bridge has no IPv4 network."
    raise NoContainersError(msg, remedy="See: docker network inspect bridge")


def _let_in(workspace: Workspace, forwarder: Service, interface: ipaddress.IPv4Interface, ports: Sequence[int]) -> None:
    command = [sys.executable, "-m", "local_cloud.bridge", str(interface), *map(str, ports)]
    process = forwarder.process
    if process is not None and process.cmdline()[1:] == command[1:]:
        return
    forwarder.start(
        command,
        env=isolated(os.environ),
        cwd=workspace.checkout,
    )
    forwarder.wait_until(lambda: bridge.READY in forwarder.log_tail(), seconds=_READY_SECONDS)
