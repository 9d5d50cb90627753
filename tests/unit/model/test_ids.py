"""Properties of ids: equal observations have equal ids, and others have others."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import rfc8785
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from control_plane.model.errors import ContractViolation
from control_plane.model.ids import MAX_DEPTH, canonical_instant, canonical_json, derive_event_id, storable

type Observation = dict[str, Any]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0, 1e16, 1e21, 1e22, 1e23, 0.1, 1e-7, 5e-324, 2.0**53, 2.0**53 + 2, -1.7976931348623157e308]
)
integers = st.integers(-(2**53) + 1, 2**53 - 1)
# Doubles with whole values may be written as integers of any length: 1e22 comes back from jsonb as 10**22.
big_integers = floats.filter(lambda number: number.is_integer()).map(int)
payloads = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | integers | big_integers | floats | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
instants = st.datetimes(
    # Within a day of the calendar's ends, some time zones cannot write an instant. Hypothesis needs naive bounds.
    min_value=datetime(1, 1, 3),  # noqa: DTZ001 - as said above
    max_value=datetime(9999, 12, 29),  # noqa: DTZ001 - likewise
    timezones=st.just(UTC),
)
offsets = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))
observations: st.SearchStrategy[Observation] = st.fixed_dictionaries(
    {
        "source": texts,
        "event_type": texts,
        "entity_id": st.none() | texts,
        "series": texts,
        "occurred_at": instants,
        "schema_version": st.integers(1, 100),
        "revision": st.integers(0, 100),
        "payload": payloads,
    }
)
FIELDS = ["source", "event_type", "entity_id", "series", "occurred_at", "schema_version", "revision", "payload"]


def comparable(value: Any) -> Any:
    """Returns values that are equal exactly if the JSON values are: in Python, True == 1 as well."""
    match value:
        case bool():
            return ("boolean", value)
        case int() | float():
            return ("number", float(value))
        case dict():
            return {key: comparable(item) for key, item in value.items()}
        case list():
            return [comparable(item) for item in value]
        case _:
            return value


def reordered(value: Any, data: st.DataObject) -> Any:
    match value:
        case dict():
            items = data.draw(st.permutations(list(value.items())))
            return {key: reordered(item, data) for key, item in items}
        case list():
            return [reordered(item, data) for item in value]
        case _:
            return value


def respelled(value: Any, data: st.DataObject) -> str:
    """Returns JSON text of the value, with each number in one of the many ways to write it."""
    match value:
        case bool() | None | str():
            return json.dumps(value, ensure_ascii=data.draw(st.booleans()))
        case int() | float():
            number = float(value)
            spellings = [repr(number), f"{number:.17e}", f"{number:.16E}", format(Decimal(repr(number)), "f")]
            if number.is_integer():
                spellings += [f"{int(number)}.0", f"{int(number)}e0", str(int(number))]
            if number == 0:
                spellings += ["0", "-0", "-0.0", "0e5"]
            spelling = data.draw(st.sampled_from(spellings))
            assume(float(spelling) == number)  # 17 digits are always enough; the chosen number may be too small.
            return spelling
        case dict():
            members = [f"{json.dumps(key)}: {respelled(item, data)}" for key, item in value.items()]
            return "{" + ", ".join(members) + "}"
        case _:
            return "[" + " ,".join(respelled(item, data) for item in value) + "]"


@given(observations)
@settings(deadline=None)
def test_the_same_observation_has_the_same_id(observation: Observation) -> None:
    assert derive_event_id(**observation) == derive_event_id(**observation)


@given(observations, st.data())
@settings(deadline=None)
def test_key_order_makes_no_difference(observation: Observation, data: st.DataObject) -> None:
    again = observation | {"payload": reordered(observation["payload"], data)}
    assert derive_event_id(**again) == derive_event_id(**observation)


@given(observations, st.data())
@settings(deadline=None)
def test_the_spelling_of_numbers_makes_no_difference(observation: Observation, data: st.DataObject) -> None:
    again = observation | {"payload": json.loads(respelled(observation["payload"], data))}
    assert derive_event_id(**again) == derive_event_id(**observation)


@pytest.mark.parametrize(
    ("spellings", "number"),
    [
        (["0", "-0", "0.0", "-0.0", "0e0", "1e-400"], 0),
        (["1", "1.0", "1e0", "10e-1", "0.1E+1"], 1),
        (["1e22", "1E+22", "10000000000000000000000", "10000000000000000000000.0"], 1e22),
        (["1e23", "100000000000000000000000", "99999999999999991611392"], 1e23),
        (["9007199254740992", "9007199254740992.0", "9.007199254740992e15"], 2**53),
        (["0.1", "1e-1", "0.1000000000000000055511151231257827"], 0.1),
    ],
)
def test_one_number_has_one_canonical_form(spellings: list[str], number: float) -> None:
    assert {canonical_json(json.loads(spelling)) for spelling in spellings} == {canonical_json(number)}


@given(observations, offsets)
@settings(deadline=None)
def test_time_zone_of_an_instant_makes_no_difference(observation: Observation, offset: timezone) -> None:
    elsewhere = observation | {"occurred_at": observation["occurred_at"].astimezone(offset)}
    assert derive_event_id(**elsewhere) == derive_event_id(**observation)


@pytest.mark.parametrize("field", FIELDS)
@given(observations, observations)
@settings(deadline=None)
def test_another_value_of_any_one_field_gives_another_id(
    field: str, observation: Observation, other: Observation
) -> None:
    assume(comparable(observation[field]) != comparable(other[field]))
    assert derive_event_id(**(observation | {field: other[field]})) != derive_event_id(**observation)


@given(observations, floats, floats)
@example(
    {"source": "", "event_type": "", "entity_id": None, "occurred_at": datetime.min.replace(tzinfo=UTC)}
    | {"series": "", "schema_version": 1, "revision": 0, "payload": {}},
    0.1 + 0.2,
    0.3,
)
@settings(deadline=None)
def test_the_last_bit_of_a_number_makes_another_id(observation: Observation, one: float, other: float) -> None:
    assume(one != other)
    ids = {derive_event_id(**(observation | {"payload": {"price": price}})) for price in (one, other)}
    assert len(ids) == 2


@given(payloads)
@settings(deadline=None)
def test_settling_a_value_twice_changes_nothing(payload: dict[str, Any]) -> None:
    once = storable(payload)
    assert comparable(storable(once)) == comparable(once) == comparable(payload)


@given(payloads)
@settings(deadline=None)
def test_a_settled_value_survives_json(payload: dict[str, Any]) -> None:
    settled = storable(payload)
    assert canonical_json(json.loads(json.dumps(settled, allow_nan=False))) == canonical_json(settled)


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        (float("nan"), "payload.a", "is not a finite number (got nan)"),
        (float("inf"), "payload.a", "is not a finite number (got inf)"),
        (-float("inf"), "payload.a", "is not a finite number (got -inf)"),
        ("a\0b", "payload.a", r"holds a character that JSON text cannot store (got 'a\x00b')"),
        ("\ud800", "payload.a", r"holds a character that JSON text cannot store (got '\ud800')"),
        ({"\udfff": 1}, "payload.a", r"holds a character that JSON text cannot store (got '\udfff')"),
        ([0, {"b": ["\0"]}], "payload.a[1].b[0]", r"holds a character that JSON text cannot store (got '\x00')"),
        ({1: 2}, "payload.a", "has a key that is not text (got [1])"),
        (2**53 + 1, "payload.a", "is an integer that a JSON number cannot hold exactly (got 9007199254740993)"),
        (10**309, "payload.a", "is larger than any JSON number (got 1000"),
        pytest.param(
            10**5000, "payload.a", "is larger than any JSON number (got a int too large to show)", id="10**5000"
        ),
        (Decimal(1), "payload.a", "is not a JSON value (got Decimal('1'))"),
        (b"bytes", "payload.a", "is not a JSON value (got b'bytes')"),
        (datetime(2026, 1, 5, tzinfo=UTC), "payload.a", "is not a JSON value (got datetime.datetime(2026"),
    ],
)
def test_values_unfit_for_json_or_postgres_are_refused(value: object, field: str, reason: str) -> None:
    with pytest.raises(ContractViolation) as refusal:
        storable({"a": value})
    assert refusal.value.field == field
    assert str(refusal.value).startswith(f"{field}: {reason}")


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_bounded() -> None:
    assert storable(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    with pytest.raises(ContractViolation, match=r"\]: is nested deeper than 64 levels"):
        storable(nested(MAX_DEPTH + 1))
    with pytest.raises(ContractViolation, match="is nested deeper than 64 levels"):
        storable(nested(100_000))


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (datetime(2026, 1, 5, 14, 32, tzinfo=UTC), "2026-01-05T14:32:00Z"),
        (datetime(2026, 1, 5, 14, 32, 0, 1, tzinfo=UTC), "2026-01-05T14:32:00.000001Z"),
        (datetime(2026, 1, 5, 14, 32, 0, 500_000, tzinfo=UTC), "2026-01-05T14:32:00.500000Z"),
        (datetime(2026, 1, 5, 9, 32, tzinfo=timezone(-timedelta(hours=5))), "2026-01-05T14:32:00Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
    ],
)
def test_an_instant_has_one_text(instant: datetime, text: str) -> None:
    assert canonical_instant(instant) == text


def test_an_instant_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ContractViolation, match="occurred_at: is an instant without a time zone"):
        canonical_instant(datetime(2026, 1, 5, 14, 32))  # noqa: DTZ001 – that is the case


def test_an_instant_that_utc_cannot_write_is_refused() -> None:
    with pytest.raises(ContractViolation, match="since: is out of range in UTC"):
        canonical_instant(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))), field="since")


plain = st.recursive(
    st.none() | st.booleans() | integers | texts | st.lists(integers, max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aZ_~\x01") | texts, inner, max_size=3),
    max_leaves=8,
)


SPELLED_BY_RULE = (
    0.0, -0.0, 1.0, -3.0, 100.5, 1e-4, 9.999e-5, 1e-5, -1.5e-6, 1e-7, 5e-324,
    2.0**53 - 1, 2.0**53, 1e16, 1.5e17, 1e21, 1e300,
)  # fmt: skip
"""Floats about which Python and RFC 8785 differ, or nearly do."""


@pytest.mark.parametrize("number", SPELLED_BY_RULE)
def test_a_float_is_written_as_rfc8785_writes_it(number: float) -> None:
    assert canonical_json({"a": [number]}) == rfc8785.dumps({"a": [number or 0.0]})


@given(plain | payloads | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1, 1))
@settings(deadline=None)
def test_canonical_json_is_what_rfc8785_writes(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(storable(value))
