"""What is stored comes back as it was: through JSON, jsonb and the outbox's own text, nothing changes."""

import json
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.types.json import Jsonb

from control_plane.ingestion.store import Draft, RawPayload, store_events
from control_plane.model.contract import Event, MarketTick, SignalRejected, new_event, parse_event
from control_plane.model.ids import canonical_json, derive_event_id, storable

# All examples may share one database: none leaves anything in it.
SHARED_DATABASE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
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
    price=numbers,
    open=numbers,
    high=numbers,
    low=numbers,
    volume=st.integers(0, 2**53 - 1),
    currency=names,
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
    ingested_at=instants,
    trace_id=st.uuids(version=4),
)


def through_jsonb(connection: Connection[Any], value: object) -> Any:
    row = connection.execute("SELECT %s", [Jsonb(value)]).fetchone()
    assert row is not None
    return row[0]


@given(event=events)
@SHARED_DATABASE
def test_an_event_comes_back_from_jsonb_unchanged(app: Connection[Any], event: Event) -> None:
    again = parse_event(through_jsonb(app, event.to_message()))
    assert again == event
    assert again.event_id == event.event_id
    assert json.dumps(again.to_message()) == json.dumps(event.to_message())


@given(event=events)
@SHARED_DATABASE
def test_the_text_that_the_relay_publishes_is_the_event(app: Connection[Any], event: Event) -> None:
    row = app.execute("SELECT %s::jsonb::text", [json.dumps(event.to_message())]).fetchone()
    assert row is not None
    assert parse_event(row[0]) == event
    assert parse_event(row[0].encode()) == event


@given(payload=st.dictionaries(texts, values, max_size=5))
@SHARED_DATABASE
def test_no_payload_changes_its_id_on_its_way_through_jsonb(app: Connection[Any], payload: dict[str, Any]) -> None:
    def event_id(payload: dict[str, Any]) -> UUID:
        return derive_event_id(
            source="s",
            event_type="T",
            entity_id=None,
            occurred_at=datetime(2026, 1, 5, tzinfo=UTC),
            schema_version=1,
            payload=payload,
        )

    again = through_jsonb(app, storable(payload))
    assert event_id(again) == event_id(payload)
    assert canonical_json(storable(again)) == canonical_json(payload)


@given(event=events)
@SHARED_DATABASE
def test_an_event_comes_back_from_its_row_and_its_promise_unchanged(app: Connection[Any], event: Event) -> None:
    raw = RawPayload(uuid4(), "test", datetime.now(UTC), event.trace_id, {"said": "something"})
    with app.transaction(force_rollback=True):
        assert store_events(app, [raw], [Draft(event, raw.id)]) == {event.event_id}
        rows = app.execute(
            """
            SELECT event_id, event_type, source, entity_id, entity_type, occurred_at, ingested_at, schema_version,
                trace_id, payload_json AS payload
            FROM events
            """
        )
        columns = [column.name for column in rows.description or ()]
        (values,) = rows.fetchall()
        (promise,) = app.execute("SELECT payload_json FROM outbox").fetchall()
    assert parse_event(dict(zip(columns, values, strict=True))) == event
    assert parse_event(promise[0]) == event


def test_the_longest_names_fit_every_index(app: Connection[Any]) -> None:
    # Four bytes each and in no order, so that Postgres cannot compress them under its limit.
    longest = Event.model_json_schema()["$defs"]["Name"]["maxLength"]
    long = "".join(Random(1).choices([chr(code) for code in range(0x20000, 0x2A6DF)], k=longest))
    assert len(long.encode()) == 4 * longest
    event = new_event(
        MarketTick(price=1, open=1, high=1, low=1, volume=0, currency=long, interval="1m"),
        source=long,
        entity_id=long,
        entity_type=long,
        occurred_at=datetime(2026, 1, 5, tzinfo=UTC),
        ingested_at=datetime(2026, 1, 5, tzinfo=UTC),
        trace_id=uuid4(),
    )
    raw = RawPayload(uuid4(), long, datetime.now(UTC), event.trace_id, {})
    with app.transaction():
        assert store_events(app, [raw], [Draft(event, raw.id)]) == {event.event_id}
