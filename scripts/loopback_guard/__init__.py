"""Keeps web pages away from this machine's own HTTP servers.

A page that a developer visits can send requests to loopback, and some of them (for an image or a form) need no
permission. But a page cannot choose the headers Host, Origin, Sec-Fetch-Site and User-Agent of such a request, so these
tell it apart from boto3, SAM, curl and the functions. This package uses only the standard library, because several
environments import it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import Message

CONTAINERS_HOST = "host.docker.internal"
"""The name by which containers call this machine."""
_PORT = re.compile(r":\d{1,5}$")
_OF_BROWSER_ALONE = {"none", "same-origin"}
"""Values of Sec-Fetch-Site that no foreign page can cause: for an address typed by hand, and for a page of this
server."""


def refusal(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Returns why a request with these headers may not pass, in one line that names the remedy; None if it may pass."""
    wanted: dict[str, list[str]] = {"host": [], "origin": [], "sec-fetch-site": [], "user-agent": []}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").strip().lower()
        if name in wanted:
            wanted[name].append(raw_value.decode("latin-1").strip())
    hosts, sites, origins = wanted["host"], wanted["sec-fetch-site"], wanted["origin"]
    if len(hosts) != 1:
        return _line(f"the request has {len(hosts) or 'no'} Host headers", "Send one, such as localhost")
    if not is_own_name(hosts[0]):
        return _line(
            f"Host {hosts[0]!r} is not a name of this machine's loopback", "Use http://localhost with its port"
        )
    # The Host is known to be ours by now, so a page whose name was made to point here is no page of this server.
    if origins and not (origins == [f"http://{hosts[0]}"] and sites == ["same-origin"]):
        return _line(f"a web page (Origin {origins[0]!r}) may not use it", "Use scripts/acp, the AWS CLI or curl")
    if not set(map(str.lower, sites)) <= _OF_BROWSER_ALONE:
        return _line(f"a web page (Sec-Fetch-Site {sites[0]!r}) may not use it", "Use scripts/acp, the AWS CLI or curl")
    if not sites and any(agent.startswith("Mozilla/") for agent in wanted["user-agent"]):
        # An old browser sends no Sec-Fetch-Site; nor does one for which the name is not this machine's.
        return _line(
            "a browser that does not say which page asks may not use it",
            "Use http://localhost, a newer browser, or curl",
        )
    return None


def is_own_name(host: str) -> bool:
    """Whether a Host header names this machine by a name that no foreign DNS server can point here."""
    name = _PORT.sub("", host.lower())
    if name in {"localhost", CONTAINERS_HOST} or name.endswith(".localhost"):
        # RFC 6761: every name that ends in .localhost is loopback. Emulators serve buckets and APIs by such names.
        return True
    try:
        return ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name).is_loopback
    except ValueError:
        return False


def refusal_of_head(head: bytes) -> str | None:
    """Returns the same for a request's raw head: the request line, then one header a line."""
    lines = head.splitlines()[1:]
    return refusal((name, value) for name, _, value in (line.partition(b":") for line in lines))


def refusal_of_message(headers: Message) -> str | None:
    """Returns the same for headers as the standard library's HTTP server parses them."""
    return refusal((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items())


def is_cors(name: bytes) -> bool:
    """Whether a header of an answer lets foreign pages read the answer."""
    return name.lower().startswith(b"access-control-")


def _line(reason: str, remedy: str) -> str:
    # The quoted text came from outside; repr has made its control characters visible.
    return f"Refused by the local cloud's guard: {reason}. {remedy}; see SECURITY.md.\n"
