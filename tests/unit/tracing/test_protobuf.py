"""Spans as protobuf: the same as in OTLP's JSON, and what a receiver's answer says."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tests.otlp import rejecting

from control_plane.tracing.protobuf import NotAnOtlpAnswer, as_protobuf, read_rejected
from control_plane.tracing.receiver import BadHeaders, parse_headers
from control_plane.tracing.spans import MOST_EVENTS, Kind, Span, SpanEvent, as_otlp_json

START = datetime(2026, 1, 5, 14, 32, 0, 123456, UTC)
SPANS = [
    Span("ingestion", "0a" * 16, "0b" * 8, "", "create market.ticks", Kind.PRODUCER, START, START),
    Span(
        service="relay",
        trace_id="0a" * 16,
        span_id="0c" * 8,
        parent_id="0b" * 8,
        name="send signal_lab",
        kind=Kind.CLIENT,
        start=START,
        end=START - timedelta(seconds=1),
        attributes={"a.text": "é", "a.number": -7, "a.share": 0.25, "a.truth": True, "a.lie": False},
        events=[
            SpanEvent(f"event {number}", START + timedelta(seconds=number), {"n": number})
            for number in range(MOST_EVENTS + 3)
        ],
        links=[("0a" * 16, "0b" * 8)],
        error="the queue\x00is gone",
    ),
    Span("ingestion", "0d" * 16, "0e" * 8, "", "create market.ticks", Kind.INTERNAL, START, START),
]


def with_ids_as_base64(value: Any) -> Any:
    """Returns OTLP's JSON as protobuf's own mapping has it, where bytes are Base64."""
    if isinstance(value, list):
        return [with_ids_as_base64(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64encode(bytes.fromhex(one)).decode()
        if name in {"traceId", "spanId", "parentSpanId"}
        else with_ids_as_base64(one)
        for name, one in value.items()
    }


def test_protobuf_and_json_say_the_same() -> None:
    as_json = ParseDict(with_ids_as_base64(as_otlp_json(SPANS)), ExportTraceServiceRequest())
    assert MessageToDict(ExportTraceServiceRequest.FromString(as_protobuf(SPANS))) == MessageToDict(as_json)


def test_a_partial_success_says_how_many_spans_are_not_kept() -> None:
    assert read_rejected(rejecting(3, "too\nold").body) == (3, "too old")
    assert read_rejected(b"") == read_rejected(ExportTraceServiceResponse().SerializeToString()) == (0, "")


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"OK", b'{"partialSuccess":{}}', b"\xff" * 9])
def test_what_no_receiver_answers_is_no_success(body: bytes) -> None:
    with pytest.raises(NotAnOtlpAnswer):
        read_rejected(body)


def test_headers_are_a_json_object_of_names_and_values() -> None:
    assert parse_headers('{"Authorization": "Bearer x", "X-Team": ""}', origin="the secret arn") == {
        "Authorization": "Bearer x",
        "X-Team": "",
    }


@pytest.mark.parametrize(
    "text",
    ["", "Bearer top-secret", "[]", '{"A": 1}', '{"A b": "top-secret"}', '{"A": "top-secret\\r\\nB: c"}', '{"": ""}'],
)
def test_a_secret_without_headers_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(BadHeaders, match="the secret arn holds no headers") as refused:
        parse_headers(text, origin="the secret arn")
    assert "top-secret" not in str(refused.value)
