"""Events come back from JSON, jsonb and the outbox's text as they were stored."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.types.json import Jsonb

from control_plane.ingestion.store import Look, LookOutcome, RawPayload, store_events
from control_plane.model.contract import Event, SignalRejected, new_event
from control_plane.model.ids import canonical_json, derive_event_id, storable
from domains import EVENT_TYPES
from domains.finance.events import MarketTick

# All examples can share one database, because none leaves anything in it.
SHARED_DATABASE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

characters = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])
texts = st.text(characters, max_size=30)
names = st.text(characters, min_size=1, max_size=128)
nasty_floats = st.sampled_from(
    [
        0.0, -0.0, 1.0, 1e15, 1e16, 1e21, 1e22, 1e23, 0.1, 0.1 + 0.2, -1e-5, 1e-7, 1e-300, 5e-324,
        2.0**53, 2.0**53 + 2, 123456789012345680.0, 1.7976931348623157e308, 2.2250738585072014e-308,
    ]
)  # fmt: skip
numbers = nasty_floats | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
instants = st.datetimes(timezones=st.just(UTC))
ticks = st.builds(
    MarketTick,
    price=numbers.filter(bool),
    open=numbers,
    high=numbers,
    low=numbers,
    volume=st.integers(0, 2**53 - 1),
    currency=st.from_regex(r"\A[A-Za-z][A-Za-z0-9]{1,9}\Z"),
    interval=st.just("1m"),
)
rejections = st.builds(SignalRejected, symbol=names, rejected_event_type=names, field=names, value=texts, reason=names)
events: st.SearchStrategy[Event] = st.builds(
    new_event,
    ticks | rejections,
    source=names,
    entity_id=st.none() | names,
    entity_type=st.none() | names,
    occurred_at=instants,
    observed_at=instants,
    ingested_at=instants,
    trace_id=st.uuids(version=4),
    series=texts,
    revision=st.integers(0, 2**31 - 1),
)
looks = st.builds(
    Look,
    ticks | rejections,
    source=names,
    entity_id=st.none() | names,
    entity_type=st.none() | names,
    occurred_at=instants,
    observed_at=instants,
    trace_id=st.uuids(version=4),
    series=texts,
)


def through_jsonb(connection: Connection[Any], value: object) -> Any:
    row = connection.execute("SELECT %s", [Jsonb(value)]).fetchone()
    assert row is not None
    return row[0]


@given(event=events)
@SHARED_DATABASE
def test_an_event_comes_back_from_jsonb_unchanged(app: Connection[Any], event: Event) -> None:
    again = EVENT_TYPES.parse_event(through_jsonb(app, event.to_message()))
    assert again == event
    assert again.event_id == event.event_id
    assert json.dumps(again.to_message()) == json.dumps(event.to_message())


@given(event=events)
@SHARED_DATABASE
def test_the_text_that_the_relay_publishes_is_the_event(app: Connection[Any], event: Event) -> None:
    row = app.execute("SELECT %s::jsonb::text", [json.dumps(event.to_message())]).fetchone()
    assert row is not None
    assert EVENT_TYPES.parse_event(row[0]) == event
    assert EVENT_TYPES.parse_event(row[0].encode()) == event


@given(payload=st.dictionaries(texts, values, max_size=5))
@SHARED_DATABASE
def test_no_payload_changes_its_id_on_its_way_through_jsonb(app: Connection[Any], payload: dict[str, Any]) -> None:
    def event_id(payload: dict[str, Any]) -> UUID:
        return derive_event_id(
            source="s",
            event_type="T",
            entity_id=None,
            occurred_at=datetime(2026, 1, 5, tzinfo=UTC),
            series="",
            schema_version=1,
            revision=0,
            payload=payload,
        )

    again = through_jsonb(app, storable(payload))
    assert event_id(again) == event_id(payload)
    assert canonical_json(storable(again)) == canonical_json(payload)


def raw_payload_of(look: Look) -> RawPayload:
    return RawPayload(
        uuid4(),
        source=look.source,
        entity_id=look.entity_id,
        observed_at=look.observed_at,
        window_since=look.occurred_at,
        fetched_at=look.observed_at,
        trace_id=look.trace_id,
        payload={"said": "something"},
    )


@given(look=looks)
@SHARED_DATABASE
def test_an_event_comes_back_unchanged_from_row_and_message(app: Connection[Any], look: Look) -> None:
    raw = raw_payload_of(look)
    with app.transaction(force_rollback=True):
        (event,) = store_events(app, [raw], [replace(look, raw_payload_id=raw.id)]).events
        rows = app.execute(
            """
            SELECT event_id, event_type, source, entity_id, entity_type, occurred_at, observed_at, ingested_at, series,
                revision, schema_version, trace_id, payload_json AS payload
            FROM events
            """
        )
        columns = [column.name for column in rows.description or ()]
        (values,) = rows.fetchall()
        (message,) = app.execute("SELECT payload_json FROM outbox").fetchall()
        kept = app.execute("SELECT entity_id, observed_at, window_since FROM raw_payloads").fetchall()
    assert EVENT_TYPES.parse_event(dict(zip(columns, values, strict=True))) == event
    assert EVENT_TYPES.parse_event(message[0]) == event
    assert event == look.to_event(revision=0, ingested_at=event.ingested_at)
    assert event.event_id == look.event_id(0)
    assert kept == [(look.entity_id, look.observed_at, look.occurred_at)]


@given(look=looks)
@SHARED_DATABASE
def test_any_look_at_what_is_stored_is_a_duplicate(app: Connection[Any], look: Look) -> None:
    with app.transaction(force_rollback=True):
        outcomes = [store_events(app, [], [look]).looks[0].outcome for _ in range(2)]
    assert outcomes == [LookOutcome.NEW, LookOutcome.DUPLICATE]


def test_the_longest_names_fit_every_index(app: Connection[Any]) -> None:
    # Characters of four bytes in random order, so that Postgres cannot compress them below its limit.
    longest = Event.model_json_schema()["$defs"]["Name"]["maxLength"]
    long = "".join(Random(1).choices([chr(code) for code in range(0x20000, 0x2A6DF)], k=longest))
    assert len(long.encode()) == 4 * longest
    look = Look(
        MarketTick(price=1, open=1, high=1, low=1, volume=0, currency="USD", interval="1m"),
        source=long,
        entity_id=long,
        entity_type=long,
        occurred_at=datetime(2026, 1, 5, tzinfo=UTC),
        observed_at=datetime(2026, 1, 5, tzinfo=UTC),
        trace_id=uuid4(),
        series=long,
    )
    with app.transaction():
        assert len(store_events(app, [raw_payload_of(look)], [look]).events) == 1
        # A repeated look is recorded in a table of its own, with the same columns.
        later = replace(look, observed_at=look.observed_at + timedelta(seconds=1))
        assert store_events(app, [], [later]).looks[0].outcome is LookOutcome.DUPLICATE
