"""Lets one worker decide on anomalies with the functions as deployed, its messages handed over within the process.

The functions are functions/*/app.py with the settings of the template, each under its own database role. What a relay
and a queue would do between them is left out: a message is handed to its function as soon as it is committed.

Options: functions (name → its settings), entities (whose anomalies this worker decides on), at_once (how many anomalies
are handed over together: batches of up to ten messages, as a queue delivers them).
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg

from bench.child import Parent
from control_plane.decisions.emit import emit
from control_plane.model.contract import new_event
from control_plane.model.decision_events import (
    AGENT_WORK,
    CLIENT_ACTIONS,
    DECISION_WORK,
    DECISIONS_SOURCE,
    GATEKEEPER_WORK,
    AnomalyDetected,
)
from control_plane.platform.database import connect
from control_plane.platform.messages import NewMessage
from control_plane.platform.queries import load_queries
from domains import load_deciding
from domains.finance.deciding.playbook import UnusualBar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

QUERIES: Final = load_queries("bench")
SERIES: Final = "1d"
FUNCTIONS: Final = {
    DECISION_WORK: "decision",
    AGENT_WORK: "agent",
    GATEKEEPER_WORK: "gatekeeper",
    CLIENT_ACTIONS: "action",
}
"""The function that each topic's messages go to."""
_BATCH: Final = 10
"""Most messages that a queue hands over at once."""
_TRACE: Final = UUID(int=1)


class PatientPlaybook(UnusualBar):
    """The playbook as it is, acting on anomalies of any age: the bars are made up, and years old."""

    limits = replace(UnusualBar.limits, oldest=timedelta(days=365_000))


class TimedAgent:
    """An agent as it is; what it takes is added up."""

    seconds = 0.0
    """What all agents have taken together."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def call(self, request: bytes, *, attempt: int, seconds_left: float) -> Any:
        """See :class:`control_plane.model.deciding.Agent`."""
        started = time.perf_counter()
        try:
            return self._agent.call(request, attempt=attempt, seconds_left=seconds_left)
        finally:
            TimedAgent.seconds += time.perf_counter() - started


class Worker:
    """The functions of deciding in one process, and the way of messages between them."""

    def __init__(self, urls: Mapping[str, str], settings: Mapping[str, Mapping[str, str]], entities: list[str]) -> None:
        self._apps = {name: _load(name, urls[name], settings[name]) for name in settings}
        self._agents_as_deployed()
        self._reader = connect(urls["admin"], application_name="acp-bench")
        self._reader.prepare_threshold = 3  # the hand-over is no part of what is measured
        self._entities = entities
        self._seen = 0
        self.delivered: Counter[str] = Counter()

    def make_anomalies(self, url: str) -> list[str]:
        """Stores the ANOMALY_DETECTED of every unusual bar, as the detector does; returns their messages in order."""
        rows = self._reader.execute(QUERIES["unusual_bars"].sql, {"entities": self._entities}).fetchall()
        texts = []
        with connect(url, application_name="acp-bench") as connection:
            for source, entity_id, at, event_id, change in rows:
                told = _anomaly(source, entity_id, at, event_id, change)
                emit(connection, told)
                texts.append(json.dumps(told.message))
        self._seen = max((number for number, _, _ in self._new_messages()), default=0)
        return texts

    def decide(self, anomalies: Sequence[str]) -> None:
        """Hands anomalies over, and every message that follows, until none is left. Raises RuntimeError."""
        found = [(DECISION_WORK, text) for text in anomalies]
        while found:
            for topic, name in FUNCTIONS.items():
                texts = [text for of_topic, text in found if of_topic == topic]
                for first in range(0, len(texts), _BATCH):
                    self._hand_over(name, texts[first : first + _BATCH])
            found = []
            for number, topic, text in self._new_messages():
                self._seen = number
                found.append((topic, text))

    def ended(self) -> Mapping[str, int]:
        """Returns how many of the decisions are in which state."""
        return dict(self._reader.execute(QUERIES["decided"].sql, {"entities": self._entities}).fetchall())

    def _hand_over(self, name: str, texts: Sequence[str]) -> None:
        self.delivered[name] += len(texts)
        records = [
            {"messageId": str(place), "body": text, "attributes": {}, "messageAttributes": {}}
            for place, text in enumerate(texts)
        ]
        result = self._apps[name].handler({"Records": records}, _context())
        if result["batchItemFailures"]:
            msg = f"{name} failed on {len(result['batchItemFailures'])} of {len(texts)} messages"
            raise RuntimeError(msg)

    def _new_messages(self) -> list[tuple[int, str, str]]:
        values = {"topics": list(FUNCTIONS), "after": self._seen, "entities": self._entities}
        rows: list[tuple[int, str, str]] = self._reader.execute(QUERIES["new_messages"].sql, values).fetchall()
        return rows

    def _agents_as_deployed(self) -> None:
        decision, agent = self._apps["decision"], self._apps["agent"]
        assert decision.load_deciding, "what the engine's plug-ins are read by"
        decision.load_deciding = lambda: {
            name: replace(found, playbooks=(PatientPlaybook(),)) for name, found in load_deciding().items()
        }
        timed = {name: TimedAgent(found) for name, found in agent.agents().items()}
        agent.agents = lambda: timed


def _load(name: str, url: str, settings: Mapping[str, str]) -> Any:
    """Imports a function under a name of its own, and opens its database: it is warm then."""
    os.environ.update({**settings, "DATABASE_URL": url})
    path = Path(os.environ["BENCH_FUNCTIONS"]) / name / "app.py"
    spec = importlib.util.spec_from_file_location(f"measured_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    app: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    app.database().connection()
    if hasattr(app, "settings"):
        app.settings()
    return app


def _context() -> Any:
    return SimpleNamespace(
        aws_request_id="bench",
        function_name="bench",
        log_stream_name="bench",
        get_remaining_time_in_millis=lambda: 60_000,
    )


def _anomaly(source: str, entity_id: str, at: datetime, event_id: UUID, change: float) -> NewMessage:
    payload = AnomalyDetected(
        kind="return",
        detector="robust-z",
        observed_source=source,
        series=SERIES,
        bar_event_id=str(event_id),
        bar_revision=0,
        score=round(change / 0.0075, 3),
        threshold=4.0,
        details={"return_ppm": round(change * 1_000_000)},
    )
    event = new_event(
        payload,
        source=DECISIONS_SOURCE,
        entity_id=entity_id,
        entity_type="equity",
        occurred_at=at,
        observed_at=datetime.now(UTC),
        ingested_at=datetime.now(UTC),
        trace_id=_TRACE,
        series=f"{source}/{SERIES}/return",
    )
    return NewMessage(payload.topic, event.to_message(), (DECISION_WORK,))


def main() -> None:
    """Prepares, waits for the start, decides, and reports."""
    parent = Parent()
    options = parent.options()
    urls = json.loads(os.environ["BENCH_DATABASE_URLS"])
    worker = Worker(urls, options["functions"], options["entities"])
    anomalies = worker.make_anomalies(urls["detector"])
    at_once = options["at_once"]
    warm = anomalies[: options["warm_up"]]
    worker.decide(warm)
    worker.delivered.clear()
    parent.wait_for_go()
    latencies = []
    started, cpu_started = time.perf_counter(), time.process_time()
    for first in range(len(warm), len(anomalies), at_once):
        began, of_agents = time.perf_counter(), TimedAgent.seconds
        worker.decide(anomalies[first : first + at_once])
        took, agents = time.perf_counter() - began, TimedAgent.seconds - of_agents
        latencies.append(round(1000 * (took - agents), 3))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    parent.report(
        {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "decisions": len(anomalies) - len(warm),
            "overheads_ms": latencies,
            "messages": dict(worker.delivered),
            "states": worker.ended(),
        }
    )


if __name__ == "__main__":
    try:
        main()
    except psycopg.Error as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
