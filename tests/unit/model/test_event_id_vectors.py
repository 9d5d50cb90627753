"""The published derivation of ids, as printed in docs/event_contract.md: a change here would change every id."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from control_plane.model.ids import EVENT_NAMESPACE, derive_event_id


@dataclass(frozen=True)
class Vector:
    observation: Mapping[str, Any]
    canonical: str
    event_id: str


VECTORS = [
    pytest.param(
        Vector(
            observation={
                "source": "yfinance",
                "event_type": "MARKET_TICK_INGESTED",
                "entity_id": "AAPL",
                "series": "1m",
                "revision": 0,
                "occurred_at": datetime(2026, 1, 5, 9, 32, tzinfo=timezone(timedelta(hours=-5))),
                "schema_version": 1,
                "payload": {
                    "price": 267.26,
                    "open": 267.0,
                    "high": 267.5,
                    "low": 266.94,
                    "volume": 48211,
                    "currency": "USD",
                    "interval": "1m",
                },
            },
            canonical='{"entity_id":"AAPL","event_type":"MARKET_TICK_INGESTED","occurred_at":"2026-01-05T14:32:00Z",'
            '"payload":{"currency":"USD","high":267.5,"interval":"1m","low":266.94,"open":267,"price":267.26,'
            '"volume":48211},"revision":0,"schema_version":1,"series":"1m","source":"yfinance"}',
            event_id="80a6b352-9c1d-543c-8b41-643f25989461",
        ),
        id="a market tick",
    ),
    pytest.param(
        Vector(
            observation={
                "source": "yfinance",
                "event_type": "MARKET_TICK_INGESTED",
                "entity_id": "AAPL",
                "series": "1m",
                "revision": 2,
                "occurred_at": datetime(2026, 1, 5, 9, 32, tzinfo=timezone(timedelta(hours=-5))),
                "schema_version": 1,
                "payload": {
                    "price": 267.26,
                    "open": 267.0,
                    "high": 267.5,
                    "low": 266.94,
                    "volume": 48211,
                    "currency": "USD",
                    "interval": "1m",
                },
            },
            canonical='{"entity_id":"AAPL","event_type":"MARKET_TICK_INGESTED","occurred_at":"2026-01-05T14:32:00Z",'
            '"payload":{"currency":"USD","high":267.5,"interval":"1m","low":266.94,"open":267,"price":267.26,'
            '"volume":48211},"revision":2,"schema_version":1,"series":"1m","source":"yfinance"}',
            event_id="0536a3f2-e433-59a2-9794-e56d437b22d4",
        ),
        id="the same tick again, as the third revision",
    ),
    pytest.param(
        Vector(
            observation={
                "source": "yfinance",
                "event_type": "SOURCE_FETCH_FAILED",
                "entity_id": None,
                "series": "",
                "revision": 0,
                "occurred_at": datetime(2026, 1, 5, 14, 32, 0, 250_000, tzinfo=UTC),
                "schema_version": 1,
                "payload": {"symbol": "ÉTÉ.PA", "kind": "unreachable", "reason": 'it said "no" 🙃\n'},
            },
            canonical='{"entity_id":null,"event_type":"SOURCE_FETCH_FAILED","occurred_at":"2026-01-05T14:32:00.250000Z",'
            '"payload":{"kind":"unreachable","reason":"it said \\"no\\" 🙃\\n","symbol":"ÉTÉ.PA"},'
            '"revision":0,"schema_version":1,"series":"","source":"yfinance"}',
            event_id="e5949991-d4e2-5f08-a4d6-a7bc4303471f",
        ),
        id="text and a fraction of a second",
    ),
    pytest.param(
        Vector(
            observation={
                "source": "s",
                "event_type": "T",
                "entity_id": "e",
                "series": "é/1d",
                "revision": 2147483647,
                "occurred_at": datetime(1, 1, 1, tzinfo=UTC),
                "schema_version": 2,
                "payload": {
                    "numbers": [-0.0, 1e21, 10**22, 1e-7, 0.1, 5e-324, 1.7976931348623157e308, 2**53, -1.50],
                    # By UTF-16 code units the emoji (D83D …) comes before U+FB33; by code points it would not.
                    "\ufb33": [True, None],
                    "😀": {},
                },
            },
            canonical='{"entity_id":"e","event_type":"T","occurred_at":"0001-01-01T00:00:00Z","payload":{"numbers":'
            "[0,1e+21,1e+22,1e-7,0.1,5e-324,1.7976931348623157e+308,9007199254740992,-1.5],"
            '"😀":{},"\ufb33":[true,null]},"revision":2147483647,"schema_version":2,"series":"é/1d","source":"s"}',
            event_id="4ef7f848-a118-5c0c-9bc7-c381cfbec797",
        ),
        id="numbers and the order of keys",
    ),
]


@pytest.mark.parametrize("vector", VECTORS)
def test_the_event_id_of_a_published_observation_never_changes(vector: Vector) -> None:
    assert str(derive_event_id(**vector.observation)) == vector.event_id


@pytest.mark.parametrize("vector", VECTORS)
def test_event_id_is_the_rfc_9562_uuid_of_canonical_text(vector: Vector) -> None:
    digest = bytearray(hashlib.sha1(EVENT_NAMESPACE.bytes + vector.canonical.encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50  # version 5
    digest[8] = digest[8] & 0x3F | 0x80  # the variant of RFC 9562
    assert str(UUID(bytes=bytes(digest))) == vector.event_id


@pytest.mark.parametrize("vector", VECTORS)
def test_the_canonical_text_says_what_the_observation_says(vector: Vector) -> None:
    said = json.loads(vector.canonical)
    assert said.pop("occurred_at").startswith(vector.observation["occurred_at"].astimezone(UTC).isoformat()[:19])
    assert said == {name: value for name, value in vector.observation.items() if name != "occurred_at"}


def test_the_namespace_never_changes() -> None:
    assert str(EVENT_NAMESPACE) == "31d75e86-4a2a-4b67-9c84-a98c9ae12e17"
