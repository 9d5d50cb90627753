from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from acp_cli.timeline import instant, render_timeline
from control_plane.ops.timeline import EventTimeline
from control_plane.platform.breakers import Breaker

EVENT: dict[str, Any] = {
    "event_id": "6f0c2f3a-0000-5000-8000-000000000001",
    "event_type": "MARKET_TICK_INGESTED",
    "source": "yfinance",
    "entity_id": "BTC-USD",
    "trace_id": "0af76519-16cd-43dd-8448-eb211c80319c",
    "occurred_at": "2024-01-10T14:31:00+00:00",
    "ingested_at": "2024-01-10T14:32:01.5+00:00",
    "revision": 0,
    "payload": {"price": 1.5, "currency": "USD"},
}
DELIVERY: dict[str, Any] = {
    "topic": "market.ticks",
    "subscription": "signal_lab",
    "operation_id": None,
    "state": "delivered",
    "delivery_attempts": 2,
    "created_at": "2024-01-10T14:32:01.5+00:00",
    "promised_at": None,
    "next_attempt_at": "2024-01-10T14:32:31+00:00",
    "delivered_at": "2024-01-10T14:32:10+00:00",
    "message_id": "m-1",
    "dead_lettered_at": None,
    "claimed_by": None,
    "last_error": None,
    "dead_letter_id": None,
    "resolution": None,
    "resolved_at": None,
    "resolved_by": None,
    "redriven_by": None,
    "failures": [
        {"attempt": 1, "failed_at": "2024-01-10T14:32:05+00:00", "error": "[throttled]", "claimed_by": "relay-a"}
    ],
}


def shown(breakers: dict[str, Breaker] | None = None, **changes: Any) -> str:
    parts: dict[str, Any] = {
        "event": EVENT,
        "raw_payload": {"id": "r-1", "fetched_at": "2024-01-10T14:32:01+00:00", "source": "yfinance"},
        "deliveries": [DELIVERY],
        "processing": [{"consumer": "signal_lab", "processed_at": "2024-01-10T14:32:11+00:00"}],
    } | changes
    timeline = EventTimeline(**parts)
    console = Console(width=200, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(render_timeline(timeline, breakers))
    return capture.get()


def test_a_timeline_runs_from_raw_payload_to_each_consumer() -> None:
    text = shown()
    marks = [
        "fetched from yfinance",
        "raw payload r-1",
        "stored",
        "for signal_lab (market.ticks): delivered after 2 attempts",
    ]
    marks += ["attempt 1 failed: [throttled] (relay-a)", "delivered as message m-1", "processed by signal_lab"]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert EVENT["trace_id"] in text


def test_a_dead_letter_says_why_and_that_nobody_processed_it() -> None:
    dead = DELIVERY | {
        "state": "dead_lettered",
        "delivered_at": None,
        "message_id": None,
        "dead_lettered_at": "2024-01-10T14:33:00+00:00",
        "last_error": "gave up after 5 attempts: denied",
        "dead_letter_id": 7,
    }
    text = shown(deliveries=[dead], processing=[], raw_payload=None)
    assert "dead-lettered" in text
    assert "dead-lettered: gave up after 5 attempts: denied" in text
    assert "send it again: scripts/acp redrive 7" in text
    assert "no consumer has processed it" in text


def test_a_redriven_message_shows_both_deliveries() -> None:
    given_up = DELIVERY | {
        "state": "redriven",
        "delivered_at": None,
        "message_id": None,
        "dead_lettered_at": "2024-01-10T14:33:00+00:00",
        "last_error": "gave up after 1 attempts: denied",
        "resolution": "redriven",
        "resolved_at": "2024-01-10T15:00:00+00:00",
        "resolved_by": "ada",
        "redriven_by": "op-1",
    }
    again = DELIVERY | {
        "operation_id": "op-1",
        "delivery_attempts": 1,
        "delivered_at": "2024-01-10T15:00:02+00:00",
        "failures": [],
    }
    text = shown(deliveries=[given_up, again])
    marks = [
        "for signal_lab (market.ticks): redriven after 2 attempts",
        "attempt 1 failed: [throttled] (relay-a)",
        "14:33:00.000Z  dead-lettered: gave up after 1 attempts: denied",
        "15:00:00.000Z  redriven by ada",
        "15:00:00.000Z  again for signal_lab (market.ticks): delivered after 1 attempt",
        "operation op-1",
        "15:00:02.000Z  delivered as message m-1",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert "send it again" not in text


def test_a_message_without_a_subscription_says_that_nobody_gets_it() -> None:
    assert "its topic had no subscription, or a backfill did not publish it" in shown(deliveries=[], processing=[])


def test_a_corrected_event_says_which_revision_it_is() -> None:
    assert "in one transaction, revision 2" in shown(event=EVENT | {"revision": 2})
    assert "revision" not in shown()


def test_an_open_delivery_says_its_holder_or_next_attempt() -> None:
    still = DELIVERY | {"delivered_at": None, "message_id": None}
    assert "claimed by relay-a until 14:32:31.000Z" in shown(
        deliveries=[still | {"state": "in_flight", "claimed_by": "relay-a"}]
    )
    assert "14:32:31.000Z  next attempt; last error: throttled" in shown(
        deliveries=[still | {"state": "retrying", "last_error": "throttled"}]
    )


def test_an_instant_is_converted_to_utc() -> None:
    assert instant("2024-01-10T09:32:00-05:00") == "14:32:00.000Z"
    assert instant("2024-01-10T23:32:00.5-05:00", with_date=True) == "2024-01-11 04:32:00.500Z"


def test_a_held_message_says_its_holder_and_how_to_resume() -> None:
    held = Breaker("signal_lab", "open", opened_at=datetime(2024, 1, 10, 14, tzinfo=UTC), held_by="[kim]")
    pending = DELIVERY | {"state": "pending", "delivery_attempts": 0, "delivered_at": None, "failures": []}
    text = shown(breakers={"signal_lab": held}, deliveries=[pending], processing=[])
    assert "held by [kim] since 2024-01-10 14:00:00.000Z; scripts/acp resume signal_lab lets it go" in text
    assert "held by" not in shown(breakers={"signal_lab": held}), "it was delivered before"


def test_a_message_behind_an_open_breaker_says_why_it_waits() -> None:
    opened = Breaker("signal_lab", "open", 3, datetime(2024, 1, 10, 14, tzinfo=UTC), 20, last_error="denied")
    pending = DELIVERY | {"state": "pending", "delivery_attempts": 0, "delivered_at": None, "failures": []}
    text = shown(breakers={"signal_lab": opened}, deliveries=[pending], processing=[])
    assert "waits: the breaker of signal_lab has been open since 2024-01-10 14:00:00.000Z; last error: denied" in text
