"""``python -m local_cloud.bridge ADDRESS/PREFIX PORT…``: lets a Docker bridge's containers reach servers on loopback.

PostgreSQL and the local cloud listen on 127.0.0.1 alone. This program listens on the bridge's own address, at the same
ports, and passes each connection on to loopback. It accepts only connections from the bridge's network, because Linux
also delivers packets from elsewhere to a bridge's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys

READY = "bridge: listening on"
_CHUNK = 1 << 16
# Not in Python's socket module. On Linux it allows listening on an address that does not exist at the moment.
_IP_FREEBIND = 15


class Bridge:
    """A forwarder's address, and the network from which it accepts connections."""

    def __init__(self, address: str, network: ipaddress.IPv4Network, *, target: str = "127.0.0.1") -> None:
        self._address = address
        self._network = network
        self._target = target

    async def listen(self, port: int) -> asyncio.Server:
        """Passes on connections to one port from now on. Raises OSError if the port is taken."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        try:
            listener.bind((self._address, port))
        except OSError:
            listener.close()
            raise

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connected(port, reader, writer)

        return await asyncio.start_server(connected, sock=listener)

    async def _connected(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        if ipaddress.ip_address(peer) not in self._network:
            _log(f"bridge: refused {peer}, which is not of {self._network}")
            writer.transport.abort()
            return
        try:
            target_reader, target_writer = await asyncio.open_connection(self._target, port)
        except OSError as error:
            _log(f"bridge: nothing listens on {self._target}:{port}: {os.strerror(error.errno or 0)}")
            writer.transport.abort()
            return
        await asyncio.gather(_pass_on(reader, target_writer), _pass_on(target_reader, writer))
        for end in (writer, target_writer):
            end.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies bytes until the reader's end; one side may finish while the other still answers."""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
        return
    # One side is lost, so the other must not wait for bytes that never come.
    writer.transport.abort()


async def _serve(interface: ipaddress.IPv4Interface, ports: list[int]) -> int:
    bridge = Bridge(str(interface.ip), interface.network)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    for port in ports:
        try:
            await bridge.listen(port)
        except OSError as error:
            _log(f"bridge: cannot listen on {interface.ip}:{port}: {error.strerror}")
            return 1
    _log(f"{READY} {interface.ip}, ports {', '.join(map(str, ports))}")
    await stopped.wait()
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(_serve(ipaddress.IPv4Interface(sys.argv[1]), [int(port) for port in sys.argv[2:]])))
