"""Kept-alive HTTP/1.1 connections, for requests that are written whole and answers that are short.

Python's http.client parses each head like a mail's, which costs more than all other work for a batch.
"""

import re
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, cast
from urllib.parse import urlsplit

from botocore.httpsession import ProxyConfiguration, get_cert_path
from botocore.utils import get_environ_proxies
from urllib3.util.ssltransport import SSLTransport
from urllib3.util.wait import wait_for_read

MAX_ANSWER_BYTES: Final = 1_048_576
"""An answer of SQS or Secrets Manager has some kilobytes. A longer one is not read."""
IDLE_SECONDS: Final = 20.0
"""How long a connection may have been idle and still be used again."""
_MAX_HEAD_BYTES: Final = 65_536
_PIECE_BYTES: Final = 65_536
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: .*)?")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer."""

    status: int
    headers: Mapping[str, str]
    """Values by lower-case name."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Proxy:
    """The HTTP proxy that leads to a URL."""

    variable: str
    host: str
    port: int
    uses_tls: bool
    headers: Mapping[str, str]
    """Headers that the proxy needs besides the request's own: Proxy-Authorization, or none."""

    def __repr__(self) -> str:
        return f"the proxy {self.host}:{self.port} of {self.variable}"


def find_proxy(url: str) -> Proxy | None:
    """Returns the environment's proxy for a URL, as botocore finds it; None if there is none or NO_PROXY excludes the
    URL.

    Raises ValueError, without the URL's password, for a proxy that is no http:// or https:// URL.
    """
    configuration = ProxyConfiguration(get_environ_proxies(url))
    found = configuration.proxy_url_for(url)
    if not found:
        return None
    variable = f"{urlsplit(url).scheme.upper()}_PROXY"
    try:
        parts = urlsplit(found)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        headers = configuration.proxy_headers_for(found)
    except ValueError:  # A port that is no number, a password beyond ASCII.
        host = None
    if "://" in found.partition("://")[2] or not host or not "".join(headers.values()).isprintable():
        raise ValueError(f"{variable} is no URL of a proxy, such as http://user:password@proxy.internal:3128")
    return Proxy(variable, host, port, parts.scheme == "https", headers)


class UnreachableError(OSError):
    """Raised when no connection could be made."""


class UnreadableError(Exception):
    """Raised when an answer is no HTTP/1.1, is too long, or ends too early."""


class Connections:
    """Connections to one URL of an AWS service. Each sending thread uses a connection of its own."""

    def __init__(self, url: str, *, service: str, ca_bundle: str | None, connect_timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of HTTP")
        self._url = url
        self._service = service
        self._uses_tls = parts.scheme == "https"
        self._address = parts.hostname, parts.port or (443 if self._uses_tls else 80)
        self._proxy = find_proxy(url)
        self._ca_bundle = ca_bundle
        self._connect_timeout = connect_timeout
        self._idle: deque[tuple[socket.socket, float]] = deque()
        """Each with the time since which it has been idle."""
        weakref.finalize(self, _close, self._idle)

    @property
    def target_prefix(self) -> str:
        """The text before the path in a request's first line: nothing, or the origin for a proxy in plain HTTP."""
        return "" if self._proxy is None or self._uses_tls else f"http://{self._authority}"

    @property
    def added_headers(self) -> Mapping[str, str]:
        """Headers for the proxy that every request carries; with TLS the proxy gets them once, when connecting."""
        return {} if self._proxy is None or self._uses_tls else self._proxy.headers

    @property
    def _authority(self) -> str:
        host, port = self._address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def take(self) -> socket.socket:
        """Returns an open connection.

        A connection that was idle for long may be gone without notice, as after Lambda froze this process. The time of
        day measures that, because a monotonic clock may stand still meanwhile. A connection that the other side has
        closed has something to read. Raises OSError, in which case nothing was sent.
        """
        while self._idle:
            try:
                connection, idle_since = self._idle.pop()
            except IndexError:  # Another thread took the last one.
                break
            if 0 <= time.time() - idle_since < IDLE_SECONDS and not wait_for_read(connection, timeout=0):
                return connection
            connection.close()
        return self._opened()

    def give_back(self, connection: socket.socket) -> None:
        """Keeps a connection on which nothing is under way, for the next send."""
        self._idle.append((connection, time.time()))

    def exchange(self, connection: socket.socket, request: bytes, *, ends: float) -> Answer:
        """Sends a whole request once and returns the answer; then keeps the connection or closes it.

        Sending and receiving must end by ``ends``, an instant of ``time.monotonic()``, however slowly the bytes come or
        go. Raises OSError and UnreadableError; the request may then have been received.
        """
        try:
            _set_timeout(connection, ends)
            connection.sendall(request)  # sendall's time-out covers the whole call, unlike recv's.
            answer, is_last = _Reader(connection, ends).answer()
        except BaseException:
            connection.close()
            raise
        if is_last:
            connection.close()
        else:
            self.give_back(connection)
        return answer

    def _opened(self) -> socket.socket:
        proxy = self._proxy
        ends = time.monotonic() + self._connect_timeout
        address = self._address if proxy is None else (proxy.host, proxy.port)
        try:
            connection = _connected(address, ends)
        except OSError as error:
            raise self._unreachable(error) from error
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if proxy is not None and proxy.uses_tls:
                connection = self._secured(connection, proxy.host, ends)
            if proxy is not None and self._uses_tls:
                self._open_tunnel(connection, proxy, ends)
            if self._uses_tls:
                return self._secured(connection, self._address[0], ends)
        except ssl.SSLError:
            connection.close()
            raise  # The server answers, but its certificate is not trusted.
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _secured(self, connection: socket.socket, host: str, ends: float) -> socket.socket:
        """Has TLS begin on the connection, which may be within TLS already. Raises OSError."""
        _set_timeout(connection, ends, late="no connection in time")
        if not isinstance(connection, ssl.SSLSocket):
            return self._tls.wrap_socket(connection, server_hostname=host)  # the time-out holds for the whole handshake
        # TLS within TLS, which ssl's own sockets do not do.
        outer = cast("socket.socket", _Handshake(connection, ends))
        transport = SSLTransport(outer, self._tls, host)
        transport.socket = connection
        return cast("socket.socket", transport)

    def _open_tunnel(self, connection: socket.socket, proxy: Proxy, ends: float) -> None:
        """Asks the proxy to connect to the server; all later bytes are between the server and us. Raises OSError."""
        headers = "".join(f"{name}: {value}\r\n" for name, value in proxy.headers.items())
        request = f"CONNECT {self._authority} HTTP/1.1\r\nHost: {self._authority}\r\n{headers}\r\n"
        try:
            _set_timeout(connection, ends, late="no connection in time")
            connection.sendall(request.encode("ascii"))
            status = _Reader(connection, ends).tunnel()
        except UnreadableError as error:
            raise OSError(f"its answer cannot be read: {error}") from error
        if not 200 <= status < 300:
            raise OSError(f"it answers HTTP {status} to CONNECT {self._authority}")

    def _unreachable(self, error: OSError) -> UnreachableError:
        if self._proxy is None:
            return UnreachableError(f"no connection to {self._url}: {error}. {vpc_hint(self._service)}")
        return UnreachableError(
            f"no connection to {self._url} by {self._proxy}: {error}. Is it running, does it accept us, and can it "
            "reach that host? Put hosts that need no proxy into NO_PROXY"
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._ca_bundle or get_cert_path(True))


def vpc_hint(service: str) -> str:
    """Explains the usual reason why AWS itself cannot be reached."""
    return (
        f"A function in a VPC needs an interface endpoint for {service} there, whose security group lets it in on port "
        "443, or a NAT gateway; a public subnet is not enough"
    )


def _close(connections: Iterable[tuple[socket.socket, float]]) -> None:
    for connection, _ in connections:
        connection.close()


def _connected(address: tuple[str, int], ends: float) -> socket.socket:
    """Returns a connection to the first of the address's hosts that answers, each asked for its share of what is left.

    Raises OSError. ``socket.create_connection`` gives the whole time-out to every one of them.
    """
    hosts = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure: OSError = OSError("the name has no address")
    for place, (family, kind, protocol, _, host) in enumerate(hosts):
        now = time.monotonic()
        connection = socket.socket(family, kind, protocol)
        try:
            _set_timeout(connection, now + (ends - now) / (len(hosts) - place), late="no connection in time")
            connection.connect(host)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


class _Handshake:
    """A connection for the many reads and writes of a handshake that must be over, all together, at an instant."""

    def __init__(self, connection: socket.socket, ends: float) -> None:
        self._connection = connection
        self._ends = ends

    def recv(self, size: int) -> bytes:
        _set_timeout(self._connection, self._ends, late="no connection in time")
        return self._connection.recv(size)

    def sendall(self, data: bytes) -> None:
        _set_timeout(self._connection, self._ends, late="no connection in time")
        self._connection.sendall(data)


def _set_timeout(connection: socket.socket, ends: float, *, late: str = "the answer was not whole in time") -> None:
    """Lets the next call of the socket take what is left; its own time-out counts anew for every call."""
    remaining = ends - time.monotonic()
    if remaining <= 0:
        raise TimeoutError(late)
    connection.settimeout(remaining)


class _Reader:
    """Reads one answer from a connection, within limits of time and size."""

    def __init__(self, connection: socket.socket, ends: float) -> None:
        self._connection = connection
        self._ends = ends
        self._received = b""

    def answer(self) -> tuple[Answer, bool]:
        """Returns the answer, and whether it is the last one on its connection."""
        status, says_close, headers = self._head()
        while status < 200:  # This is an interim answer; the real one follows.
            status, says_close, headers = self._head()
        body, is_delimited = self._body(status, headers)
        # Extra bytes would be taken for the answer to the next request.
        return Answer(status, headers, body), says_close or not is_delimited or bool(self._received)

    def tunnel(self) -> int:
        """Returns the status of the answer to CONNECT. If it is a success, the server's bytes follow at once."""
        status, _, _ = self._head()
        while status < 200:
            status, _, _ = self._head()
        if self._received:
            raise UnreadableError("a proxy that speaks before it is asked to")
        return status

    def _head(self) -> tuple[int, bool, Mapping[str, str]]:
        """Returns the status, whether the connection is to be closed after this answer, and the headers."""
        lines = self._until(b"\r\n\r\n").split(b"\r\n")
        found = _STATUS_LINE.fullmatch(lines[0])
        if found is None or found[2] == b"101":  # Nobody asked for another protocol.
            raise UnreadableError(f"an answer that begins with {lines[0][:100]!r}")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.decode("latin-1").partition(":")
            name = name.lower()
            value = value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        says_close = found[1] == b"0" or "close" in headers.get("connection", "").lower()
        return int(found[2]), says_close, headers

    def _body(self, status: int, headers: Mapping[str, str]) -> tuple[bytes, bool]:
        """Returns the body, and whether its end was marked by anything but the end of the connection."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if status in {204, 304}:
            return b"", True
        if coding is not None:
            if coding.lower() != "chunked":
                raise UnreadableError(f"an answer in the transfer encoding {coding[:100]!r}")
            # With a length in addition, the end of the answer is ambiguous.
            return self._chunks(), length is None
        if length is None:
            return self._rest(), False
        if not (length.isascii() and length.isdigit() and len(length) <= 10):
            raise UnreadableError(f"an answer of the length {length[:100]!r}")
        return self._exactly(int(length)), True

    def _chunks(self) -> bytes:
        body = b""
        while True:
            line = self._until(b"\r\n")
            found = _CHUNK_LINE.fullmatch(line)
            if found is None:
                raise UnreadableError(f"an answer with a chunk that begins with {line[:100]!r}")
            size = int(found[1], 16)
            if size == 0:
                break
            _check_size(len(body) + size)
            body += self._exactly(size)
            if self._exactly(2) != b"\r\n":
                raise UnreadableError("an answer with a chunk that is longer than it says")
        while self._until(b"\r\n"):
            """A trailer, of which none is used."""
        return body

    def _rest(self) -> bytes:
        while self._receive():
            _check_size(len(self._received))
        body, self._received = self._received, b""
        return body

    def _exactly(self, size: int) -> bytes:
        _check_size(size)
        while len(self._received) < size:
            self._receive_some()
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _until(self, end: bytes) -> bytes:
        searched = 0
        while (found := self._received.find(end, searched)) < 0:
            _check_head(len(self._received))
            searched = max(0, len(self._received) - len(end) + 1)
            self._receive_some()
        _check_head(found)
        taken, self._received = self._received[:found], self._received[found + len(end) :]
        return taken

    def _receive_some(self) -> None:
        if not self._receive():
            raise UnreadableError("the connection was closed before the answer was whole")

    def _receive(self) -> bool:
        """Receives some bytes; returns False if no more will come."""
        _set_timeout(self._connection, self._ends)
        piece = self._connection.recv(_PIECE_BYTES)
        self._received += piece
        return bool(piece)


def _check_head(size: int) -> None:
    if size > _MAX_HEAD_BYTES:
        raise UnreadableError(f"an answer with a head of more than {_MAX_HEAD_BYTES} bytes")


def _check_size(size: int) -> None:
    if size > MAX_ANSWER_BYTES:
        raise UnreadableError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
