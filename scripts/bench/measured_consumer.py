"""Runs SignalLab as deployed, functions/signal_lab/app.py, on messages as its queue would hand them over.

Options: messages (how many, each a bar of its own), batch (most of an invocation), due (the second, from the start on,
at which each message arrives; null to have all at once).
"""

import importlib
import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

from bench.child import Parent
from control_plane.ingestion.store import Look
from domains.finance.events import MarketTick

ENTITIES: Final = 100
_BEGINNING: Final = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)


def look(number: int) -> Look:
    """Returns what a message is about: entities take turns, each with a bar a minute."""
    at = _BEGINNING + timedelta(minutes=number // ENTITIES)
    return Look(
        MarketTick(price=100.5, open=100, high=101, low=99.5, volume=1200, currency="USD", interval="1m"),
        source="bench",
        entity_id=f"E{number % ENTITIES}",
        entity_type="equity",
        occurred_at=at,
        observed_at=at,
        trace_id=UUID(int=1 + number // ENTITIES),
        series="1m",
    )


def record(number: int) -> dict[str, Any]:
    """Returns a message as Lambda gives it to a consumer."""
    this = look(number)
    body = json.dumps(this.to_event(revision=0, ingested_at=this.observed_at).to_message())
    return {"messageId": str(number), "body": body, "messageAttributes": {}, "attributes": {}}


def main() -> None:
    """Prepares, waits for the start, consumes, and reports when each message was through."""
    parent = Parent()
    options = parent.options()
    app: Any = importlib.import_module("app")
    context = SimpleNamespace(
        aws_request_id="bench",
        function_name="signal_lab",
        log_stream_name="bench",
        get_remaining_time_in_millis=lambda: 60_000,
    )
    messages = [record(number) for number in range(options["messages"])]
    due: list[float] = options["due"] or [0.0] * len(messages)
    app.handler({"Records": []}, context)  # A warm environment has its connection.
    parent.wait_for_go()
    started, cpu_started = time.perf_counter(), time.process_time()
    through: list[float] = []
    while (first := len(through)) < len(messages):
        time.sleep(max(started + due[first] - time.perf_counter(), 0))
        now = time.perf_counter() - started
        last = first + 1
        while last < len(messages) and last - first < options["batch"] and due[last] <= now:
            last += 1
        if failures := app.handler({"Records": messages[first:last]}, context)["batchItemFailures"]:
            msg = f"SignalLab refused {len(failures)} of {last - first} messages."
            raise SystemExit(msg)
        through += [time.perf_counter() - started] * (last - first)
    parent.report(
        {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_started,
            "through": [round(one, 4) for one in through],
        }
    )


if __name__ == "__main__":
    main()
