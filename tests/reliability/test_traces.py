"""Two relays are killed, and a real receiver gets the whole trace of each event all the same."""

from collections import Counter
from uuid import UUID

import pytest
from tests.otlp import tapping
from tests.reliability.pipeline import SIGNAL_LAB, Pipeline

from control_plane.consumers.once import once
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry
from control_plane.tracing.export import TraceExport, TraceReport
from control_plane.tracing.receiver import Receiver

EVENTS = 1_000


def export(pipeline: Pipeline, url: str) -> TraceReport:
    """Exports in a session of its own, as a new environment of TraceFunction does."""
    with connect(pipeline.database.url("acp_reader"), application_name="acp-trace") as connection:
        receiver = Receiver(url, dict)
        return TraceExport(connection, receiver, Telemetry("trace"), sample_ratio=1).run(remaining_seconds=lambda: 60)


@pytest.mark.parametrize("pipeline", [EVENTS], indirect=True)
def test_two_killed_relays_leave_no_gap_in_any_trace(pipeline: Pipeline) -> None:
    with tapping() as tap:
        pipeline.query("SELECT FROM begin_traces(false)")
        # The events of this scenario were stored before it: the export begins before them.
        with connect(pipeline.database.owner_url, application_name="test") as owner:
            owner.execute("UPDATE trace_cursor SET stored_by = '0'")
        team = pipeline.team(2, claim_size=100, subscriptions=[SIGNAL_LAB])
        pipeline.work_until(delivered=200)
        pipeline.hold_sends(accepted=True, senders=2)
        for relay in team:
            pipeline.kill(relay)
        midway = pipeline.delivered()
        assert 200 <= midway < EVENTS
        report = export(pipeline, tap.url)
        assert (report.failure, report.waiting) == (None, EVENTS), "no consumer has processed one yet"
        pipeline.recover()
        pipeline.pass_time()
        pipeline.relay(subscriptions=[SIGNAL_LAB])
        pipeline.work_off()
        consume(pipeline)
        with connect(pipeline.database.owner_url, application_name="test") as owner:
            owner.execute("UPDATE waiting_traces SET look_at = now()")
        report = export(pipeline, tap.url)
        assert (report.failure, report.waiting, report.events) == (None, 0, EVENTS)
        spans = tap.spans(report.spans)
    told = [{one.key: one.value.string_value for one in span.attributes} for span in spans]
    names = Counter((one["acp.event_id"], span.name.split()[0]) for one, span in zip(told, spans, strict=True))
    stored = [event_id for (event_id,) in pipeline.query("SELECT event_id::text FROM events")]
    assert names == {(event_id, name): 1 for event_id in stored for name in ("create", "send", "process")}
    ids = {span.span_id for span in spans}
    assert len(ids) == 3 * EVENTS
    for one, span in zip(told, spans, strict=True):
        create = UUID(one["acp.event_id"]).bytes[8:]
        assert span.parent_span_id == (b"" if span.name.startswith("create") else create)
        assert {link.span_id for link in span.links} <= ids
    # What the killed relays held was tried again, and its span says so.
    failed = [span for span in spans if span.name.startswith("send") and span.events]
    assert len(failed) == len(pipeline.tried_again()) > 0


def consume(pipeline: Pipeline) -> None:
    """Processes every event once, as SignalLab would."""
    with connect(pipeline.database.app_url, application_name="test") as connection:
        for (event_id,) in pipeline.query("SELECT event_id FROM events"):
            with once(connection, consumer=SIGNAL_LAB, event_id=event_id):
                pass
