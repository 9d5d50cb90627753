"""``python -m market_replay --port N``: serves until SIGTERM or SIGINT."""

import argparse
import signal
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Thread

from market_replay.prices import ROUND, Replay
from market_replay.server import MarketReplay, utc_now


def main() -> int:
    """Runs the server. Returns 0 after a signal, 1 if it cannot listen on the port."""
    parser = argparse.ArgumentParser(prog="market_replay", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine; loopback by default")
    parser.add_argument("--port-file", type=Path, help="where to write the port once it is open")
    parser.add_argument("--quiet", action="store_true", help="no line per request")
    parser.add_argument("--from", dest="day", type=date.fromisoformat, metavar="YYYY-MM-DD", help="the day to start at")
    parser.add_argument(
        "--at", type=datetime.fromisoformat, metavar="INSTANT", help="whose minute has that day; by default this one"
    )
    options = parser.parse_args()
    try:
        replay = ROUND if options.day is None else Replay.from_day(options.day, _minute(options.at))
    except ValueError as error:
        parser.error(f"--from: {error}")

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the log of a command is its stderr

    try:
        server = MarketReplay(host=options.host, port=options.port, log=None if options.quiet else log, replay=replay)
    except OSError as error:
        log(f"market_replay: cannot listen on {options.host}:{options.port}: {error.strerror}")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        # stop() waits for run(), which this very thread is in: it needs another one.
        signal.signal(number, lambda *_: Thread(target=server.stop).start())
    if options.port_file:
        unfinished = options.port_file.with_name(options.port_file.name + ".new")
        unfinished.write_text(f"{server.port}\n")
        unfinished.replace(options.port_file)
    if not options.quiet:
        log(f"market_replay: {server.url}")
    server.run()
    return 0


def _minute(at: datetime | None) -> int:
    return int((utc_now() if at is None else at.astimezone(UTC)).timestamp() // 60)


if __name__ == "__main__":
    sys.exit(main())
