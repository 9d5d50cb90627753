"""What finance gathers, observes and remembers, from bars in Postgres."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.finance import (
    SOURCE,
    anomaly,
    closes,
    correct,
    decision,
    dividend,
    fold,
    gathered,
    hold,
    instant,
    past,
    recorded,
    split,
    tick,
    wobble,
)

from control_plane.platform.database import connect
from domains.finance.deciding.evidence import gather_evidence
from domains.finance.deciding.outcome import observe_outcome

LAST = 300


@pytest.fixture
def decide(database: TestDatabase) -> Iterator[Connection[Any]]:
    with connect(database.url("acp_decide"), application_name="test") as connection:
        yield connection


@pytest.fixture
def market(app: Connection[Any], owner: Connection[Any]) -> Connection[Any]:
    """Three stocks that wobble for 300 minutes; AAPL then falls by 20 %."""
    for entity in ("AAPL", "IBM", "MSFT"):
        values = wobble(LAST, entity=entity)
        past(owner, entity, values)
        fallen = values[-1] * (0.8 if entity == "AAPL" else 1.001)
        closes(app, entity, [round(fallen, 4)], first=LAST)
    hold(owner, AAPL=100, IBM=50)
    return app


def test_evidence_has_the_shape_of_the_docs(market: Connection[Any], decide: Connection[Any]) -> None:
    found = gathered(decide, minute=LAST)
    assert found["problem"] is None
    assert found["bar"]["return_ppm"] == found["bar"]["adjusted_return_ppm"] == pytest.approx(-200_000, abs=20)
    assert len(found["returns_ppm"]) == 260
    assert found["z_milli"] < -12_000
    assert found["severity"] == 4
    market_said = {name: found["market"][name] for name in ("entities", "fell", "is_market_wide")}
    assert market_said == {"entities": 3, "fell": 1, "is_market_wide": False}
    assert [each["entity_id"] for each in found["portfolio"]["positions"]] == ["AAPL", "IBM"]
    values = [each["value_micros"] for each in found["portfolio"]["positions"]]
    assert found["portfolio"]["value_micros"] == sum(values) + 10_000 * 10**6
    assert [len(each["returns_ppm"]) for each in found["portfolio"]["positions"]] == [261, 261]


def test_evidence_has_no_float_and_fits_a_step(market: Connection[Any], decide: Connection[Any]) -> None:
    found = gathered(decide, minute=LAST)
    known = {name: value for name, value in found.items() if name != "anomaly"}
    assert "." not in json.dumps(known, default=str).replace("known before it.", "")
    assert len(json.dumps(found)) < 60_000


def test_later_bars_change_no_evidence(market: Connection[Any], decide: Connection[Any]) -> None:
    told = anomaly(decide, entity="AAPL", minute=LAST)
    before = gather_evidence(decide, decision(minute=LAST), told)
    for entity in ("AAPL", "IBM", "MSFT"):
        closes(market, entity, wobble(20, entity=entity, start=90), first=LAST + 1)
    fold(market, [split(2, entity="AAPL", minute=LAST + 3)])
    assert gather_evidence(decide, decision(minute=LAST), told) == before


def test_a_split_is_in_the_evidence_and_not_in_the_return(market: Connection[Any], decide: Connection[Any]) -> None:
    values = wobble(3, entity="AAPL", start=80)
    closes(market, "AAPL", [*values, round(values[-1] / 2, 4)], first=LAST + 1)
    fold(market, [split(2, entity="AAPL", minute=LAST + 4)])
    found = gathered(decide, minute=LAST + 4)
    assert found["bar"]["return_ppm"] == pytest.approx(-500_000, abs=20)
    assert abs(found["bar"]["adjusted_return_ppm"]) < 20
    assert found["corporate_actions"] == [
        {"kind": "split", "occurred_at": "2026-01-05T19:04:00Z", "ratio_ppm": 2_000_000}
    ]


def test_a_dividend_is_added_to_the_return(market: Connection[Any], decide: Connection[Any]) -> None:
    fold(market, [dividend(2.0, entity="IBM", minute=LAST + 1)])
    last = wobble(LAST, entity="IBM")[-1] * 1.001
    closes(market, "IBM", [round(last - 2, 4)], first=LAST + 1)
    bar = gathered(decide, entity="IBM", minute=LAST + 1)["bar"]
    assert bar["return_ppm"] < -10_000
    assert abs(bar["adjusted_return_ppm"]) < 20


def test_a_market_that_falls_together_is_told(market: Connection[Any], decide: Connection[Any]) -> None:
    for entity in ("AAPL", "IBM", "MSFT"):
        closes(market, entity, [60.0], first=LAST + 1)
    found = gathered(decide, entity="IBM", minute=LAST + 1)
    assert found["market"]["is_market_wide"]
    assert found["market"]["fell"] == 3


def test_a_corrected_bar_is_a_problem(market: Connection[Any], decide: Connection[Any]) -> None:
    told = anomaly(decide, entity="AAPL", minute=LAST)
    correct(market, 70.0, entity="AAPL", minute=LAST)
    assert "corrected" in gather_evidence(decide, decision(minute=LAST), told)["problem"]


@pytest.mark.parametrize("minute", [LAST + 50, 5])
def test_a_bar_that_is_missing_or_new_is_a_problem(
    market: Connection[Any], decide: Connection[Any], minute: int
) -> None:
    assert gathered(decide, minute=minute)["problem"] is not None


def test_neighbours_are_episodes_that_had_ended(market: Connection[Any], decide: Connection[Any]) -> None:
    closes(market, "AAPL", wobble(20, entity="AAPL", start=80), first=LAST + 1)
    closes(market, "IBM", wobble(20, entity="IBM", start=80), first=LAST + 1)
    closes(market, "IBM", [60.0], first=LAST + 21)
    found = gathered(decide, entity="IBM", minute=LAST + 21)["neighbours"]
    distances = [each["distance_ppm"] for each in found]
    assert found
    assert distances == sorted(distances)
    assert ("AAPL", "2026-01-05T19:00:00Z") in {(each["entity_id"], each["occurred_at"]) for each in found}
    ended = decide.execute("SELECT max(ended_at) FROM episodes WHERE source = %s", [SOURCE]).fetchone()
    assert ended is not None
    assert ended[0] <= instant(LAST + 21)


def test_an_episode_of_a_corrected_bar_is_forgotten(market: Connection[Any], decide: Connection[Any]) -> None:
    closes(market, "AAPL", wobble(20, entity="AAPL", start=80), first=LAST + 1)
    closes(market, "AAPL", [50.0], first=LAST + 21)
    fallen = ("AAPL", "2026-01-05T19:00:00Z")

    def found() -> set[tuple[str, str]]:
        neighbours = gathered(decide, minute=LAST + 21)["neighbours"]
        return {(each["entity_id"], each["occurred_at"]) for each in neighbours}

    assert fallen in found()
    correct(market, wobble(LAST, entity="AAPL")[-1], entity="AAPL", minute=LAST)
    assert fallen not in found()
    correct(market, 70.0, entity="AAPL", minute=LAST)
    assert fallen in found()


def followed(connection: Connection[Any], minute: int) -> int | None:
    row = connection.execute("SELECT followed_ppm FROM episodes WHERE occurred_at = %s", [instant(minute)]).fetchone()
    return None if row is None else int(row[0])


def test_what_followed_an_episode_is_corrected_with_its_bars(market: Connection[Any], decide: Connection[Any]) -> None:
    closes(market, "AAPL", [80.0] * 20 + [50.0], first=LAST + 1)
    gathered(decide, minute=LAST + 21)
    before = followed(decide, LAST)
    correct(market, 88.0, entity="AAPL", minute=LAST + 5)
    gathered(decide, minute=LAST + 21)
    after = followed(decide, LAST)
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(100_000, rel=0.2)


def test_an_episode_that_was_never_near_a_decision_is_found(owner: Connection[Any], decide: Connection[Any]) -> None:
    values = wobble(1_000, entity="GOOG")
    past(owner, "GOOG", [*values[:100], *(round(value * 0.8, 4) for value in values[100:])])
    gathered(decide, entity="GOOG", minute=999)
    assert followed(decide, 100) is not None


def test_a_second_search_changes_nothing(market: Connection[Any], decide: Connection[Any]) -> None:
    closes(market, "AAPL", [80.0] * 20, first=LAST + 1)
    gathered(decide, minute=LAST + 20)
    rows = decide.execute("SELECT xmin::text, occurred_at FROM episodes ORDER BY 2").fetchall()
    gathered(decide, minute=LAST + 20)
    assert decide.execute("SELECT xmin::text, occurred_at FROM episodes ORDER BY 2").fetchall() == rows
    assert rows


def options(notional: int) -> dict[str, Any]:
    action = {"side": "sell", "notional_micros": notional}
    return {
        "options": [
            {"name": "do_nothing", "action": None, "cost_micros": 0},
            {"name": "hedge_small", "action": action, "cost_micros": 1_000},
        ]
    }


def test_the_outcome_waits_for_the_horizon(market: Connection[Any], decide: Connection[Any]) -> None:
    about = decision(minute=LAST)
    record = recorded(about, ("evidence", gathered(decide, minute=LAST)), ("observing", {}))
    closes(market, "AAPL", [80.0, 81.0, 82.0, 83.0], first=LAST + 1)
    assert observe_outcome(decide, record, 5, about.opened_at) is None
    late = about.opened_at + timedelta(days=5)
    found = observe_outcome(decide, record, 5, late)
    assert found is not None
    assert found["state"] == "unobservable"
    assert found["forecasts"] == []


def test_the_outcome_scores_every_forecast(market: Connection[Any], decide: Connection[Any]) -> None:
    about = decision(minute=LAST)
    evidence = gathered(decide, minute=LAST)
    close = evidence["bar"]["close_micros"] / 10**6
    forecasts = [
        {"event": "large_move", "threshold_ppm": 50_000, "probability_ppm": 800_000},
        {"event": "loss_beyond_var95", "threshold_ppm": 50_000, "probability_ppm": 50_000},
    ]
    answer = {"outcome": "answered", "seq": 1, "answer": {"forecasts": forecasts}, "answer_sha256": "00"}
    record = recorded(
        about,
        ("evidence", evidence),
        ("calls", {"state": "gathering", "calls": [{"agent": "seer", "agent_version": "3"}]}),
        ("simulation", options(1_000_000_000)),
        ("observing", {}),
    )
    answers = recorded(about, ("answers", {"answers": {"seer": answer}})).steps[0]
    steps = [*record.steps]
    steps.append(type(answers)(4, 1, "answers", "engine", answers.at, answers.body))
    record = type(record)(record.decision, steps)
    closes(market, "AAPL", [round(close * factor, 4) for factor in (1.01, 1.02, 1.03, 1.04, 1.10)], first=LAST + 1)
    closes(market, "IBM", wobble(5, entity="IBM"), first=LAST + 1)
    found = observe_outcome(decide, record, 5, about.opened_at)
    assert found is not None
    assert found["move_ppm"] == pytest.approx(100_000, abs=20)
    assert [(each["agent"], each["forecast"], each["happened"]) for each in found["forecasts"]] == [
        ("seer", "large_move", True),
        ("seer", "loss_beyond_var95", False),
    ]
    assert [each["brier_ppm"] for each in found["forecasts"]] == [40_000, 2_500]
    assert found["forecasts"][0]["agent_version"] == "3"
    nothing, hedge = found["options"]
    assert nothing["against_nothing_micros"] == 0
    assert hedge["against_nothing_micros"] == pytest.approx(-100_000_000, rel=1e-3)
    assert hedge["result_micros"] == nothing["result_micros"] + hedge["against_nothing_micros"]


def test_a_split_within_the_horizon_is_no_move(market: Connection[Any], decide: Connection[Any]) -> None:
    about = decision(minute=LAST)
    evidence = gathered(decide, minute=LAST)
    close = evidence["bar"]["close_micros"] / 10**6
    fold(market, [split(2, entity="AAPL", minute=LAST + 3)])
    closes(market, "AAPL", [close, close, close / 2, close / 2, close / 2], first=LAST + 1)
    found = observe_outcome(decide, recorded(about, ("evidence", evidence)), 5, about.opened_at)
    assert found is not None
    assert abs(found["move_ppm"]) < 20


def test_prices_below_zero_are_a_problem(app: Connection[Any], owner: Connection[Any], decide: Connection[Any]) -> None:
    past(owner, "OIL", wobble(80, entity="OIL", start=20))
    fold(app, [tick(-37.63, entity="OIL", minute=80, low=-40.0, high=-30.0)])
    assert gathered(decide, entity="OIL", minute=80)["problem"] == "A price is not positive."
