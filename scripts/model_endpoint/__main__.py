"""``python -m model_endpoint --port N``: serves on loopback until SIGTERM, SIGINT or, as asked, the end of stdin."""

import argparse
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from model_endpoint.server import Desk, Server


def main() -> int:
    """Exit code 0 after a signal, 1 where the port cannot be had."""
    parser = argparse.ArgumentParser(prog="model_endpoint", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--port-file", type=Path, help="where to write the port once it is open")
    parser.add_argument("--listen-fd", type=int, help="an open listening socket to take over, in place of --port")
    parser.add_argument("--input-micros", type=int, default=1000, help="what 1,000 tokens of input cost")
    parser.add_argument("--output-micros", type=int, default=5000, help="what 1,000 tokens of output cost")
    parser.add_argument("--with-stdin", action="store_true", help="end when stdin does, as with whoever holds it")
    options = parser.parse_args()
    try:
        if options.listen_fd is not None:
            listener = socket.socket(fileno=options.listen_fd)
        else:
            listener = socket.create_server(("127.0.0.1", options.port), backlog=256)
    except OSError as error:
        sys.stderr.write(f"model_endpoint: cannot listen on 127.0.0.1:{options.port}: {error.strerror}\n")
        return 1
    desk = Desk(input_micros=options.input_micros, output_micros=options.output_micros)
    server = Server(listener.getsockname()[:2], desk)
    server.socket.close()
    server.socket = listener
    server.server_port = listener.getsockname()[1]
    if options.port_file:
        unfinished = options.port_file.with_name(options.port_file.name + ".new")
        unfinished.write_text(f"{server.server_port}\n")
        unfinished.replace(options.port_file)

    def stop(*_: Any) -> None:
        desk.stopped.set()
        threading.Thread(target=server.shutdown, daemon=True).start()

    def wait_for_stdin() -> None:
        sys.stdin.buffer.read()
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if options.with_stdin:
        threading.Thread(target=wait_for_stdin, daemon=True).start()
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
