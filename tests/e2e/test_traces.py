"""TraceFunction on the deployed stack: a real receiver gets all that is recorded of events, and of a decision."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, timedelta
from uuid import UUID

import psycopg
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.e2e.conftest import LocalCloud, Market, wait_for
from tests.otlp import Tap

SYMBOLS = ["AAPL", "GOOG", "IBM"]
AGO = timedelta(minutes=8)
"""A bar that is this old is unusual news, and what came of it is known already."""
WHOLE = {
    "create market.ticks",
    *(f"{what} {name}" for what in ("send", "process") for name in ("detector", "signal_lab")),
}


def test_a_receiver_gets_the_whole_traces_of_events_and_of_a_decision(
    local_cloud: LocalCloud, market: Market, traces: Tap
) -> None:
    _export(local_cloud)  # What is stored before a first run is not exported.
    corrected = [_correct(local_cloud, market, symbol) for symbol in SYMBOLS]
    consumed = (
        "SELECT count(*) FROM processed_events WHERE consumer IN ('detector', 'signal_lab') AND event_id = ANY (%s)"
    )
    wait_for(
        lambda: local_cloud.query(consumed, corrected) == [(2 * len(corrected),)],
        seconds=240,
        what="the corrected bars consumed",
    )
    scored = "SELECT decision_id::text FROM decisions WHERE state = 'scored' AND entity_id = ANY (%s)"
    wait_for(lambda: local_cloud.query(scored, SYMBOLS), seconds=240, what="a decision on one of them closed")

    def received() -> Sequence[tuple[dict[str, str], Span]]:
        _export(local_cloud)
        return [({one.key: one.value.string_value for one in span.attributes}, span) for span in traces.spans(0)]

    def are_whole() -> bool:
        names = {(one.get("acp.event_id"), span.name) for one, span in received()}
        return names >= {(str(event_id), name) for event_id in corrected for name in WHOLE}

    wait_for(are_whole, seconds=120, what="the whole trace of each corrected bar")
    decision_id = local_cloud.query(scored, SYMBOLS)[0][0]
    steps = wait_for(
        lambda: [span for one, span in received() if one.get("acp.decision_id") == decision_id],
        seconds=120,
        what="the trace of the decision",
    )
    (workflow,) = (span for span in steps if span.name.startswith("invoke_workflow "))
    assert {span.parent_span_id for span in steps if span is not workflow} == {workflow.span_id}
    called = local_cloud.query(
        "SELECT agent FROM agent_calls WHERE decision_id = %s AND ended_at IS NOT NULL", UUID(decision_id)
    )
    assert Counter(span.name for span in steps if span.name.startswith("invoke_agent ")) == Counter(
        f"invoke_agent {agent}" for (agent,) in called
    )
    assert {"execute_tool gather_evidence", "execute_tool observe_outcome"} <= {span.name for span in steps}


def _correct(cloud: LocalCloud, market: Market, symbol: str) -> UUID:
    """Makes the source correct a bar to twice its price; returns the id of the event for the correction."""
    ingested, ok = cloud.invoke("IngestionFunction", {"symbols": [symbol]})
    assert ok, ingested
    bar = (
        "SELECT occurred_at, (payload_json ->> 'price')::float FROM events WHERE event_type = 'MARKET_TICK_INGESTED'"
        " AND entity_id = %s AND occurred_at < now() - %s ORDER BY occurred_at DESC, revision DESC LIMIT 1"
    )
    ((minute, price),) = cloud.query(bar, symbol, AGO)
    market.break_symbol(symbol, {"correct": {"minute": minute.astimezone(UTC).isoformat(), "close": 2 * price}})
    ingested, ok = cloud.invoke("IngestionFunction", {"symbols": [symbol]})
    assert ok, ingested
    newest = (
        "SELECT event_id, revision FROM events WHERE event_type = 'MARKET_TICK_INGESTED' AND entity_id = %s"
        " AND occurred_at = %s ORDER BY revision DESC LIMIT 1"
    )
    ((event_id, revision),) = cloud.query(newest, symbol, minute)
    assert revision >= 1
    found: UUID = event_id
    return found


def _export(cloud: LocalCloud) -> None:
    """Runs TraceFunction, for which all that waits is due."""
    with psycopg.connect(cloud.environ["DATABASE_OWNER_URL"]) as owner:
        owner.execute("UPDATE waiting_traces SET look_at = now()")
    report, ok = cloud.invoke("TraceFunction", {})
    assert ok, report
    assert (report["failure"], report["rejected_spans"]) == (None, 0)
