"""OTLP as protobuf, which every receiver takes. Only TraceFunction imports this: its layer has what this needs."""

from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from control_plane.model.text import readable
from control_plane.tracing.spans import MOST_EVENTS, NAMESPACE, SCHEMA_URL, SCOPE, Span, Value, to_nanoseconds


class NotAnOtlpAnswer(Exception):
    """Raised for an answer's body that no OTLP receiver gives."""


def as_protobuf(spans: Sequence[Span]) -> bytes:
    """Returns the spans as an ``ExportTraceServiceRequest``; as_otlp_json returns the same as JSON."""
    services: dict[str, list[trace_pb2.Span]] = {}
    for span in spans:
        services.setdefault(span.service, []).append(_span(span))
    made: bytes = ExportTraceServiceRequest(
        resource_spans=[
            trace_pb2.ResourceSpans(
                resource=Resource(attributes=_attributes({"service.name": service, "service.namespace": NAMESPACE})),
                scope_spans=[
                    trace_pb2.ScopeSpans(scope=InstrumentationScope(name=SCOPE), spans=made, schema_url=SCHEMA_URL)
                ],
                schema_url=SCHEMA_URL,
            )
            for service, made in services.items()
        ]
    ).SerializeToString()
    return made


def read_rejected(body: bytes) -> tuple[int, str]:
    """Returns how many spans the receiver's answer says that it will not keep, and why. Raises NotAnOtlpAnswer."""
    try:
        answer = ExportTraceServiceResponse.FromString(body)
    except DecodeError:
        raise NotAnOtlpAnswer(readable(body[:100].decode("utf-8", "replace"))) from None
    return answer.partial_success.rejected_spans, readable(answer.partial_success.error_message)


def _span(span: Span) -> trace_pb2.Span:
    events = sorted(span.events, key=lambda event: event.at)
    made = trace_pb2.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.ValueType(int(span.kind)),
        start_time_unix_nano=to_nanoseconds(span.start),
        end_time_unix_nano=to_nanoseconds(max(span.start, span.end)),
        attributes=_attributes(span.attributes),
        events=[
            trace_pb2.Span.Event(
                time_unix_nano=to_nanoseconds(event.at), name=event.name, attributes=_attributes(event.attributes)
            )
            for event in events[-MOST_EVENTS:]
        ],
        dropped_events_count=max(len(events) - MOST_EVENTS, 0),
        links=[
            trace_pb2.Span.Link(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id))
            for trace_id, span_id in span.links
        ],
        status=trace_pb2.Status(),
    )
    if span.error is not None:
        made.status.code = trace_pb2.Status.STATUS_CODE_ERROR
        made.status.message = readable(span.error)
    return made


def _attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in values.items()]


def _value(value: Value) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case _:
            return AnyValue(string_value=value)
