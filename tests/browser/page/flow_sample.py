"""An answer of GET /flow as a busy deployment gives it."""

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any


def _minutes(level: float, luck: random.Random) -> list[int]:
    return [max(0, round(level * (1 + 0.35 * math.sin(n / 7) + luck.uniform(-0.25, 0.25)))) for n in range(60)]


def _part(name: str, level: float, luck: random.Random, **about: Any) -> dict[str, Any]:
    minutes = _minutes(level, luck)
    return {
        "name": name, "minutes": minutes, "last_minute": minutes[-1], "backlog": None, "oldest_age_seconds": None,
        "failed_hour": 0,
    } | about  # fmt: skip


def _stage(stage: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    backlogs = [part["backlog"] for part in parts if part["backlog"] is not None]
    ages = [part["oldest_age_seconds"] for part in parts if part["oldest_age_seconds"] is not None]
    return {
        "stage": stage,
        "minutes": [sum(column) for column in zip(*(part["minutes"] for part in parts), strict=True)],
        "last_minute": sum(part["last_minute"] for part in parts),
        "backlog": sum(backlogs) if backlogs else None,
        "oldest_age_seconds": max(ages) if ages else None,
        "failed_hour": sum(part["failed_hour"] for part in parts),
        "parts": parts,
    }


def busy_flow(*, hostile: str = "") -> dict[str, Any]:
    """Returns a flow in which something is open in every place; ``hostile`` stands where others write text."""
    luck = random.Random(7)
    now = datetime.now(UTC)

    def ago(**span: float) -> str:
        return (now - timedelta(**span)).isoformat().replace("+00:00", "Z")

    return {
        "at": ago(),
        "stages": [
            _stage("source", [_part("yfinance", 60, luck, oldest_age_seconds=12.4, failed_hour=2)]),
            _stage("store", [_part("market.ticks", 1180, luck), _part("system.events", 4, luck)]),
            _stage(
                "outbox",
                [
                    _part("detector", 1180, luck, backlog=310, oldest_age_seconds=1.9),
                    _part("signal_lab", 1180, luck, backlog=12_480, oldest_age_seconds=412.0, failed_hour=7),
                    _part(hostile or "system_events", 4, luck, backlog=0),
                ],
            ),
            _stage(
                "queue",
                [
                    _part("detector", 1175, luck, backlog=96, oldest_age_seconds=0.8),
                    _part("signal_lab", 1160, luck, backlog=2_204, oldest_age_seconds=31.0),
                ],
            ),
            _stage("consumer", [_part("detector", 1175, luck), _part("signal_lab", 1150, luck, failed_hour=1)]),
            _stage("decision", [_part("unusual_bar", 0.4, luck, backlog=3, oldest_age_seconds=260.0)]),
            _stage("action", [_part("HEDGE", 0.2, luck, backlog=0)]),
        ],
        "waiting": {
            "approvals": 1,
            "oldest_approval_age_seconds": 94.0,
            "dead_letters": 7,
            "oldest_dead_letter_age_seconds": 5_400.0,
        },
        "dead_letters": [
            {
                "id": 40 - n,
                "kind": "relay",
                "subscription": "signal_lab",
                "dead_lettered_at": ago(minutes=4 + n),
                "reason": hostile or "gave up after 5 attempts: SQS answered 503: ServiceUnavailable",
            }
            for n in range(3)
        ],
        "spending": {"spent_micros": 412_300, "limit_micros": 5_000_000},
        "open_breakers": [
            {
                "name": "subscription:signal_lab",
                "state": "open",
                "opened_at": ago(minutes=7),
                "retry_at": (now + timedelta(seconds=23)).isoformat(),
                "last_error": hostile or "SQS answered 503 to SendMessageBatch: ServiceUnavailable",
            }
        ],
        "switches_off": [
            {"scope": "action:HEDGE", "since": ago(hours=2), "reason": hostile or "the desk is closed", "by": "kim"}
        ],
        "operations": [
            {
                "operation_id": "5b0c7d8e-0000-4000-8000-000000000001",
                "kind": "redrive",
                "state": "running",
                "done": 4_210,
                "total": 9_800,
                "is_stalled": False,
            }
        ],
    }


def quiet_flow() -> dict[str, Any]:
    """Returns the flow of a deployment in which all is well and nothing happens."""
    flow = busy_flow()
    nothing = {"minutes": [0] * 60, "last_minute": 0, "oldest_age_seconds": None, "failed_hour": 0}
    for stage in flow["stages"]:
        stage.update(nothing, parts=[], backlog=None if stage["backlog"] is None else 0)
    return flow | {
        "waiting": {
            "approvals": 0,
            "oldest_approval_age_seconds": None,
            "dead_letters": 0,
            "oldest_dead_letter_age_seconds": None,
        },
        "dead_letters": [],
        "spending": {"spent_micros": None, "limit_micros": None},
        "open_breakers": [],
        "switches_off": [],
        "operations": [],
    }
