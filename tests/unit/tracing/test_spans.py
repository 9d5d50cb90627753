"""Spans as OTLP's JSON: what a receiver that reads protobuf's JSON mapping, with hexadecimal ids, makes of them."""

from datetime import UTC, datetime, timedelta

from control_plane.tracing.spans import (
    MOST_EVENTS,
    Kind,
    Span,
    SpanEvent,
    as_otlp_json,
    attributes,
    id_of,
    to_nanoseconds,
)

START = datetime(2026, 1, 5, 14, 32, 0, 123456, UTC)


def span(**changes: object) -> Span:
    values: dict[str, object] = {
        "service": "relay",
        "trace_id": "0a" * 16,
        "span_id": "0b" * 8,
        "parent_id": "",
        "name": "send signal_lab",
        "kind": Kind.CLIENT,
        "start": START,
        "end": START + timedelta(seconds=1),
    }
    return Span(**values | changes)  # type: ignore[arg-type]  # a test gives each field its own type


def only_span(made: Span) -> dict[str, object]:
    (resource,) = as_otlp_json([made])["resourceSpans"]
    (found,) = resource["scopeSpans"][0]["spans"]
    return dict(found)


def test_instants_are_exact_to_the_microsecond() -> None:
    assert to_nanoseconds(START) == 1_767_623_520_123_456_000
    assert only_span(span())["startTimeUnixNano"] == "1767623520123456000"


def test_numbers_truth_and_text_are_values_of_their_own_types() -> None:
    made = span(attributes={"a.text": "x", "a.number": 7, "a.share": 0.5, "a.truth": True})
    assert only_span(made)["attributes"] == [
        {"key": "a.text", "value": {"stringValue": "x"}},
        {"key": "a.number", "value": {"intValue": "7"}},
        {"key": "a.share", "value": {"doubleValue": 0.5}},
        {"key": "a.truth", "value": {"boolValue": True}},
    ]


def test_spans_are_grouped_by_the_service_that_did_the_work() -> None:
    made = as_otlp_json([span(), span(service="ingestion"), span()])
    assert [len(one["scopeSpans"][0]["spans"]) for one in made["resourceSpans"]] == [2, 1]
    named = made["resourceSpans"][0]["resource"]["attributes"][0]
    assert named == {"key": "service.name", "value": {"stringValue": "relay"}}


def test_a_failure_is_the_spans_status() -> None:
    assert only_span(span(error="the queue\nis gone"))["status"] == {"code": 2, "message": "the queue is gone"}
    assert only_span(span())["status"] == {}


def test_a_span_never_ends_before_it_starts() -> None:
    made = only_span(span(end=START - timedelta(seconds=3)))
    assert made["endTimeUnixNano"] == made["startTimeUnixNano"]


def test_of_many_events_the_newest_are_kept_and_the_others_counted() -> None:
    events = [SpanEvent(f"event {number}", START + timedelta(seconds=number)) for number in range(MOST_EVENTS + 2)]
    made = only_span(span(events=events))
    assert made["droppedEventsCount"] == 2
    assert isinstance(made["events"], list)
    assert (made["events"][0]["name"], len(made["events"])) == ("event 2", MOST_EVENTS)


def test_attributes_without_a_value_are_left_out_and_text_is_made_printable() -> None:
    assert attributes(gen_ai__agent__name="a\x00b", acp__none=None) == {"gen_ai.agent.name": "a b"}


def test_an_id_depends_on_all_of_its_parts() -> None:
    assert id_of("send", "a", "b") == id_of("send", "a", "b")
    assert len({id_of("a", "bc"), id_of("ab", "c"), id_of("abc"), id_of("a", "b", "c")}) == 4
    assert len(id_of("x", size=16)) == 32
