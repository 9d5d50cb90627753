"""What a backfill may ask for: the filter is checked and absolute, and the plan's pieces are frozen."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.operations_of import operation_of

from control_plane.model.backfill import MOST_PIECES
from control_plane.operations.backfill.kind import Backfill, backfill_wanted, piece_of
from control_plane.operations.kind import OperationRefused
from domains.finance.yahoo_reach import YAHOO

NOW = datetime(2026, 3, 10, 14, 30, 20, tzinfo=UTC)
NO_CONNECTION: Any = None
FILE = {"file": "a" * 64, "pieces": 1, "observed_at": "2013-03-02T00:00:00Z"}


def kind(now: datetime = NOW) -> Backfill:
    def ask(_: Any) -> Any:
        raise AssertionError("planning asks for nothing")

    return Backfill([YAHOO], ask, now=lambda: now)


def wanted(**changes: Any) -> dict[str, Any]:
    asked = backfill_wanted(["AAPL", "IBM"], since="2026-02-20T00:00:00Z", until=None, interval="1m")
    return {name: value for name, value in (asked | changes).items() if value != "left out"}


def test_the_filter_is_absolute_and_says_what_was_not_asked() -> None:
    assert kind().parse(wanted(since="2026-02-20T01:00:00+01:00")) == {
        "source": "yfinance",
        "symbols": ["AAPL", "IBM"],
        "interval": "1m",
        "since": "2026-02-20T00:00:00Z",
        "until": "2026-03-10T14:30:20Z",
        "publish": True,
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"since": "2026-01-01T00:00:00Z"},
            "1m of the last 29 days alone: since must be 2026-02-09T14:30:20Z or later (it is 2026-01-01T00:00:00Z)",
        ),
        (
            {"interval": "1h", "since": "2020-01-01T00:00:00Z"},
            "since must be 2024-03-11T14:30:20Z or later (it is 2020-01-01T00:00:00Z). Farther back it serves 1d",
        ),
        ({"interval": "5m"}, "yfinance has no interval '5m': it has 1m, 1h, 1d"),
        ({"interval": ["1m"]}, "yfinance has no interval ['1m']: it has 1m, 1h, 1d"),
        ({"source": "bloomberg"}, "'bloomberg' is no source with a past: there are yfinance"),
        ({"since": "yesterday"}, "since is 'yesterday': it must be an instant with its time zone"),
        ({"since": "2026-02-20T00:00:00"}, "since is '2026-02-20T00:00:00': it must be an instant with its time zone"),
        ({"since": "left out"}, "since is None: it must be an instant"),
        ({"until": "2026-02-20T00:00:00Z"}, "since is not before until"),
        ({"since": "2027-01-01T00:00:00Z"}, "since is not before until, or lies ahead"),
        ({"symbols": []}, "symbols"),
        ({"symbols": "left out"}, "symbols"),
        ({"symbols": ["AAPL; DROP TABLE events"]}, "symbols"),
        ({"publish": "no"}, "publish must be true or false"),
        ({"speed": 3}, "the filter of a backfill has no field 'speed': it may have interval, publish, since, source"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_with_what_can(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(OperationRefused) as refused:
        kind().parse(wanted(**changes))
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"observed_at": None}, "observed_at is None"),
        ({"observed_at": "2027-01-01T00:00:00Z"}, "observed_at lies ahead"),
        ({"file": "a"}, "64 hexadecimal digits"),
        ({"pieces": 0}, "pieces must be a whole number"),
        ({"pieces": True}, "pieces must be a whole number"),
        ({"source": "decisions"}, "source must be the name of a source"),
        ({"source": "a\nb"}, "source must be the name of a source"),
        ({"symbols": ["AAPL"]}, "has no field 'symbols'"),
    ],
)
def test_a_file_needs_its_hash_and_when_it_was_observed(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(OperationRefused, match=reason):
        kind().parse(FILE | changes)


def test_the_plan_has_a_piece_for_each_symbol_and_window() -> None:
    chosen = kind().parse(wanted(until="2026-03-08T00:00:00Z"))
    plan = kind().plan(NO_CONNECTION, operation_of("backfill", chosen)).plan
    assert plan["windows"] == [
        ["2026-02-20T00:00:00Z", "2026-02-27T00:00:00Z"],
        ["2026-02-27T00:00:00Z", "2026-03-06T00:00:00Z"],
        ["2026-03-06T00:00:00Z", "2026-03-08T00:00:00Z"],
    ]
    assert plan["total"] == 6
    operation = operation_of("backfill", chosen, plan=plan)
    pieces = [piece_of(operation, place) for place in range(6)]
    assert [(piece["symbols"], piece["since"]) for piece in pieces] == [
        ([symbol], since) for symbol in ("AAPL", "IBM") for since, _ in plan["windows"]
    ]
    assert plan["sample"] == [
        {name: piece[name] for name in ("symbols", "since", "until", "interval")} for piece in pieces[:5]
    ]
    assert "beside the live flow" in plan["effect"]


def test_a_plan_made_a_little_later_still_reaches_as_far_back() -> None:
    chosen = kind().parse(wanted(since="2026-02-09T14:30:20Z"))
    kind(NOW + timedelta(minutes=5)).plan(NO_CONNECTION, operation_of("backfill", chosen))
    with pytest.raises(OperationRefused, match="last 29 days"):
        kind(NOW + timedelta(hours=2)).plan(NO_CONNECTION, operation_of("backfill", chosen))


def test_too_many_pieces_are_refused() -> None:
    symbols = [f"S{number}" for number in range(200)]
    asked = kind().parse(wanted(symbols=symbols, interval="1d", since="1970-01-01T00:00:00Z"))
    with pytest.raises(OperationRefused, match=f"that is 2400 pieces, and at most {MOST_PIECES}"):
        kind().plan(NO_CONNECTION, operation_of("backfill", asked))
