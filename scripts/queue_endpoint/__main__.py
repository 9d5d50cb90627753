"""``python -m queue_endpoint --port N``: serves on loopback until SIGTERM or SIGINT."""

import argparse
import asyncio
import gc
import signal
import socket
import sys
from pathlib import Path

from queue_endpoint.server import Connection, Queues
from queue_endpoint.upstream import Upstream


def main() -> int:
    """Runs the endpoint. Returns 0 after a signal, 1 if the port cannot be used."""
    parser = argparse.ArgumentParser(prog="queue_endpoint", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port once it is open")
    parser.add_argument("--listen-fd", type=int, help="an open listening socket to take over, in place of --port")
    parser.add_argument("--latency-ms", type=float, default=0, help="of every answer without a fault")
    parser.add_argument("--no-record", action="store_true", help="count what is accepted, and keep no list of it")
    parser.add_argument("--upstream", type=Upstream, metavar="URL", help="pass what is accepted on to an emulator")
    parser.add_argument("--with-stdin", action="store_true", help="end when stdin does, as with whoever holds it")
    options = parser.parse_args()
    try:
        if options.listen_fd is not None:
            listener = socket.socket(fileno=options.listen_fd)
        else:
            listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    except OSError as error:
        sys.stderr.write(f"queue_endpoint: cannot listen on 127.0.0.1:{options.port}: {error.strerror}\n")
        return 1
    if options.port_file:
        unfinished = options.port_file.with_name(options.port_file.name + ".new")
        unfinished.write_text(f"{listener.getsockname()[1]}\n")
        unfinished.replace(options.port_file)
    # A request leaves no reference cycles, and the record grows: a garbage collection would only find everything in
    # use.
    gc.disable()
    queues = Queues(latency_ms=options.latency_ms, record=not options.no_record, upstream=options.upstream)
    asyncio.run(_serve(listener, queues, options))
    return 0


async def _serve(listener: socket.socket, queues: Queues, options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if options.with_stdin:
        loop.add_reader(0, stopped.set)
    server = await loop.create_server(lambda: Connection(queues), sock=listener)
    await stopped.wait()
    server.close()
    server.close_clients()


if __name__ == "__main__":
    sys.exit(main())
