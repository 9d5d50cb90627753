"""``python -m market_replay --port N``: serves until SIGTERM or SIGINT."""

import argparse
import signal
import sys
from pathlib import Path
from threading import Thread

from market_replay.server import MarketReplay


def main() -> int:
    """Runs the server. Returns 0 after a signal, 1 if it cannot listen on the port."""
    parser = argparse.ArgumentParser(prog="market_replay", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine; loopback by default")
    parser.add_argument("--port-file", type=Path, help="where to write the port once it is open")
    parser.add_argument("--quiet", action="store_true", help="no line per request")
    options = parser.parse_args()

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the log of a command is its stderr

    try:
        replay = MarketReplay(host=options.host, port=options.port, log=None if options.quiet else log)
    except OSError as error:
        log(f"market_replay: cannot listen on {options.host}:{options.port}: {error.strerror}")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        # stop() waits for run(), which runs in this thread, so another thread must call it.
        signal.signal(number, lambda *_: Thread(target=replay.stop).start())
    if options.port_file:
        unfinished = options.port_file.with_name(options.port_file.name + ".new")
        unfinished.write_text(f"{replay.port}\n")
        unfinished.replace(options.port_file)
    if not options.quiet:
        log(f"market_replay: {replay.url}")
    replay.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
