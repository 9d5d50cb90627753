from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from acp_cli.status import Report, duration
from control_plane.ops.dead_letters import DeadLetter
from control_plane.ops.horizon import HorizonHolder
from control_plane.ops.status import (
    ConsumerCount,
    ConsumerLag,
    DeliveryCount,
    EventCount,
    LingeringRelay,
    PipelineStatus,
    StrandedDeliveries,
)
from control_plane.platform.breakers import Breaker
from drills.record import DrillRecord
from local_cloud.queues import QueueDepth

NOW = datetime(2024, 1, 10, 14, 32, tzinfo=UTC)


def report(
    *deliveries: DeliveryCount, queues: tuple[QueueDepth, ...] = (), breakers: tuple[Breaker, ...] = ()
) -> Report:
    return Report(
        services={"PostgreSQL": "127.0.0.1:5432"},
        pipeline=PipelineStatus(
            deliveries=deliveries,
            events=[
                EventCount("yfinance", "MARKET_TICK_INGESTED", 7, NOW),
                EventCount("yfinance", "SOURCE_FETCH_FAILED", 2, NOW),
            ],
            consumers=[ConsumerCount("signal_lab", 5, NOW)],
            breakers=breakers,
        ),
        queues=queues,
        relay_subscriptions={"signal_lab", "system_events"},
    )


def letter(number: int, **changes: Any) -> DeadLetter:
    made = DeadLetter(
        id=number,
        subscription="signal_lab",
        topic="market.ticks",
        event_id=UUID(int=number),
        event_type="MARKET_TICK_INGESTED",
        trace_id=UUID(int=1),
        operation_id=None,
        delivery_attempts=5,
        reason="gave up after 5 attempts: [denied]",
        dead_lettered_at=NOW,
        age_seconds=200.0,
        resolution=None,
        resolved_at=None,
        resolved_by=None,
    )
    return replace(made, **changes)


def shown(of: Report, *, width: int = 80) -> str:
    console = Console(width=width, file=StringIO(), record=True)
    console.print(of.render())
    return console.export_text()


def test_the_json_holds_what_the_metrics_would_show() -> None:
    content = report(
        DeliveryCount("signal_lab", "market.ticks", "pending", 2, 5.0),
        DeliveryCount("signal_lab", "market.ticks", "delivered", 40, 99.0),
        DeliveryCount("system_events", "system.events", "retrying", 1, 30.0),
        DeliveryCount("system_events", "system.events", "in_flight", 3, 1.0),
        queues=(QueueDepth("MarketTicksQueue", 4, 1),),
    ).to_dict()
    assert content["status"] == "ok"
    assert content["outbox"] == {
        "pending": 2,
        "in_flight": 3,
        "retrying": 1,
        "delivered": 40,
        "dead_lettered": 0,
        "open": 6,
        "oldest_pending_age_seconds": 30.0,
    }
    assert content["source_failures"] == 2
    assert content["queues"] == {"MarketTicksQueue": {"visible": 4, "in_flight": 1}}
    assert content["subscriptions"]["signal_lab"] == {
        "topic": "market.ticks",
        "pending": 2,
        "in_flight": 0,
        "retrying": 0,
        "delivered": 40,
        "dead_lettered": 0,
    }
    json.dumps(content, default=str)


MOVED = "to be moved into the list of dead letters: scripts/acp logs dead-letter"


@pytest.mark.parametrize(
    ("delivery", "queue", "problem"),
    [
        (
            DeliveryCount("signal_lab", "market.ticks", "dead_lettered", 3, 9.0),
            None,
            "3 dead letters: scripts/acp dead-letters",
        ),
        (
            DeliveryCount("signal_lab", "market.ticks", "pending", 1, 600.0),
            None,
            "the oldest pending message is 10 min old",
        ),
        (None, QueueDepth("MarketTicksDeadLetterQueue", 2, 1), f"3 in MarketTicksDeadLetterQueue, {MOVED}"),
        (None, QueueDepth("FailedInvocationsQueue", 1, 0), f"1 in FailedInvocationsQueue, {MOVED}"),
    ],
)
def test_every_problem_makes_the_status_degraded(
    delivery: DeliveryCount | None, queue: QueueDepth | None, problem: str
) -> None:
    content = report(*([delivery] if delivery else []), queues=(queue,) if queue else ()).to_dict()
    assert content["status"] == "degraded"
    assert content["problems"] == [problem]


@pytest.mark.parametrize(
    ("breaker", "problem"),
    [
        (
            Breaker("q", "open", 3, NOW, 24.6, None, "timed out"),
            "has been open since 2024-01-10 14:32:00Z, next probe in 25 s, last error: timed out",
        ),
        (
            Breaker("q", "open", 3, NOW, -70, None, "timed out"),
            "has been open since 2024-01-10 14:32:00Z, the next run probes it, last error: timed out",
        ),
        (
            Breaker("q", "half_open", 3, NOW, 180, None, "timed out"),
            "has been half-open since 2024-01-10 14:32:00Z, being probed, again in 3 min, last error: timed out",
        ),
        (
            Breaker("q", "half_open", 0, NOW, 0),
            "has been half-open since 2024-01-10 14:32:00Z, the next run probes it",
        ),
        (Breaker("q", "open", 0, NOW, held_by="Ada"), "has been held open by Ada since 2024-01-10 14:32:00Z"),
        (
            Breaker("q", "open", 9, NOW.astimezone(timezone(timedelta(hours=-5))), held_by="Ada", last_error="denied"),
            "has been held open by Ada since 2024-01-10 14:32:00Z, last error: denied",
        ),
        (
            Breaker("q", "open", 9, NOW, held_by="Ada", held_reason="it moves", last_error="denied"),
            "has been held open by Ada since 2024-01-10 14:32:00Z, because: it moves, last error: denied",
        ),
    ],
)
def test_a_shut_breaker_degrades_the_status_and_is_explained(breaker: Breaker, problem: str) -> None:
    degraded = report(breakers=(Breaker("p", "closed", 2, last_error="timed out"), breaker))
    assert degraded.problems == [f"the breaker of q {problem}"]
    content = json.loads(json.dumps(degraded.to_dict(), default=str))
    assert content["status"] == "degraded"
    assert [(each["name"], each["state"]) for each in content["breakers"]] == [("p", "closed"), ("q", breaker.state)]


def test_a_breaker_that_is_closed_is_no_problem() -> None:
    assert report(breakers=(Breaker("q", "closed", 2, last_error="timed out"),)).problems == []


def test_who_pins_the_transaction_horizon_is_named() -> None:
    fine = report()
    holder = HorizonHolder("session", "1234", "alice", "psql", 1500.0, 70)
    pinned = replace(fine, pipeline=replace(fine.pipeline, pinned_horizon=holder))
    assert pinned.problems == [
        "the transaction horizon has been pinned for 25 min by session 1234 (alice, psql): dead rows pile up"
    ]
    content = pinned.to_dict()
    assert content["status"] == "degraded"
    json.dumps(content, default=str)


def test_messages_on_their_way_and_old_deliveries_are_no_problem() -> None:
    fine = report(
        DeliveryCount("signal_lab", "market.ticks", "delivered", 9, 1e6),
        queues=(QueueDepth("MarketTicksQueue", 99, 9),),
    )
    assert fine.problems == []


def test_the_tables_name_each_subscription_queue_and_consumer() -> None:
    text = shown(
        report(
            DeliveryCount("signal_lab", "market.ticks", "pending", 12, 65.0),
            queues=(QueueDepth("MarketTicksQueue", 4, 1),),
        )
    )
    for part in ("All is well.", "signal_lab", "12", "65 s", "MarketTicksQueue", "source failures"):
        assert part in text


def test_the_newest_dead_letters_are_named_with_the_next_command() -> None:
    fine = report(DeliveryCount("signal_lab", "market.ticks", "dead_lettered", 1, 9.0))
    text = shown(replace(fine, pipeline=replace(fine.pipeline, dead_letters=[letter(7)])))
    assert "7            signal_lab    3 min  gave up after 5 attempts: [denied]" in text
    assert "scripts/acp redrive ID… sends them again" in text


def test_the_headline_names_dead_letters_reasons_and_the_remedy() -> None:
    fine = report(DeliveryCount("signal_lab", "market.ticks", "dead_lettered", 5, 9.0))
    letters = [letter(number, reason="denied") for number in (9, 8, 7, 6, 5)]
    (problem,) = replace(fine, pipeline=replace(fine.pipeline, dead_letters=letters)).problems
    assert problem == (
        "5 dead letters (9 for signal_lab: denied; 8 for signal_lab: denied; 7 for signal_lab: denied; and 2 more, see "
        "scripts/acp dead-letters). Once the cause is mended: scripts/acp redrive 9 8 7"
    )


def test_a_consumer_that_lags_is_named_with_where_to_look() -> None:
    fine = report(DeliveryCount("signal_lab", "market.ticks", "delivered", 9, None))
    lag = ConsumerLag("signal_lab", 4, 600.0, UUID(int=7))
    lagging = replace(fine, pipeline=replace(fine.pipeline, consumer_lag=[lag]))
    (problem,) = lagging.problems
    assert problem == (
        "4 delivered to signal_lab and not processed, the oldest 10 min ago: scripts/acp trace "
        "00000000-0000-0000-0000-000000000007, scripts/acp logs signal-lab"
    )
    (row,) = [line for line in shown(lagging).splitlines() if line.startswith("signal_lab")]
    assert row.split() == ["signal_lab", "0", "0", "0", "9", "4", "0", "–"]
    assert lagging.to_dict()["consumer_lag"][0]["count"] == 4


def test_a_recent_delivery_is_no_lag() -> None:
    lag = ConsumerLag("signal_lab", 4, 20.0, UUID(int=7))
    assert replace(report(), pipeline=PipelineStatus([], [], [], consumer_lag=[lag])).problems == []


def test_status_fits_eighty_columns() -> None:
    counts = [
        DeliveryCount("system_events", "system.events", state, 123_456, 1e6)
        for state in ("pending", "in_flight", "retrying", "delivered", "dead_lettered")
    ]
    full = report(*counts)
    text = shown(replace(full, pipeline=replace(full.pipeline, dead_letters=[letter(1234567, reason="x" * 200)])))
    (row,) = [line for line in text.splitlines() if line.startswith("system_events")]
    assert row.split() == ["system_events", *["123456"] * 4, "–", "123456", "12", "d"]
    assert text.count("x") >= 200


def test_deliveries_of_a_removed_subscription_are_named() -> None:
    fine = report(DeliveryCount("detector", None, "pending", 3, 1.0))
    stranded = replace(fine.pipeline, stranded=[StrandedDeliveries("detector", 3, was_removed=False)])
    (problem,) = replace(fine, pipeline=stranded).problems
    assert problem.startswith("3 pending for detector, which is not in the table of subscriptions")


def test_deliveries_for_a_subscription_unknown_to_the_relay_are_named() -> None:
    (problem,) = report(
        DeliveryCount("detector", "market.ticks", "pending", 3, 1.0),
        DeliveryCount("detector", "market.ticks", "retrying", 1, 1.0),
        DeliveryCount("former", "market.ticks", "delivered", 9, None),
    ).problems
    assert problem == (
        "4 pending for detector, which the relay has no queue for: name it in the template's SUBSCRIPTION_QUEUE_URLS, "
        "and deploy it"
    )


def test_a_breaker_that_nobody_guards_with_is_no_problem() -> None:
    assert report(breakers=(Breaker("former", "open", 3, NOW, 24.6, is_guarded=False),)).problems == []


def test_a_duration_is_shown_in_a_suitable_unit() -> None:
    assert [duration(seconds) for seconds in (0.4, 119, 120, 7200, 200_000)] == ["0 s", "119 s", "2 min", "2 h", "2 d"]


def test_an_interrupted_drill_is_a_problem_with_its_remedy() -> None:
    left = DrillRecord("poison", pid=1, created=0.0)
    content = replace(report(), drill=left).to_dict()
    assert content["status"] == "degraded"
    assert content["problems"] == [
        "the drill poison was cut off before it had put everything right: scripts/acp drill --mend"
    ]


def test_people_see_a_short_relay_name_scripts_the_whole() -> None:
    stream = "2026/11/25/[$LATEST]58f528fba487b4c820bd81146ddf067f"
    relay = LingeringRelay(stream, datetime(2026, 11, 25, 10, 35, tzinfo=UTC))
    lingering = replace(report(), pipeline=PipelineStatus([], [], [], lingering_relay=relay))
    assert "lingering relay  58f528fba487, since 10:35:00Z" in shown(lingering)
    assert lingering.to_dict()["lingering_relay"]["name"] == stream
