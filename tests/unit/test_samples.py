"""The sample events are events that the functions accept."""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from tests.template import CONSUMERS, FOLDERS, ROOT

from control_plane.consumers.messages import consume_record
from control_plane.model.contract import Event
from control_plane.model.trace import traceparent
from control_plane.platform.settings import parse_linger_seconds, parse_symbols
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES


def sample(name: str) -> Any:
    return json.loads((ROOT / "events" / f"{name}.json").read_text(encoding="utf-8"))


def test_every_function_has_a_sample_event() -> None:
    samples = {path.stem for path in (ROOT / "events").glob("*.json")}
    assert [name for name in FOLDERS.values() if not any(stem.startswith(name) for stem in samples)] == []


def test_the_samples_of_functions_without_queues_fit_their_handlers() -> None:
    assert parse_symbols(sample("ingestion")["symbols"], name="symbols")
    assert parse_linger_seconds(sample("relay").get("linger_seconds"), default=0) == 0
    assert sample("migration") == sample("maintenance") == sample("timers") == sample("operations") == {}


def md5_of_attributes(attributes: Mapping[str, str]) -> str:
    """Returns the digest as SQS computes it (Amazon SQS developer guide, *Calculating the MD5 message digest …*)."""

    def with_length(text: str) -> bytes:
        return struct.pack(">I", len(text.encode())) + text.encode()

    parts = [
        with_length(name) + with_length("String") + b"\x01" + with_length(attributes[name])
        for name in sorted(attributes)
    ]
    return hashlib.md5(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_consumers_sample_is_a_batch_as_sqs_delivers_it(consumer: str, telemetry: Telemetry) -> None:
    records = sample("action" if consumer == "actions" else consumer)["Records"]  # by the function's folder
    assert records
    consumed: list[Event] = []

    def consume(event: Event) -> bool:
        consumed.append(event)
        return True

    for record in records:
        consume_record(record, consume, subscription=consumer, event_types=EVENT_TYPES, telemetry=telemetry)
        event = consumed[-1]
        assert event == EVENT_TYPES.parse_event(record["body"])
        payload = EVENT_TYPES.find(event.event_type, event.schema_version)
        assert CONSUMERS[consumer].topic in (payload.topic, *payload.also_topics)
        for attribute in record["messageAttributes"].values():
            assert attribute.keys() == {"stringValue", "stringListValues", "binaryListValues", "dataType"}
            assert attribute["dataType"] == "String"
        attributes = {name: value["stringValue"] for name, value in record["messageAttributes"].items()}
        assert attributes == {
            "event_id": str(event.event_id),
            "event_type": event.event_type,
            "schema_version": str(event.schema_version),
            "trace_id": str(event.trace_id),
            "traceparent": traceparent(str(event.trace_id), str(event.event_id)),
        }
        assert record["md5OfBody"] == hashlib.md5(record["body"].encode()).hexdigest()
        assert record["md5OfMessageAttributes"] == md5_of_attributes(attributes)
        assert record["eventSource"] == "aws:sqs"
    assert len({record["messageId"] for record in records}) == len(records)


@pytest.mark.parametrize("function", ["decision", "agent", "gatekeeper", "action", "detector"])
def test_a_sample_of_deciding_is_what_its_events_look_like_now(function: str) -> None:
    for record in sample(function)["Records"]:
        event = EVENT_TYPES.parse_event(record["body"])
        assert str(event.event_id) == record["messageAttributes"]["event_id"]["stringValue"]
