"""The checked-in JSON Schemas say what the models do."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from control_plane.model.contract import (
    Payload,
    SignalRejected,
    SourceFetchFailed,
    SourceGapDetected,
    new_event,
)
from control_plane.model.errors import ContractViolation
from domains import DOMAINS, EVENT_TYPES
from domains.finance.events import MarketTick
from local_cloud import generated
from scaffold import sample

ROOT = Path(__file__).parents[3]
MINUTE = datetime(2026, 1, 5, 14, 32, tzinfo=UTC)

formats = FormatChecker(["uuid"])


# jsonschema checks date-time only if another package is installed; without it, everything passes.
@formats.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@cache
def validator(event_type: str, version: int) -> Draft202012Validator:
    path = ROOT / "docs" / "schemas" / f"{event_type.lower()}.v{version}.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=formats)


def message(payload: Payload) -> dict[str, Any]:
    return new_event(
        payload,
        source="yfinance",
        entity_id="AAPL",
        entity_type=None,
        occurred_at=MINUTE,
        observed_at=MINUTE.replace(second=3),
        ingested_at=MINUTE.replace(microsecond=7),
        trace_id=UUID("0af76519-16cd-43dd-8448-eb211c80319c"),
        series="1m",
        revision=3,
    ).to_message()


TICK = MarketTick(price=267.26, open=267, high=267.5, low=266.94, volume=48211, currency="USD", interval="1m")
EXAMPLES: list[Payload] = [
    TICK,
    SourceFetchFailed(symbol="NOPE", kind="unknown_symbol", reason="the source does not know this symbol"),
    SignalRejected(symbol="AAPL", rejected_event_type="MARKET_TICK_INGESTED", field="price", value="nan", reason="no"),
    SourceGapDetected(symbol="AAPL", since=MINUTE, until=MINUTE.replace(hour=15)),
]
EXAMPLES += [sample.example(model) for model in EVENT_TYPES if model not in {type(example) for example in EXAMPLES}]


def test_the_checked_in_documents_are_the_generated_ones() -> None:
    assert generated.outdated(generated.contract_files(), ROOT) == [], "run `scripts/generate`"


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: payload.event_type)
def test_a_published_message_fits_its_schema_and_no_other(payload: Payload) -> None:
    for model in EVENT_TYPES:
        fits = validator(model.event_type, model.schema_version).is_valid(message(payload))
        assert fits == (model is type(payload))


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=128)


@given(
    st.builds(
        MarketTick,
        price=numbers.filter(bool),
        open=numbers,
        high=numbers,
        low=numbers,
        volume=st.integers(0, 2**53 - 1),
        currency=st.from_regex(r"\A[A-Za-z][A-Za-z0-9]{1,9}\Z"),
        interval=st.just("5m"),
    )
)
@settings(deadline=None)
def test_whatever_tick_is_published_fits_its_schema(tick: MarketTick) -> None:
    validator("MARKET_TICK_INGESTED", 1).validate(json.loads(json.dumps(message(tick))))


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
@settings(deadline=None)
def test_whatever_instants_are_published_fit_their_schema(since: datetime, until: datetime) -> None:
    gap = SourceGapDetected(symbol="AAPL", since=since, until=until)
    validator("SOURCE_GAP_DETECTED", 1).validate(message(gap))


def changed(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(message: dict[str, Any]) -> None:
        for name in path[:-1]:
            message = message[name]
        message[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "break_it",
    [
        changed("event_id", to="not an id"),
        changed("event_type", to="NO_SUCH_THING_DONE"),
        changed("source", to=""),
        changed("source", to=None),
        changed("entity_id", to=7),
        changed("entity_id", to="x" * 129),
        changed("occurred_at", to="2026-01-05T14:32:00"),
        changed("occurred_at", to="2026-13-05T14:32:00Z"),
        changed("ingested_at", to=1767623520),
        changed("observed_at", to=None),
        changed("series", to=None),
        changed("revision", to=-1),
        changed("revision", to=2**31),
        changed("schema_version", to=2),
        changed("trace_id", to="0af76519"),
        changed("trace_id", to="00000000-0000-0000-0000-000000000000"),
        changed("payload", to=[]),
        changed("payload", "price", to="267.26"),
        changed("payload", "price", to=None),
        changed("payload", "volume", to=-1),
        changed("payload", "volume", to=0.5),
        changed("payload", "interval", to="soon"),
        changed("payload", "colour", to="red"),
        changed("colour", to="red"),
        lambda message: message.pop("trace_id"),
        lambda message: message["payload"].pop("low"),
    ],
)
def test_the_code_refuses_what_the_schema_refuses(break_it: Callable[[dict[str, Any]], object]) -> None:
    broken = copy.deepcopy(message(TICK))
    break_it(broken)
    assert not validator("MARKET_TICK_INGESTED", 1).is_valid(broken)
    with pytest.raises(ContractViolation):
        EVENT_TYPES.parse_event(broken)


def test_stale_missing_and_leftover_files_are_named_and_mended(tmp_path: Path) -> None:
    files = generated.contract_files()
    first, second, *_ = files
    generated.write(files, tmp_path)
    leftover = generated.SCHEMAS / "gone.v1.schema.json"
    (tmp_path / leftover).write_text("{}")
    (tmp_path / first).write_text("{}")
    (tmp_path / second).unlink()

    assert generated.outdated(files, tmp_path) == [first, second, leftover]
    assert generated.write(files, tmp_path) == [first, second, leftover]
    assert generated.outdated(files, tmp_path) == []
    assert not (tmp_path / leftover).exists()


# The AsyncAPI document


def resolved(document: Any, reference: str) -> Any:
    """Returns what a reference means, within the document or to a file beside it."""
    path, _, pointer = reference.partition("#")
    found = json.loads((ROOT / "docs" / path).read_text(encoding="utf-8")) if path else document
    for step in pointer.split("/")[1:]:
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


def references(value: Any) -> list[str]:
    match value:
        case {"$ref": str(reference)}:
            return [reference]
        case dict():
            return [reference for item in value.values() for reference in references(item)]
        case list():
            return [reference for item in value for reference in references(item)]
        case _:
            return []


ASYNCAPI = json.loads((ROOT / generated.ASYNCAPI).read_text(encoding="utf-8"))


def test_the_asyncapi_document_has_every_topic_with_its_events() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    topics: dict[str, set[str]] = {}
    for model in EVENT_TYPES:
        for topic in (model.topic, *model.also_topics):
            topics.setdefault(topic, set()).add(f"{model.event_type}.v{model.schema_version}")
    assert {channel["address"]: set(channel["messages"]) for channel in ASYNCAPI["channels"].values()} == topics


def test_the_asyncapi_document_has_every_consumer() -> None:
    received = {
        name: resolved(ASYNCAPI, operation["channel"]["$ref"])["address"]
        for name, operation in ASYNCAPI["operations"].items()
        if operation["action"] == "receive"
    }
    assert received == {consumer.name: consumer.topic for domain in DOMAINS for consumer in domain.consumers}


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    found = references(ASYNCAPI)
    assert len(found) > 10
    for reference in found:
        assert resolved(ASYNCAPI, reference)


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: payload.event_type)
def test_a_published_message_fits_the_asyncapi_document(payload: Payload) -> None:
    described = ASYNCAPI["components"]["messages"][f"{payload.event_type}.v{payload.schema_version}"]
    schema = resolved(ASYNCAPI, described["payload"]["schema"]["$ref"])
    Draft202012Validator(schema, format_checker=formats).validate(message(payload))
    headers = resolved(ASYNCAPI, described["headers"]["$ref"])
    assert set(headers["properties"]) == {*("event_id", "event_type", "schema_version", "trace_id", "traceparent")}
