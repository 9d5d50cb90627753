"""A user's own local cloud, at the endpoint in AWS_ENDPOINT_URL: we deploy to it, and neither start nor stop it."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from local_cloud.aws import AWS_ERRORS, LocalCloud
from local_cloud.emulators.emulator import Emulator
from local_cloud.errors import AcpError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

VARIABLE = "AWS_ENDPOINT_URL"
_AWS = ("amazonaws.com", "amazonaws.com.cn", "amazonaws.eu", "api.aws", "api.amazonwebservices.com.cn", "aws.dev")
_EXAMPLE = "Such as http://localhost:4566."


class External(Emulator):
    """A local cloud that somebody else runs.

    It must run functions as processes of this machine, layers included, and have no stack of the name we use.
    """

    name = "external"
    title = "the external cloud"
    outlives_us = True
    # It may be a LocalStack.
    ignores_changed_rules = True
    ignores_changes = "may ignore changes of alarms, log groups and the API"
    remedy = (
        "An external cloud must run functions on this machine's own network, with their layers: as processes, or in "
        "containers that share it. PostgreSQL and the market replay listen on 127.0.0.1 alone."
    )

    def prepare(self) -> None:
        """Does nothing, because somebody else runs it."""

    def endpoint(self, asked: str | None, current: str | None) -> str:
        """Returns the URL without a / at its end.

        Raises AcpError if it may not be an emulator's, or if nothing answers.
        """
        url = asked or current
        if not url:
            msg = f"--cloud external needs {VARIABLE}: the URL of the local cloud to deploy to."
            raise AcpError(msg, remedy=_EXAMPLE)
        endpoint = check_endpoint(url)
        # This is checked now, before another cloud is given up for it.
        self.wait_until_ready(endpoint)
        return endpoint

    def start(self, endpoint: str) -> None:
        """Does nothing, because somebody else runs it."""

    def wait_until_ready(self, endpoint: str) -> None:
        """Checks once that it answers. Raises AcpError."""
        try:
            LocalCloud(endpoint).identity.get_caller_identity()
        except ClientError as error:
            # The real AWS would answer like this, because our key belongs to no account.
            msg = f"{endpoint} turned our made-up credentials away: {error}"
            raise AcpError(msg, remedy=f"It is no local cloud, or one that checks keys. {_EXAMPLE}") from error
        except AWS_ERRORS as error:
            msg = f"No local cloud answers at {endpoint}: {error}"
            raise AcpError(msg, remedy=f"Start it, or mend {VARIABLE}. {_EXAMPLE}") from error

    def is_there(self, endpoint: str) -> bool:
        """Whether it answers."""
        try:
            self.wait_until_ready(endpoint)
        except AcpError:
            return False
        return True

    def holder(self, endpoint: str, stack: str) -> str | None:
        """Returns the stack's id, which changes or vanishes if the cloud is started again."""
        try:
            return LocalCloud(endpoint).stack_id(stack)
        except AWS_ERRORS:
            return None

    def stop(self) -> None:
        """Does nothing, because the cloud is not ours."""

    def log_tail(self) -> str:
        """Returns None, because the cloud's log is not ours."""
        return ""


def check_endpoint(url: str) -> str:
    """Returns the URL without a / at its end. Raises AcpError unless it can only be a local cloud's."""
    parts, host = _parts(url)
    if any(host == domain or host.endswith(f".{domain}") for domain in _AWS):
        msg = f"{VARIABLE} is {url}: that is AWS itself."
        raise AcpError(msg, remedy=f"acp deploys to local clouds alone; for AWS, see docs/deploy.md. {_EXAMPLE}")
    try:
        found = socket.getaddrinfo(host, parts.port, type=socket.SOCK_STREAM)
    except OSError as error:
        msg = f"{VARIABLE} is {url}: {host} has no address ({error.strerror})."
        raise AcpError(msg, remedy=_EXAMPLE) from error
    for address in {ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found}:
        if not is_nearby(address):
            msg = f"{VARIABLE} is {url}: {address} is neither this machine's loopback nor a private address."
            raise AcpError(msg, remedy=f"acp deploys to local clouds alone. {_EXAMPLE}")
    return f"{parts.scheme}://{parts.netloc}"


def is_nearby(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is loopback or private, and neither a cloud's metadata service nor a reserved one."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    odd = address.is_link_local or address.is_unspecified or address.is_multicast or address.is_reserved
    return (address.is_loopback or address.is_private) and not (odd and not address.is_loopback)


def _parts(url: str) -> tuple[SplitResult, str]:
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").rstrip(".").lower()
        well_formed = parts.scheme in {"http", "https"} and host and (parts.port or True)
    except ValueError:
        well_formed = False
    if not well_formed or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        msg = f"{VARIABLE} is {url!r}: no URL of a scheme, a host and a port."
        raise AcpError(msg, remedy=_EXAMPLE)
    return parts, host
