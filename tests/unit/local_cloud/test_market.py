from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from domains.finance.yfinance_source import YFinanceSource
from local_cloud import market
from local_cloud.cloud import Cloud, UpOptions, _choose_market
from local_cloud.errors import AcpError, UsageError
from local_cloud.market import REPLAYED, SOURCES, Market, MarketChoice
from local_cloud.progress import Progress
from local_cloud.run_state import RunState
from local_cloud.workspace import Workspace
from market_replay.prices import SYMBOLS

if TYPE_CHECKING:
    from pathlib import Path


def yahoo(monkeypatch: pytest.MonkeyPatch, problem: str | None) -> None:
    monkeypatch.setattr(market, "_yahoo_problem", lambda: problem)


def test_yahoo_is_chosen_where_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    yahoo(monkeypatch, None)
    assert market.choose(MarketChoice.AUTO) == Market(MarketChoice.YAHOO, "it answers")


def test_the_replay_replaces_an_unreachable_yahoo_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    yahoo(monkeypatch, "it answers 429")
    chosen = market.choose(MarketChoice.AUTO)
    assert chosen.source is MarketChoice.REPLAY
    assert "it answers 429" in chosen.reason


def test_a_requested_yahoo_that_is_unreachable_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yahoo(monkeypatch, "it cannot be reached")
    with pytest.raises(AcpError, match="it cannot be reached"):
        market.choose(MarketChoice.YAHOO)


def test_the_replay_that_was_asked_for_does_not_try_yahoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "_yahoo_problem", lambda: pytest.fail("tried"))
    assert market.choose(MarketChoice.REPLAY).source is MarketChoice.REPLAY


@pytest.mark.parametrize("choice", SOURCES)
def test_the_source_is_called_as_its_events_are(choice: MarketChoice) -> None:
    url = "http://127.0.0.1:1" if choice is MarketChoice.REPLAY else None
    assert YFinanceSource(market_data_url=url).name == SOURCES[choice]


def test_up_names_symbols_missing_from_the_replay_before_any_change(tmp_path: Path) -> None:
    options = UpOptions(MarketChoice.REPLAY, None, None, {"Symbols": "AAPL,NOPE,ZZZ"})
    with pytest.raises(UsageError) as refused:
        Cloud(Workspace(tmp_path, tmp_path, tmp_path / "state")).up(options, Progress())
    lines = str(refused.value).splitlines()
    assert [line for line in lines if "NOPE" in line] == ["  NOPE: unknown to the replay"]
    assert [line for line in lines if "ZZZ" in line] == ["  ZZZ: unknown to the replay"]
    assert REPLAYED in lines[-1]
    assert not (tmp_path / "state").exists()


def test_the_symbols_that_are_named_are_the_replays_own() -> None:
    assert REPLAYED.replace(" and ", ", ").split(", ") == list(SYMBOLS)
    market.refuse_unknown(",".join(SYMBOLS))
    market.refuse_unknown("")


def up(tmp_path: Path, **options: Any) -> None:
    Cloud(Workspace(tmp_path, tmp_path, tmp_path / "state")).up(UpOptions(**options), Progress())


@pytest.mark.parametrize("day", ["1999-01-01", "2013-03-02", "yesterday"])
def test_up_from_a_day_that_the_replay_lacks_is_refused(tmp_path: Path, day: str) -> None:
    with pytest.raises(UsageError, match="cannot start at"):
        up(tmp_path, from_day=day)
    assert not (tmp_path / "state").exists()


def test_yahoo_starts_at_no_day(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--from is for the replay"):
        up(tmp_path, market=MarketChoice.YAHOO, from_day="2008-09-26")


def test_a_day_is_chosen_once_with_the_symbols_it_has() -> None:
    run = RunState()
    _choose_market(run, MarketChoice.AUTO, "2000-09-29")
    assert (run.market_source, run.market_from) == ("replay", "2000-09-29")
    assert run.parameters == {"Symbols": "AAPL,IBM,MSFT"}
    at = run.market_from_at
    _choose_market(run, MarketChoice.AUTO, "2000-09-29")
    _choose_market(run, MarketChoice.AUTO, None)
    assert (run.market_from, run.market_from_at) == ("2000-09-29", at)
    with pytest.raises(UsageError, match="a fresh database"):
        _choose_market(run, MarketChoice.AUTO, "2005-02-28")
