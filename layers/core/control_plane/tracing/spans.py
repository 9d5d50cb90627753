"""Spans, in the shape that both outputs share: OTLP as JSON, and OTLP as protobuf."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, Final

from control_plane.model.text import readable

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.45.0"
SCOPE: Final = "control_plane"
NAMESPACE: Final = "ai-control-plane"
MOST_EVENTS: Final = 128
"""The most events of one span, as in OpenTelemetry's SDKs; the newest are kept."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

type Value = str | int | float | bool
"""The value of an attribute."""


class Kind(IntEnum):
    """The kind of a span, with the number that OTLP has for it."""

    INTERNAL = 1
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened during a span."""

    name: str
    at: datetime
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """One span; the ids are hexadecimal text, of 32 and 16 digits."""

    service: str
    """Which part of the control plane did the work, for ``service.name``."""
    trace_id: str
    span_id: str
    parent_id: str
    """The id of the parent span; empty for a root."""
    name: str
    kind: Kind
    start: datetime
    end: datetime
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()
    links: Sequence[tuple[str, str]] = ()
    """The trace id and the span id of each linked span."""
    error: str | None = None
    """Why it failed; None if it did not."""


def to_nanoseconds(instant: datetime) -> int:
    """Returns the nanoseconds since 1970, without the rounding of a float."""
    return (instant - _EPOCH) // timedelta(microseconds=1) * 1000


def to_instant(text: str) -> datetime:
    """Returns the instant of a text as Postgres writes it into JSON."""
    return datetime.fromisoformat(text)


def id_of(*parts: object, size: int = 8) -> str:
    """Returns an id that the same parts always have, so that a span that is exported again is the same span."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:size].hex()


def attributes(**values: Value | None) -> dict[str, Value]:
    """Returns attributes without those that are None; in a name, two underscores stand for a dot.

    Text is made printable and of bounded length, since some of it comes from elsewhere.
    """
    return {
        name.replace("__", "."): readable(value) if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


def as_otlp_json(spans: Sequence[Span]) -> dict[str, Any]:
    """Returns an ``ExportTraceServiceRequest`` in OTLP's JSON: ids are hexadecimal, and long numbers are text."""
    services: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        services.setdefault(span.service, []).append(_span(span))
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes({"service.name": service, "service.namespace": NAMESPACE})},
                "scopeSpans": [{"scope": {"name": SCOPE}, "spans": made, "schemaUrl": SCHEMA_URL}],
                "schemaUrl": SCHEMA_URL,
            }
            for service, made in services.items()
        ]
    }


def _span(span: Span) -> dict[str, Any]:
    events = sorted(span.events, key=lambda event: event.at)
    made: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(to_nanoseconds(span.start)),
        # By two servers' clocks an end may come before its start.
        "endTimeUnixNano": str(to_nanoseconds(max(span.start, span.end))),
        "attributes": _attributes(span.attributes),
        "events": [
            {
                "timeUnixNano": str(to_nanoseconds(event.at)),
                "name": event.name,
                "attributes": _attributes(event.attributes),
            }
            for event in events[-MOST_EVENTS:]
        ],
        "droppedEventsCount": max(len(events) - MOST_EVENTS, 0),
        "links": [{"traceId": trace_id, "spanId": span_id} for trace_id, span_id in span.links],
        "status": {} if span.error is None else {"code": 2, "message": readable(span.error)},
    }
    return {name: value for name, value in made.items() if value or name == "status"}


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


def _value(value: Value) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"stringValue": value}
