"""Strict JSON: what is refused, and that what passes means the same to every reader."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.decisions.strict_json import MOST_BYTES, MOST_DEPTH, NotStrictJson, parse, parse_object
from control_plane.model.text import has_invisible


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b'{"a":{"b":1,"b":2}}', "twice"),
        (b'{"a":1,"\\u0061":2}', "twice"),
        (b"NaN", "NaN"),
        (b'{"a":Infinity}', "Infinity"),
        (b"[-Infinity]", "Infinity"),
        (b"1e999", "beyond"),
        (b"-1e999", "beyond"),
        (b"1" * 5000, "cannot be read"),
        (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), "deeper"),
        (b"[" * 60_000, "deeper"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "deeper"),
        (b'"' + b"x" * MOST_BYTES + b'"', "bytes"),
        (b'"\xff"', "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"\\ud800":1}', "lone surrogate"),
        (b'"a\\u0000b"', "control"),
        (b'"a\\nb"', "control"),
        (b'"a\nb"', "not JSON"),
        ('"a\u202eb"'.encode(), "control"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b"[1,]", "not JSON"),
        (b"01", "not JSON"),
        (b"\x00", "not JSON"),
    ],
)
def test_json_in_more_than_one_sense_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(NotStrictJson, match=reason):
        parse(text)


@pytest.mark.parametrize("text", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_another_value_than_an_object_is_refused_where_one_is_wanted(text: bytes) -> None:
    with pytest.raises(NotStrictJson, match="object"):
        parse_object(text)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, -3, True, None, "text"], "b": {"c": {}}},
        {"brackets": "[" * 100 + '\\"' + "{" * 100},
        "ß𝄞",
        1e308,
        json.loads("[" * MOST_DEPTH + "]" * MOST_DEPTH),
    ],
    ids=range(5),
)
def test_what_is_plain_passes_unchanged(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20).filter(lambda text: not has_invisible(text)),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(max_size=8).filter(lambda text: not has_invisible(text)), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_what_python_wrote_is_read_back(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        value = parse(text)
    except NotStrictJson:
        return
    assert json.loads(text) == value
