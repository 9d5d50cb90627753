"""TraceFunction as it is deployed; and all other functions, which load nothing of OpenTelemetry."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import Connection
from tests.checkout import ROOT
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.decisions import toy
from tests.integration.decisions.world import World, anomaly
from tests.integration.functions.invoked import Function
from tests.otlp import Answer, FakeReceiver, receiving
from tests.template import FOLDERS

from control_plane.model.lifecycle import Accepted

LOADED = """
import importlib, json, sys
importlib.import_module("app")
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "opentelemetry"]))
"""


def modules_of_opentelemetry(folder: str) -> list[str]:
    """Returns what a new process that imports a function's app has loaded of it."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "layers" / "core"), str(ROOT / "functions" / folder)]),
    }
    run = subprocess.run([sys.executable, "-c", LOADED], env=environ, capture_output=True, text=True, check=True)
    return list(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("folder", sorted(set(FOLDERS.values()) - {"trace"}))
def test_no_other_function_loads_a_module_of_opentelemetry(folder: str) -> None:
    assert modules_of_opentelemetry(folder) == []


def test_the_test_above_would_see_one() -> None:
    assert "opentelemetry.proto.trace.v1.trace_pb2" in modules_of_opentelemetry("trace")


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def function(receiver: FakeReceiver, database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Function]:
    for name in ("DATABASE_SECRET_ARN", "TRACES_SECRET_ARN", "CLOUD_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", database.url("acp_reader"))
    monkeypatch.setenv("TRACES_ENDPOINT", receiver.url)
    made = Function("trace")
    yield made
    made.close()


def test_a_run_exports_what_the_last_one_left(function: Function, receiver: FakeReceiver, app: Connection[Any]) -> None:
    assert function({})["events"] == 0
    (event_id,) = seeds.store(app, seeds.ticks(1))
    seeds.settle(app, seeds.claim(app), Accepted("m"))
    app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [event_id])
    assert function({}) == {
        "events": 1, "decisions": 0, "spans": 3, "rejected_spans": 0, "waiting": 0, "behind_seconds": 0.0,
        "failure": None,
    }  # fmt: skip
    assert receiver.accepted[0].span_id == event_id.bytes[8:]


def test_a_receiver_that_is_at_fault_is_counted_and_said_and_no_error(
    function: Function, receiver: FakeReceiver, app: Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    function({})
    seeds.store(app, seeds.ticks(1))
    seeds.give_up(app)
    receiver.usual = Answer(404)
    report = function({})
    assert report["failure"].endswith("Check TracesEndpoint: it is the whole URL, which mostly ends with /v1/traces")
    assert '"TraceExportFailures":[1.0]' in capsys.readouterr().out
    assert function.errors == []


def test_decisions_are_exported_once_they_are_closed(
    function: Function, receiver: FakeReceiver, database: TestDatabase, owner: Connection[Any]
) -> None:
    function({})
    world = World(database, deciding=toy.deciding())
    try:
        world.detect(anomaly())
        world.run()
        decision = world.record().decision
    finally:
        world.close()
    function({})
    owner.execute("UPDATE waiting_traces SET look_at = now()")
    function({})
    workflows = [span for span in receiver.accepted if span.name.startswith("invoke_workflow ")]
    assert [span.parent_span_id for span in workflows] == [decision.trigger_event_id.bytes[8:]]
    assert {span.name.split()[0] for span in receiver.accepted} >= {"invoke_workflow", "invoke_agent", "execute_tool"}
