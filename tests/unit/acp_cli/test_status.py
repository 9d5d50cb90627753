from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from rich.console import Console

from acp_cli.status import QueueDepth, Report, duration
from control_plane.ops.status import ConsumerCount, EventCount, PipelineStatus, PromiseCount

NOW = datetime(2024, 1, 10, 14, 32, tzinfo=UTC)


def report(*promises: PromiseCount, queues: tuple[QueueDepth, ...] = ()) -> Report:
    return Report(
        services={"PostgreSQL": "127.0.0.1:5432"},
        pipeline=PipelineStatus(
            promises=promises,
            events=[
                EventCount("yfinance", "MARKET_TICK_INGESTED", 7, NOW),
                EventCount("yfinance", "SOURCE_FETCH_FAILED", 2, NOW),
            ],
            consumers=[ConsumerCount("signal_lab", 5, NOW)],
        ),
        queues=queues,
    )


def test_the_json_holds_what_the_metrics_would_show() -> None:
    content = report(
        PromiseCount("market.ticks", "pending", 2, 5.0),
        PromiseCount("market.ticks", "delivered", 40, 99.0),
        PromiseCount("system.events", "retrying", 1, 30.0),
        PromiseCount("system.events", "in_flight", 3, 1.0),
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
    json.dumps(content, default=str)


@pytest.mark.parametrize(
    ("promise", "queue", "problem"),
    [
        (PromiseCount("market.ticks", "dead_lettered", 3, 9.0), None, "3 dead-lettered in the outbox"),
        (PromiseCount("market.ticks", "pending", 1, 600.0), None, "the oldest pending promise is 10 min old"),
        (None, QueueDepth("MarketTicksDeadLetterQueue", 2, 1), "3 in MarketTicksDeadLetterQueue"),
        (None, QueueDepth("FailedInvocationsQueue", 1, 0), "1 in FailedInvocationsQueue"),
    ],
)
def test_each_thing_a_person_should_look_at_makes_it_degraded(
    promise: PromiseCount | None, queue: QueueDepth | None, problem: str
) -> None:
    content = report(*([promise] if promise else []), queues=(queue,) if queue else ()).to_dict()
    assert content["status"] == "degraded"
    assert content["problems"] == [problem]


def test_messages_on_their_way_and_old_deliveries_are_no_problem() -> None:
    fine = report(PromiseCount("market.ticks", "delivered", 9, 1e6), queues=(QueueDepth("MarketTicksQueue", 99, 9),))
    assert fine.problems == []


def test_the_tables_name_each_topic_state_queue_and_consumer() -> None:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(
            report(
                PromiseCount("market.ticks", "pending", 12, 65.0), queues=(QueueDepth("MarketTicksQueue", 4, 1),)
            ).render()
        )
    text = capture.get()
    for part in ("All is well.", "market.ticks", "12", "65 s", "MarketTicksQueue", "signal_lab", "source failures"):
        assert part in text


def test_a_duration_is_said_in_its_fitting_unit() -> None:
    assert [duration(seconds) for seconds in (0.4, 119, 120, 7200, 200_000)] == ["0 s", "119 s", "2 min", "2 h", "2 d"]
