"""Runs RelayFunction as a process that tests can kill, freeze or mislead.

It is invoked over and over, as by its schedule: ``relay_host.py NAME OPTIONS``, with the options as JSON. As on Lambda,
the environment has the function's own settings.
"""

import datetime
import importlib
import json
import pkgutil
import sys
import time
import traceback
from datetime import datetime as RealDatetime  # noqa: N812 - the one that is replaced below
from pathlib import Path
from typing import Any

FUNCTION = Path(__file__).parents[2] / "functions" / "relay"


class Context:
    """The context of an invocation that starts now, as Lambda gives it to a handler."""

    aws_request_id = "00000000-0000-0000-0000-000000000000"
    function_name = "relay"

    def __init__(self, name: str, seconds: float) -> None:
        self.log_stream_name = name
        self._ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(max(self._ends - time.monotonic(), 0) * 1000)


def set_clock_wrong(hours: float) -> None:
    """Makes every later look at the time of day wrong, but not time.monotonic(), which nobody can set."""
    real_time, real_time_ns = time.time, time.time_ns
    off = datetime.timedelta(hours=hours)

    class Datetime(RealDatetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return RealDatetime.now(tz) + off

        @classmethod
        def utcnow(cls) -> Any:
            return RealDatetime.now(datetime.UTC).replace(tzinfo=None) + off

    time.time = lambda: real_time() + hours * 3600
    time.time_ns = lambda: real_time_ns() + int(hours * 3600e9)
    datetime.datetime = Datetime  # type: ignore[misc]  # a clock is set wrong nowhere else


def shorten_send_timeouts(connect: float, read: float) -> None:
    """Shortens send time-outs wherever the outbox holds them, so that leases, which must be longer, can be short."""
    package = importlib.import_module("control_plane.outbox")
    found = 0
    for info in pkgutil.iter_modules(package.__path__, "control_plane.outbox."):
        module = importlib.import_module(info.name)
        for name, seconds in (("CONNECT_TIMEOUT_SECONDS", connect), ("READ_TIMEOUT_SECONDS", read)):
            if hasattr(module, name):
                setattr(module, name, seconds)
                found += 1
        for thing in vars(module).values():
            if isinstance(thing, type) and isinstance(vars(thing).get("send_timeout_seconds"), float):
                thing.send_timeout_seconds = connect + read  # type: ignore[attr-defined]  # it has just been looked up
                found += 1
    assert found >= 3, "the outbox's timeouts are somewhere else now"


def main(name: str, options: dict[str, Any]) -> None:
    if options["clock_hours"]:
        set_clock_wrong(options["clock_hours"])
    shorten_send_timeouts(*options["send_timeouts"])
    sys.path.insert(0, str(FUNCTION))
    handler = importlib.import_module("app").handler
    while True:
        try:
            handler({"linger_seconds": options["linger_seconds"]}, Context(name, options["remaining_seconds"]))
        except Exception:  # noqa: BLE001 - Lambda keeps a function that failed, and its schedule invokes it again
            traceback.print_exc()
            time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
