"""The contract: what it accepts unchanged, and what it refuses, by name."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.model.contract import (
    SYSTEM_EVENTS,
    Event,
    EventTypes,
    Payload,
    SignalRejected,
    SourceFetchFailed,
    SourceGapDetected,
    new_event,
    parse_payload,
)
from control_plane.model.errors import ContractViolation
from control_plane.model.ids import derive_event_id
from control_plane.model.subscription import is_topic
from domains import EVENT_TYPES
from domains.finance.events import MARKET_TICKS, MarketTick

characters = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])
names = st.text(characters, min_size=1, max_size=128)
texts = st.text(characters, min_size=1, max_size=200)
prices = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
instants = st.datetimes(timezones=st.just(UTC))
ticks = st.builds(
    MarketTick,
    price=prices.filter(bool),
    open=prices,
    high=prices,
    low=prices,
    volume=st.integers(0, 2**53 - 1),
    currency=st.from_regex(r"\A[A-Za-z][A-Za-z0-9]{1,9}\Z"),
    interval=st.sampled_from(["1m", "30m", "1h", "1d", "1wk", "3mo"]),
)
payloads: st.SearchStrategy[Payload] = st.one_of(
    ticks,
    st.builds(SourceFetchFailed, symbol=texts, kind=texts, reason=texts),
    st.builds(SignalRejected, symbol=texts, rejected_event_type=texts, field=texts, value=texts, reason=texts),
    st.builds(SourceGapDetected, symbol=texts, since=instants, until=instants),
)
events: st.SearchStrategy[Event] = st.builds(
    new_event,
    payloads,
    source=names,
    entity_id=st.none() | names,
    entity_type=st.none() | names,
    occurred_at=instants,
    observed_at=instants,
    ingested_at=instants,
    trace_id=st.uuids(version=4),
    series=st.just("") | names,
    revision=st.integers(0, 2**31 - 1),
)

TICK = MarketTick(price=267.26, open=267, high=267.5, low=266.94, volume=48211, currency="USD", interval="1m")


def tick_event(payload: Payload = TICK, **changes: Any) -> Event:
    envelope: dict[str, Any] = {
        "source": "yfinance",
        "entity_id": "AAPL",
        "entity_type": "equity",
        "occurred_at": datetime(2026, 1, 5, 14, 32, tzinfo=UTC),
        "observed_at": datetime(2026, 1, 5, 14, 33, 4, tzinfo=UTC),
        "ingested_at": datetime(2026, 1, 5, 14, 33, 5, tzinfo=UTC),
        "trace_id": UUID("0af76519-16cd-43dd-8448-eb211c80319c"),
        "series": "1m",
    }
    return new_event(payload, **(envelope | changes))


def message(**changes: Any) -> dict[str, Any]:
    """Returns a good message with some fields changed; its id stays as it was."""
    return tick_event().to_message() | changes


def message_with_payload(**changes: Any) -> dict[str, Any]:
    return message(payload=tick_event().payload | changes)


def sealed(**changes: Any) -> dict[str, Any]:
    """Returns a message with the id that belongs to its content, as another producer would send it."""
    changed = message(**changes)
    return changed | {
        "event_id": str(
            derive_event_id(
                occurred_at=datetime.fromisoformat(changed["occurred_at"]),
                **{
                    name: changed[name]
                    for name in ("source", "event_type", "entity_id", "series", "schema_version", "revision", "payload")
                },
            )
        )
    }


@given(events)
@settings(deadline=None)
def test_an_event_comes_back_from_json_unchanged(event: Event) -> None:
    again = EVENT_TYPES.parse_event(json.dumps(event.to_message(), allow_nan=False))
    assert again == event
    assert again.to_message() == event.to_message()


@given(events, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_a_messages_keys_makes_no_difference(event: Event, random: Any) -> None:
    items = list(event.to_message().items())
    random.shuffle(items)
    assert EVENT_TYPES.parse_event(json.dumps(dict(items), ensure_ascii=False).encode()) == event


@given(ticks, st.integers(-23 * 60 - 59, 23 * 60 + 59))
@settings(deadline=None)
def test_the_time_zone_in_a_message_makes_no_difference(tick: MarketTick, minutes: int) -> None:
    event = tick_event(tick)
    local = event.occurred_at.astimezone(timezone(timedelta(minutes=minutes)))
    again = EVENT_TYPES.parse_event(event.to_message() | {"occurred_at": local.isoformat()})
    assert again == event
    assert again.to_message()["occurred_at"] == "2026-01-05T14:32:00Z"


def test_a_local_time_is_converted_not_relabelled() -> None:
    winter_morning_in_new_york = datetime(2026, 1, 5, 9, 32, tzinfo=timezone(-timedelta(hours=5)))
    assert tick_event(occurred_at=winter_morning_in_new_york) == tick_event()


def test_time_zones_inside_a_payload_make_no_difference_either() -> None:
    gap = SourceGapDetected(
        symbol="AAPL", since=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2026, 1, 2, tzinfo=UTC)
    )
    event = tick_event(gap)
    local = {"symbol": "AAPL", "since": "2026-01-01T02:00:00+02:00", "until": "2026-01-01t19:00:00.000-05:00"}
    assert EVENT_TYPES.parse_event(event.to_message() | {"payload": local}) == event


@pytest.mark.parametrize(
    "respelled",
    [
        {"open": 267},
        {"open": 267.0, "volume": 48211.0},
        {"price": float("2.6726e2")},
    ],
)
def test_the_spelling_of_numbers_in_a_message_makes_no_difference(respelled: dict[str, Any]) -> None:
    again = EVENT_TYPES.parse_event(message_with_payload(**respelled))
    assert again == tick_event()
    assert json.dumps(again.to_message()) == json.dumps(tick_event().to_message())


def test_minus_zero_is_published_as_zero() -> None:
    minus, plain = (tick_event(TICK.model_copy(update={"open": zero})) for zero in (-0.0, 0.0))
    assert json.dumps(minus.to_message()) == json.dumps(plain.to_message())  # as text, since Python calls them equal


def test_observed_at_and_ingested_at_do_not_change_the_id() -> None:
    new_year = datetime(2027, 1, 1, tzinfo=UTC)
    later = tick_event(observed_at=new_year, ingested_at=new_year, trace_id=uuid4(), entity_type=None)
    assert later.event_id == tick_event().event_id


def test_a_corrected_bar_is_a_new_event() -> None:
    assert tick_event(TICK.model_copy(update={"price": 267.27})).event_id != tick_event().event_id


def test_a_return_to_an_earlier_value_is_a_new_event() -> None:
    assert len({tick_event(revision=revision).event_id for revision in (0, 2)}) == 2


def test_bars_of_two_intervals_at_one_instant_are_two_events() -> None:
    assert tick_event(series="1d").event_id != tick_event().event_id


def test_every_event_type_names_its_topic() -> None:
    topics = {model.event_type: model.topic for model in EVENT_TYPES}
    assert (
        topics.items()
        >= {
            "MARKET_TICK_INGESTED": MARKET_TICKS,
            "SOURCE_FETCH_FAILED": SYSTEM_EVENTS,
            "SIGNAL_REJECTED": SYSTEM_EVENTS,
            "SOURCE_GAP_DETECTED": SYSTEM_EVENTS,
        }.items()
    )
    assert all(is_topic(topic) for topic in topics.values())


def test_a_message_holds_exactly_the_contracts_fields_as_json() -> None:
    assert tick_event().to_message() == {
        "event_id": "80a6b352-9c1d-543c-8b41-643f25989461",
        "event_type": "MARKET_TICK_INGESTED",
        "source": "yfinance",
        "entity_id": "AAPL",
        "entity_type": "equity",
        "occurred_at": "2026-01-05T14:32:00Z",
        "observed_at": "2026-01-05T14:33:04Z",
        "ingested_at": "2026-01-05T14:33:05Z",
        "series": "1m",
        "revision": 0,
        "schema_version": 1,
        "trace_id": "0af76519-16cd-43dd-8448-eb211c80319c",
        "payload": {
            "price": 267.26,
            "open": 267.0,
            "high": 267.5,
            "low": 266.94,
            "volume": 48211,
            "currency": "USD",
            "interval": "1m",
        },
    }


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in message().items() if name != field}


def nested_text(levels: int) -> str:
    return json.dumps(message(payload=None)).replace("null", '{"a":' * levels + "1" + "}" * levels)


REFUSED: list[tuple[Callable[[], Any], str, str]] = [
    # not an object of this shape at all
    (lambda: "", "message", "is not JSON"),
    (lambda: "{", "message", "is not JSON"),
    (lambda: b"\xff", "message", "is not JSON"),
    (lambda: json.dumps(message()).replace('{"event_id"', '{"revision": 7, "event_id"'), "revision", "is given twice"),
    (lambda: json.dumps(message()).replace('"price"', '"price": 1, "price"'), "price", "is given twice"),
    (lambda: nested_text(3).replace('"a":1', '"a":1,"b":2,"a":3'), "a", "is given twice"),
    (lambda: "[]", "message", "is not a JSON object (got [])"),
    (lambda: "7", "message", "is not a JSON object (got 7)"),
    (lambda: nested_text(200_000), "message", "is not JSON"),
    (lambda: '{"price": ' + "9" * 5000 + "}", "message", "is not JSON"),
    *[(lambda field=field: without(field), field, "Field required") for field in tick_event().to_message()],
    (lambda: message(colour="red"), "colour", "Extra inputs are not permitted (got 'red')"),
    # ids
    (
        lambda: message(event_id="80a6b352-9c1d-543c-8b41-643f25989462"),
        "event_id",
        "is not the id of this observation, which is 80a6b352-9c1d-543c-8b41-643f25989461 (got '80a6b352-",
    ),
    (lambda: message_with_payload(price=267.27), "event_id", "is not the id of this observation"),
    (lambda: message(event_id="AAPL"), "event_id", "Input should be a valid UUID"),
    (lambda: message(trace_id=7), "trace_id", "UUID input should be a string"),
    (lambda: message(trace_id=str(UUID(int=0))), "trace_id", "is all zeros, which W3C Trace Context reserves"),
    # type and version
    (
        lambda: message(event_type="NO_SUCH_THING_DONE"),
        "event_type",
        "no such type and schema_version in this contract (got 'NO_SUCH_THING_DONE v1')",
    ),
    (lambda: message(schema_version=2), "event_type", "no such type and schema_version"),
    (lambda: message(event_type="market_tick"), "event_type", "no such type and schema_version"),
    (lambda: message(event_type="TICK_INGESTED\n"), "event_type", "no such type and schema_version"),
    (lambda: message(schema_version=0), "event_type", "no such type and schema_version"),
    (lambda: json.dumps(message(schema_version=float("nan"))), "schema_version", "Input should be a valid integer"),
    (lambda: json.dumps(message(schema_version=float("inf"))), "schema_version", "Input should be a valid integer"),
    (lambda: message(schema_version="1"), "schema_version", "Input should be a valid integer (got '1')"),
    (lambda: message(schema_version=True), "schema_version", "Input should be a valid integer (got True)"),
    (lambda: message(schema_version=1.5), "schema_version", "Input should be a valid integer (got 1.5)"),
    # text
    (lambda: message(source=""), "source", "String should have at least 1 character (got '')"),
    (lambda: message(source=None), "source", "Input should be a valid string (got None)"),
    (lambda: message(source="\0"), "source", r"holds a character that JSON text cannot store (got '\x00')"),
    (lambda: message(source="\ud800"), "source", "Input should be a valid string"),
    (lambda: json.dumps(message(entity_id="\ud800")), "entity_id", "Input should be a valid string"),
    (lambda: message(entity_id=""), "entity_id", "String should have at least 1 character"),
    (lambda: message(entity_id="x" * 129), "entity_id", "String should have at most 128 characters"),
    (lambda: message(entity_type="a\0"), "entity_type", "holds a character that JSON text cannot store"),
    # series and revision
    (lambda: message(series=None), "series", "Input should be a valid string (got None)"),
    (lambda: message(series="x" * 129), "series", "String should have at most 128 characters"),
    (lambda: message(series="a\0"), "series", "holds a character that JSON text cannot store"),
    (lambda: message(series="1d"), "event_id", "is not the id of this observation"),
    (lambda: message(revision=1), "event_id", "is not the id of this observation"),
    (lambda: message(revision=-1), "revision", "Input should be greater than or equal to 0 (got -1)"),
    (lambda: message(revision=2**31), "revision", "Input should be less than or equal to 2147483647"),
    (lambda: message(revision="0"), "revision", "Input should be a valid integer (got '0')"),
    (lambda: message(revision=True), "revision", "Input should be a valid integer (got True)"),
    (lambda: message(revision=0.5), "revision", "Input should be a valid integer (got 0.5)"),
    # instants
    *[
        (lambda field=field, text=text: message(**{field: text}), field, "is not an instant as in 2026-01-05T14:32:00Z")
        for field in ("occurred_at", "observed_at", "ingested_at")
        for text in (
            "2026-01-05T14:32:00",
            "2026-01-05",
            "2026-01-05 14:32:00Z",
            "2026-01-05T14:32Z",
            "2026-01-05T14:32:00.0000001Z",
            "1767623520",
            "yesterday",
        )
    ],
    (lambda: message(occurred_at=1767623520), "occurred_at", "is not an instant, written as text (got 1767623520)"),
    (lambda: message(occurred_at=None), "occurred_at", "is not an instant, written as text (got None)"),
    (lambda: message(occurred_at=datetime(2026, 1, 5)), "occurred_at", "Input should have timezone info"),  # noqa: DTZ001 – that is the case
    (lambda: message(occurred_at="2026-13-05T14:32:00Z"), "occurred_at", "Input should be a valid datetime"),
    (lambda: message(occurred_at="0001-01-01T00:00:00+05:00"), "occurred_at", "is out of range in UTC"),
    # payloads
    (lambda: message(payload=[]), "payload", "Input should be a valid dictionary (got [])"),
    (lambda: message(payload={}), "payload.price", "Field required"),
    (lambda: message_with_payload(colour="red"), "payload.colour", "Extra inputs are not permitted (got 'red')"),
    (lambda: message_with_payload(price=float("nan")), "payload.price", "is not a finite number (got nan)"),
    (lambda: json.dumps(message_with_payload(low=float("nan"))), "payload.low", "is not a finite number (got nan)"),
    (lambda: json.dumps(message_with_payload(low=-float("inf"))), "payload.low", "is not a finite number (got -inf)"),
    (lambda: message_with_payload(price="267.26"), "payload.price", "Input should be a valid number (got '267.26')"),
    (lambda: message_with_payload(price=True), "payload.price", "Input should be a valid number (got True)"),
    (lambda: message_with_payload(price=None), "payload.price", "Input should be a valid number (got None)"),
    (lambda: message_with_payload(price=2**53 + 1), "payload.price", "is an integer that a JSON number cannot hold"),
    (lambda: message_with_payload(price=10**400), "payload.price", "is larger than any JSON number (got 1000"),
    (lambda: message_with_payload(volume=-1), "payload.volume", "Input should be greater than or equal to 0 (got -1)"),
    (lambda: message_with_payload(volume=0.5), "payload.volume", "Input should be a valid integer (got 0.5)"),
    (lambda: message_with_payload(volume=2**53), "payload.volume", "Input should be less than or equal to"),
    (lambda: message_with_payload(currency="\0"), "payload.currency", "holds a character that JSON text cannot store"),
    (lambda: message_with_payload(currency="U\x1b[2J"), "payload.currency", "String should match pattern"),
    (lambda: message_with_payload(price=0), "payload.price", "is 0: nothing is traded for nothing"),
    (lambda: message(series="1m\u2028"), "series", "holds a control character"),
    (lambda: message(source="fake\n"), "source", "holds a control character"),
    (lambda: message(entity_id="AA\u202ePL"), "entity_id", "holds a control character"),
    (lambda: message_with_payload(interval="soon"), "payload.interval", "String should match pattern"),
    (lambda: nested_text(900), "payload" + ".a" * 64, "is nested deeper than 64 levels"),
]


@pytest.mark.parametrize(("broken", "field", "reason"), REFUSED)
def test_a_contract_violation_names_field_and_value(broken: Callable[[], Any], field: str, reason: str) -> None:
    with pytest.raises(ContractViolation) as refusal:
        EVENT_TYPES.parse_event(broken())
    assert refusal.value.field == field
    assert str(refusal.value).startswith(f"{field}: {reason}")
    assert len(str(refusal.value)) < 1000


def test_an_unusual_but_valid_message_is_accepted() -> None:
    assert (
        EVENT_TYPES.parse_event(sealed(source="a source we have never heard of", entity_id="ÉTÉ.PA 🙃")).entity_id
        == "ÉTÉ.PA 🙃"
    )


def test_refused_payload_names_field_and_value() -> None:
    with pytest.raises(ContractViolation, match=r"^payload.price: .*finite.* \(got nan\)$"):
        parse_payload(MarketTick, TICK.model_dump() | {"price": float("nan")})
    with pytest.raises(ContractViolation, match=r"^payload.price: Input should be a valid number \(got None\)$"):
        parse_payload(MarketTick, TICK.model_dump() | {"price": None})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"entity_id": ""}, "entity_id"),
        ({"occurred_at": datetime(2026, 1, 5)}, "occurred_at"),  # noqa: DTZ001 – that is the case
        ({"observed_at": datetime(2026, 1, 5)}, "observed_at"),  # noqa: DTZ001 – that is the case
        ({"ingested_at": datetime(2026, 1, 5)}, "ingested_at"),  # noqa: DTZ001 – that is the case
        ({"revision": -1}, "revision"),
        ({"series": "\0"}, "event.series"),
        ({"entity_type": "\0"}, "entity_type"),
    ],
)
def test_a_new_event_is_held_to_the_same_contract(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ContractViolation) as refusal:
        tick_event(**changes)
    assert refusal.value.field == field


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        tick_event().source = "another"


class Renamed(MarketTick):
    """A newer schema version of a tick."""

    schema_version = 2


def test_newest_version_is_written_and_all_are_read() -> None:
    types = EventTypes([Renamed, MarketTick])
    assert types.newest("MARKET_TICK_INGESTED") is Renamed
    assert types.find("MARKET_TICK_INGESTED", 1) is MarketTick
    assert list(types) == [Renamed, MarketTick]
    with pytest.raises(ContractViolation, match="no such type in this contract"):
        types.newest("WEATHER_CHANGED")


def test_a_type_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="MARKET_TICK_INGESTED v1 is listed twice"):
        EventTypes([MarketTick, MarketTick])
