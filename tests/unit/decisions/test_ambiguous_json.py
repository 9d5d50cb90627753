"""JSON that two readers could understand differently is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.decisions.strict_json import parse
from control_plane.model.errors import ContractViolation

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab\u00e9\u20ac {}[]:\"'"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None)
@given(VALUES)
def test_plain_json_is_read_as_it_is(value: Any) -> None:
    assert parse(json.dumps(value).encode(), most_bytes=65_536, most_depth=16) == value


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'"\xff"', "is not UTF-8"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"b": [{"a": 1, "\\u0061": 2}]}', "twice"),
        (b'"a\\nb"', "control character"),
        (b'{"\\u202e": 1}', "invisible"),
        (b'"\\ud800"', "lone surrogate"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "Infinity"),
        (b"1e999", "beyond any number"),
        (b"[-1e999]", "beyond any number"),
        (b"9" * 5000, "cannot be read"),
        (b"[" * 17 + b"]" * 17, "deeper than 16"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "deeper than 16"),
        (b"[" * 60_000, "deeper than 16"),
        (b'"' + b"x" * 65_536 + b'"', "65536 is the most"),
    ],
)
def test_what_is_ambiguous_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ContractViolation, match=reason):
        parse(raw, most_bytes=65_536, most_depth=16)


def test_brackets_within_texts_have_no_depth() -> None:
    assert parse(b'["' + b"[" * 100 + b'\\"["]', most_bytes=1000, most_depth=2) == ["[" * 100 + '"[']


def test_texts_are_taken_as_they_are_where_that_is_asked() -> None:
    assert parse(b'"a\\nb"', most_bytes=10, most_depth=1, check_texts=False) == "a\nb"


def test_a_key_given_twice_is_found_in_one_look() -> None:
    """To count each key among all would take minutes."""
    many = b"{%b}" % b",".join(b'"k%d":0' % (number % 150_000) for number in range(150_001))
    with pytest.raises(ContractViolation, match="'k0' twice"):
        parse(many, most_bytes=len(many), most_depth=1)
