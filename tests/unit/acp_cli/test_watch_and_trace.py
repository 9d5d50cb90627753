from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from acp_cli.pipeline_commands import _print_changes, deliveries_table, id_digits
from acp_cli.symbols import split_symbols
from local_cloud.errors import UsageError

EVENT_ID = UUID("6f0c2f3a-0000-5000-8000-000000000001")
ROW: dict[str, Any] = {
    "id": 7,
    "created_at": datetime(2024, 1, 10, 14, 32, 1, tzinfo=UTC),
    "topic": "market.ticks",
    "subscription": "signal_lab",
    "operation_id": None,
    "state": "dead_lettered",
    "delivery_attempts": 5,
    "last_error": "[denied]",
    "event_id": EVENT_ID,
    "event_type": "MARKET_TICK_INGESTED",
    "source": "yfinance-replay",
    "entity_id": "BTC-USD",
    "payload_json": {"price": 1.5},
    "processed_by": ["signal_lab"],
}


def shown(width: int, **changes: Any) -> list[str]:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(deliveries_table([ROW | changes], width=width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_eighty_columns_hold_time_entity_state_and_short_id() -> None:
    head, row = shown(80)
    assert head.split() == ["stored", "entity", "state", "event", "id", "subscription", "tries"]
    assert row.split() == ["14:32:01", "BTC-USD", "dead-lettered", "6f0c2f3a…", "signal_lab", "5"]


def test_columns_are_dropped_and_none_is_squeezed() -> None:
    assert shown(45)[1].split() == ["14:32:01", "BTC-USD", "dead-lettered", "6f0c2f3a…"]
    assert str(EVENT_ID) in shown(180)[1]
    for width in range(45, 181):
        assert shown(width)[1].count("…") <= 1, width


def test_a_message_without_a_subscription_is_shown() -> None:
    assert "nobody" in shown(80, subscription=None, state=None)[1]


def test_watch_prints_one_json_object_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[tuple[object, ...], tuple[object, ...]] = {}
    for state in ("pending", "pending", "delivered"):
        _print_changes([ROW | {"state": state}], seen, as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["state"], second["state"]) == ("pending", "delivered")
    assert first["event_id"] == str(EVENT_ID)
    assert first["created_at"] == "2024-01-10T14:32:01+00:00"
    assert first["payload"] == {"price": 1.5}


@pytest.mark.parametrize("text", ["6f0c2f3a", "6F0C2F3A…", "6f0c2f3a...", "6f0c2f3a-0000", str(EVENT_ID), EVENT_ID.hex])
def test_an_id_may_be_cut_short(text: str) -> None:
    digits = id_digits(text)
    assert digits
    assert EVENT_ID.hex.startswith(digits)


@pytest.mark.parametrize("text", ["", "…", "AAPL", str(EVENT_ID) + "0"])
def test_text_that_begins_no_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no event id"):
        id_digits(text)


@pytest.mark.parametrize("words", [["aapl", "MSFT"], ["AAPL,MSFT"], ["AAPL, msft,", "AAPL"], [" AAPL\tMSFT "]])
def test_symbols_may_be_separated_by_spaces_or_commas(words: list[str]) -> None:
    assert split_symbols(words) == ["AAPL", "MSFT"]
