"""A stand-in for a pooler or an old server, as far as it differs in the startup of a connection."""

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Self

NEGOTIATIONS = {80_877_103, 80_877_104}
"""The codes by which a client asks for TLS or GSS encryption."""

PGBOUNCER_REFUSES = ("08P01", "unsupported startup parameter: options")
RDS_PROXY_REFUSES = ("0A000", "Feature not supported: RDS Proxy currently doesn’t support command-line options.")


class Front:
    """Listens on loopback before a Postgres; ``url`` leads a URL of the server through it.

    ``refuses`` is the SQLSTATE and text with which a client's ``options`` are refused; without it they are dropped, as
    by a PgBouncer with ``ignore_startup_parameters``. ``refuses_password`` is the answer to every client that has given
    a password. ``rewrite`` changes what the server answers.
    """

    def __init__(
        self,
        port: int,
        *,
        refuses: tuple[str, str] | None = None,
        refuses_password: str | None = None,
        rewrite: Callable[[bytes], bytes] = bytes,
    ) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                client: socket.socket = self.request
                with contextlib.suppress(OSError):
                    protocol, parameters = _read_startup(client)
                    options = parameters.pop("options", None)
                    if refuses_password is not None:
                        client.sendall(struct.pack("!cII", b"R", 8, 3))  # AuthenticationCleartextPassword
                        client.recv(65_536)
                        client.sendall(_error("28P01", refuses_password))
                    elif refuses is not None and options is not None:
                        client.sendall(_error(*refuses))
                    else:
                        with socket.create_connection(("127.0.0.1", port)) as server:
                            server.sendall(_startup(protocol, parameters))
                            backward = threading.Thread(target=_pump, args=(server, client, rewrite))
                            backward.start()
                            _pump(client, server, bytes)
                            backward.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server_port = port
        self._server = Server(("127.0.0.1", 0), Handler)
        self._port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def url(self, url: str) -> str:
        return url.replace(f":{self._server_port}/", f":{self._port}/")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _read_startup(client: socket.socket) -> tuple[int, dict[str, str]]:
    while True:
        length, code = struct.unpack("!II", _read(client, 8))
        if code in NEGOTIATIONS:
            client.sendall(b"N")
            continue
        words = _read(client, length - 8).decode().rstrip("\0").split("\0")
        return code, dict(zip(words[::2], words[1::2], strict=True))


def _read(client: socket.socket, size: int) -> bytes:
    data = client.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise ConnectionError
    return data


def _startup(protocol: int, parameters: dict[str, str]) -> bytes:
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items()) + b"\0"
    return struct.pack("!II", len(body) + 8, protocol) + body


def _error(sqlstate: str, text: str) -> bytes:
    body = f"SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0".encode()
    return b"E" + struct.pack("!I", len(body) + 4) + body


def _pump(source: socket.socket, target: socket.socket, rewrite: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(rewrite(data))
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
