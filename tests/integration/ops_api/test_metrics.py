"""GET /metrics: what promtool accepts, what every reader sees alike, and what its clients ask for."""

import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from psycopg import Connection
from tests.checkout import ROOT
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.flow.counted import age, fold_now
from tests.integration.ops_api.client import TOKEN, Client

from control_plane.consumers.once import once
from control_plane.flow.exposition import read_metrics, render
from control_plane.flow.metrics import METRICS
from control_plane.model.lifecycle import Accepted, Disposition, Failed, Settlement
from control_plane.outbox import settlements
from control_plane.outbox.settlements import Measured
from control_plane.platform.breakers import hold
from control_plane.platform.database import connect

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
type Sample = tuple[str, frozenset[tuple[str, str]]]


def flowed(app: Connection[Any], owner: Connection[Any]) -> None:
    """Lets something of every stage happen, and waits for nothing."""
    event_ids = seeds.store(app, seeds.ticks(6))
    claim = seeds.claim(app, rows=3)
    settlements.settle(
        app,
        settled_by="r",
        settlements=[(one.message, Settlement(Disposition.PUBLISHED, "m")) for one in claim.deliveries],
        measured=[Measured(0.02, 0.0)] * 3,
    )
    seeds.settle(app, seeds.claim(app, rows=2), Failed("no"))
    seeds.store(app, seeds.failures(1))
    seeds.settle(app, seeds.claim(app, subscriptions=["system_events"]), Accepted("m"))
    for event_id in event_ids[:2]:
        with once(app, consumer="signal_lab", event_id=event_id):
            pass
    hold(app, "signal_lab", by="kim")
    owner.execute(
        "INSERT INTO operations (operation_id, kind, filter, state, requested_by)"
        " VALUES (gen_random_uuid(), 'redrive', '{}', 'planning', 'kim')"
    )
    owner.execute(
        "INSERT INTO flow_deltas (stage, name, outcome, bucket, seconds) VALUES"
        " ('source', E'a \"b\" \\\\c\\nd', 'fetched', NULL, NULL), ('decision', 'p', 'opened', NULL, NULL),"
        " ('decision', 'p', 'proposed', 5, 0.2), ('decision', 'p', 'scored', 16, 9000),"
        " ('agent', 'a', 'answered', 6, 0.4), ('verdict', 'binding', 'permitted', NULL, NULL),"
        " ('approval', 'person', 'given', NULL, NULL), ('action', 'place_order', 'executed', NULL, NULL)"
    )


def samples(text: str) -> dict[Sample, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def of(found: dict[Sample, float], name: str, /, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_promtool_accepts_it(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    flowed(app, owner)
    promtool = shutil.which("promtool")
    if promtool is None and "CI" not in os.environ:
        pytest.skip("promtool is not installed: on Debian and Ubuntu, apt-get install prometheus")
    assert promtool, "promtool is not installed: .ci/run does so"
    said = subprocess.run(
        [promtool, "check", "metrics"],
        input=str(api.ask("GET", "/metrics").body),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_a_metric_is_of_the_table_and_the_table_has_no_other(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
    flowed(app, owner)
    found = {
        (family.name + "_total" * (family.type == "counter"), family.type, family.documentation)
        for family in parse(str(api.ask("GET", "/metrics").body))
    }
    assert found == {(one.name, one.kind, one.help) for one in METRICS}
    labels: dict[str, set[str]] = {}
    for family in parse(str(api.ask("GET", "/metrics").body)):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels.keys() - {"le"})
    for one in METRICS:
        for suffix in ("", "_bucket", "_sum", "_count"):
            assert labels.get(one.name + suffix, set(one.labels)) == set(one.labels)


def test_the_numbers_are_those_of_the_database(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    flowed(app, owner)
    found = samples(str(api.ask("GET", "/metrics").body))
    assert of(found, "events_published_total", subscription="signal_lab") == 3
    assert of(found, "events_failed_total", subscription="signal_lab") == 2
    assert of(found, "events_dead_lettered_total", subscription="signal_lab") == 0
    assert of(found, "events_published_total", subscription="system_events") == 1
    assert of(found, "publish_latency_seconds_bucket", subscription="signal_lab", le="0.01") == 0
    assert of(found, "publish_latency_seconds_bucket", subscription="signal_lab", le="0.025") == 3
    assert of(found, "publish_latency_seconds_bucket", subscription="signal_lab", le="+Inf") == 3
    assert of(found, "publish_latency_seconds_count", subscription="signal_lab") == 3
    assert of(found, "publish_latency_seconds_sum", subscription="signal_lab") == pytest.approx(0.06)
    assert of(found, "publish_latency_seconds_count", subscription="system_events") == 0
    assert of(found, "acp_events_consumed_total", consumer="signal_lab") == 2
    assert of(found, "acp_outbox_pending", subscription="signal_lab") == 3
    assert of(found, "acp_breaker_state", name="signal_lab", state="open") == 1
    assert of(found, "acp_breaker_state", name="signal_lab", state="closed") == 0
    assert of(found, "acp_operations", kind="redrive", state="planning") == 1
    assert of(found, "acp_decision_duration_seconds_bucket", playbook="p", state="scored", le="1800.0") == 0
    assert of(found, "acp_decision_duration_seconds_bucket", playbook="p", state="scored", le="+Inf") == 1
    assert of(found, "acp_source_last_success_timestamp_seconds", source='a "b" \\c\nd') > 1e9


def test_openmetrics_has_the_trace_of_one_that_was_counted(
    api: Client, app: Connection[Any], owner: Connection[Any]
) -> None:
    flowed(app, owner)
    answer = api.ask("GET", "/metrics", headers={"Accept": f"{OPENMETRICS},text/plain;q=0.5"})
    assert answer.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    text = str(answer.body)
    assert text.endswith("# EOF\n")
    examples = {
        sample.exemplar.labels["trace_id"]
        for family in parse_openmetrics(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert seeds.ticks(1)[0].trace_id.hex in examples
    assert "trace_id" not in str(api.ask("GET", "/metrics").body)


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "application/json", "application/openmetrics-texts", ";,;"]
)
def test_anybody_else_gets_classic_text(api: Client, accept: str) -> None:
    answer = api.ask("GET", "/metrics", headers={"Accept": accept})
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "# TYPE events_published_total counter" in str(answer.body)


def test_two_readers_are_told_the_same_counters(
    database: TestDatabase, app: Connection[Any], owner: Connection[Any]
) -> None:
    flowed(app, owner)

    def read() -> str:
        with connect(database.url("acp_reader"), application_name="test") as connection:
            text, _ = render(read_metrics(connection, with_examples=True), openmetrics=True)
        return re.sub(r"(?m)^acp_(fold|oldest|consumer_lag_oldest)\w*age_seconds.*\n", "", text)

    before = read()
    assert read() == before
    age(owner)
    fold_now(owner)
    after = samples_of(read())
    assert after == {sample: pytest.approx(value) for sample, value in samples_of(before).items()}


def samples_of(text: str) -> dict[Sample, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if "timestamp" not in sample.name
    }


def test_the_token_needs_the_scope(api: Client, commands: Client) -> None:
    made = {}
    for name, scope in (("seer", "read"), ("scraper", "metrics")):
        body = {"name": name, "scopes": [scope], "reason": "a test"}
        made[name] = commands.ask("POST", "/tokens", body).body["token"]
    assert api.ask("GET", "/metrics", token=made["scraper"]).status == 200
    assert "metrics" in api.ask("GET", "/metrics", token=made["seer"]).detail(403)
    assert "read" in api.ask("GET", "/flow", token=made["scraper"]).detail(403)
    assert api.ask("GET", "/metrics", token=None).status == 401
    assert api.ask("GET", "/metrics", token=TOKEN).status == 200


def test_only_a_scrape_imports_what_renders_it() -> None:
    core = ROOT / "layers" / "core"
    said = subprocess.run(
        [sys.executable, "-c", "import sys, app; print([name for name in sys.modules if 'prometheus' in name])"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "functions" / "ops_api",
        env={**os.environ, "PYTHONPATH": str(core)},
    )
    assert said.stdout == "[]\n"
