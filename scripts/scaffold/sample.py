"""Makes a batch of messages of a topic, as the relay sends them and SQS delivers them to a function."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from control_plane.model.contract import Event, new_event
from control_plane.model.trace import traceparent
from local_cloud.errors import AcpError
from queue_endpoint.protocol import md5_of_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from control_plane.model.contract import Payload

_MINUTE: Final = datetime(2026, 1, 5, 14, 32, tzinfo=UTC)
_TRACE_ID: Final = UUID("0af76519-16cd-43dd-8448-eb211c80319c")
_TEXTS: Final = ("AAPL", "1m", "MARKET_TICK_INGESTED", "https://example.com/", str(_TRACE_ID), "0" * 64)
"""What is tried for a text that has a pattern."""


def batch(payloads: Iterable[type[Payload]], queue: str) -> dict[str, Any]:
    """Returns one message of each event type. Raises AcpError if an example for a field cannot be made up."""
    return {"Records": [_record(_event(payload), queue, number) for number, payload in enumerate(payloads, 1)]}


def example(payload: type[Payload]) -> Payload:
    """Returns a payload with made-up values. Raises AcpError if a field's value cannot be made up."""
    schema = payload.model_json_schema(mode="serialization")
    values = {
        name: _value(f"{payload.event_type}'s {name}", field, schema.get("$defs", {}))
        for name, field in schema["properties"].items()
    }
    return payload.model_validate(values)


def _event(payload: type[Payload]) -> Event:
    return new_event(
        example(payload),
        source="example",
        entity_id="AAPL",
        entity_type=None,
        occurred_at=_MINUTE,
        observed_at=_MINUTE.replace(minute=33),
        ingested_at=_MINUTE.replace(minute=33, second=1),
        trace_id=_TRACE_ID,
    )


def _value(what: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    if "anyOf" in schema:
        schema = schema["anyOf"][0]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    plain: dict[str, Any] = {"number": 1.5, "integer": 1, "boolean": True}
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("type") == "object":
        return {}
    if schema.get("type") in plain:
        return plain[schema["type"]]
    if schema.get("format") == "date-time":
        return _MINUTE.isoformat()
    for text in _TEXTS:
        if schema.get("type") == "string" and re.search(schema.get("pattern", ""), text):
            return text
    msg = f"No example can be made up for {what}."
    raise AcpError(msg, remedy="Add a text that fits its pattern to _TEXTS in scripts/scaffold/sample.py.")


def _record(event: Event, queue: str, number: int) -> dict[str, Any]:
    message = event.to_message()
    body = json.dumps(message, separators=(",", ":"))
    texts = {
        "event_id": message["event_id"],
        "event_type": event.event_type,
        "schema_version": str(event.schema_version),
        "trace_id": message["trace_id"],
        "traceparent": traceparent(message["trace_id"], message["event_id"]),
    }
    attributes = {name: {"DataType": "String", "StringValue": text} for name, text in texts.items()}
    return {
        "messageId": f"6a4d5f0e-0f5c-4f0c-9d1b-3f1c2d7e8a{number:02}",
        "receiptHandle": f"AQEB-sample-receipt-handle-{number}",
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1767623601250",
            "SenderId": "AROAEXAMPLEID:relay",
            "ApproximateFirstReceiveTimestamp": "1767623601262",
        },
        "messageAttributes": {
            name: {"stringValue": text, "stringListValues": [], "binaryListValues": [], "dataType": "String"}
            for name, text in texts.items()
        },
        "md5OfMessageAttributes": md5_of_attributes(attributes),
        "md5OfBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:us-east-1:123456789012:ai-control-plane-{queue}",
        "awsRegion": "us-east-1",
    }
