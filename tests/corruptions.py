"""Corrupted texts: a proposal or its action written as a careless or hostile writer would."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.judgements import Case, json_bytes

EXTRA = ("evil", "is_approved", "action", "__class__", "severity ")
HOSTILE = (
    b"NaN", b"1e999", b"-Infinity", b'"\\ud800"', b'"\\u0000"', b'"\xe2\x80\xae"', b"[" * 40 + b"]" * 40, b"null",
    b"true", b"1.0", b'"1"', b"{}", b"[]", b"-1", b"1e3", b"99999999999999999999", b'"' + b"x" * 200 + b'"', b"0",
)  # fmt: skip


def corrupt(random: Random, case: Case) -> None:
    """Writes the proposal or its action of a case as other bytes."""
    of_action = random.random() < 0.4
    value = case.action if of_action else case.proposal
    text = random.choice(CORRUPTIONS)(random, value)
    if of_action:
        case.action_bytes = text
    else:
        case.body = text


def _spelled_otherwise(random: Random, value: dict[str, Any]) -> bytes:
    """The same value with other white space and order of keys: fine for a proposal, not for what is hashed."""
    names = list(value)
    random.shuffle(names)
    return json.dumps({name: value[name] for name in names}, indent=random.choice((None, 1))).encode()


def _flipped(random: Random, value: dict[str, Any]) -> bytes:
    text = bytearray(json_bytes(value))
    for _ in range(random.choice((1, 1, 3))):
        text[random.randrange(len(text))] = random.randrange(256)
    return bytes(text)


def _cut(random: Random, value: dict[str, Any]) -> bytes:
    text = json_bytes(value)
    return text[: random.randrange(len(text))]


def _key_twice(random: Random, value: dict[str, Any]) -> bytes:
    name = random.choice(list(value))
    return json_bytes(value)[:-1] + b"," + json_bytes(name) + b":" + json_bytes(value[name]) + b"}"


def _hostile_value(random: Random, value: dict[str, Any]) -> bytes:
    name = random.choice(list(value))
    mark = "@@@"
    return json_bytes(value | {name: mark}).replace(json_bytes(mark), random.choice(HOSTILE))


def _extra_field(random: Random, value: dict[str, Any]) -> bytes:
    return json_bytes(value | {random.choice(EXTRA): random.choice((True, 1, "x", None))})


def _field_missing(random: Random, value: dict[str, Any]) -> bytes:
    gone = random.choice(list(value))
    return json_bytes({name: item for name, item in value.items() if name != gone})


def _claims_corrupted(random: Random, value: dict[str, Any]) -> bytes:
    claims = value.get("claims")
    if not isinstance(claims, dict):
        return _hostile_value(random, value)
    inner = random.choice((_hostile_value, _extra_field, _field_missing, _key_twice))(random, claims)
    return json_bytes(value | {"claims": "@@@"}).replace(b'"@@@"', inner)


def _wrapped(random: Random, value: dict[str, Any]) -> bytes:
    text = json_bytes(value)
    return random.choice(
        (b"[" + text + b"]", text + text, b"```json\n" + text + b"\n```", b"\xef\xbb\xbf" + text, text + b" " * 65536)
    )


CORRUPTIONS: tuple[Callable[[Random, dict[str, Any]], bytes], ...] = (
    _spelled_otherwise, _flipped, _cut, _key_twice, _hostile_value, _hostile_value, _extra_field, _field_missing,
    _claims_corrupted, _claims_corrupted, _wrapped,
)  # fmt: skip
