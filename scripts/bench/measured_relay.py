"""Runs one relay as deployed: functions/relay/app.py, with its settings from the environment.

Options: remaining_seconds (the time that the invocation seems to have left), linger_seconds, warm_up (an invocation
before the measured one), publish (false: a publisher that accepts everything and sends nothing).
"""

import importlib
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from bench.child import Parent, peak_memory_bytes
from control_plane.model.lifecycle import Accepted, Outcome
from control_plane.outbox.publisher import Message


class PublishesNothing:
    """A publisher that accepts every message at once and sends none."""

    send_timeout_seconds = 10.0

    def publish(self, queue_url: str, messages: Sequence[Message], *, start_before: float) -> Sequence[Outcome]:  # noqa: ARG002  the protocol's signature
        """See :class:`control_plane.outbox.publisher.Publisher`."""
        return [Accepted("unsent")] * len(messages)


def lambda_context(remaining_seconds: float) -> Any:
    """Returns what the handler uses of Lambda's context."""
    deadline = time.monotonic() + remaining_seconds
    return SimpleNamespace(
        aws_request_id="bench",
        function_name="relay",
        log_stream_name="bench",
        get_remaining_time_in_millis=lambda: int((deadline - time.monotonic()) * 1000),
    )


def main() -> None:
    """Prepares, waits for the start, relays, and reports."""
    parent = Parent()
    options = parent.options()
    # The function is imported by path, as in Lambda: its folder is on the path, and the module has the handler's name.
    app: Any = importlib.import_module("app")
    if options["publish"]:
        app.publisher().prepare()  # The bare loop's client is made before the start, too.
    else:
        assert app.publisher, "what the composition names its publisher"
        app.publisher = PublishesNothing
    app.relay(lambda_context(0).log_stream_name)
    if options["warm_up"]:
        app.handler({"linger_seconds": 0}, lambda_context(60))
    parent.wait_for_go()
    started, cpu_started = time.perf_counter(), time.process_time()
    result = app.handler({"linger_seconds": options["linger_seconds"]}, lambda_context(options["remaining_seconds"]))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    parent.report({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_memory_bytes(), "result": result})


if __name__ == "__main__":
    main()
