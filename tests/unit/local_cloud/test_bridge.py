"""The forwarder on the bridge; one address of loopback stands for the bridge's, another for the servers'."""

import asyncio
import ipaddress
import sys
from collections.abc import Awaitable, Callable

import pytest

from local_cloud.bridge import Bridge
from local_cloud.net import free_port

BRIDGE = "127.0.0.1"
HOST = "127.0.0.2" if sys.platform == "linux" else "::1"

type Conversation[T] = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[T]]


def through[T](network: str, server: Conversation[None] | None, client: Conversation[T]) -> T:
    """Returns what comes back when a client sends text to a server through the bridge."""

    async def run() -> T:
        port = free_port()
        listener = await Bridge(BRIDGE, ipaddress.IPv4Network(network), target=HOST).listen(port)
        target = None if server is None else await asyncio.start_server(server, HOST, port)
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(BRIDGE, port)
            try:
                return await client(reader, writer)
            finally:
                writer.close()
                listener.close()
                if target is not None:
                    target.close()
                # The connections in between end by themselves.
                while len(asyncio.all_tasks()) > 1:
                    await asyncio.sleep(0.01)

    return asyncio.run(run())


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that answers once it has received everything, as HTTP/1.0 allows."""
    heard = await reader.read()
    writer.write(heard.upper())
    await writer.drain()
    writer.close()


async def hear(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> bytes:
    return await reader.read()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"a" * 1_000_000)
    writer.write_eof()
    return await reader.read()


def test_an_answer_arrives_after_the_client_stopped_sending() -> None:
    assert through("127.0.0.0/8", shout, ask) == b"A" * 1_000_000


def test_a_connection_from_outside_the_bridge_s_network_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert through("172.17.0.0/16", shout, hear) == b""
    assert "refused 127.0.0.1, which is not of 172.17.0.0/16" in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_the_connection(capsys: pytest.CaptureFixture[str]) -> None:
    assert through("127.0.0.0/8", None, hear) == b""
    assert f"nothing listens on {HOST}:" in capsys.readouterr().err


def test_a_client_that_leaves_closes_the_servers_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()
        writer.close()
        gone.set()

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.readexactly(5)
        writer.transport.abort()
        return await asyncio.wait_for(gone.wait(), 5)

    assert through("127.0.0.0/8", serve, leave)
