"""Finance's decisions from the bar to the outcome: detector, engine, agents, gatekeeper, each under its own role."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration.decisions.finance import LAST, STOCKS, closes, fold, instant, split, wobble

from backtest.services import PatientPlaybook, Services, plug_ins
from control_plane.decisions.record import load, load_record
from control_plane.decisions.replay import replay
from control_plane.model.deciding import Record
from domains import load_deciding
from domains.finance.deciding.playbook import UnusualBar


@pytest.fixture
def services(database: TestDatabase) -> Iterator[Services]:
    with Services(database.url, plug_ins()) as opened:
        yield opened


def fall(connection: Connection[Any], entity: str, factor: float) -> float:
    close = round(wobble(LAST, entity=entity)[-1] * factor, 4)
    closes(connection, entity, [close], first=LAST)
    return close


def decide(services: Services, app: Connection[Any]) -> list[Record]:
    """Lets every anomaly so far be decided on; returns the records, the first one first."""
    services.show_bars(app, until=instant(LAST))
    rows = app.execute("SELECT payload_json::text FROM outbox WHERE topic = 'decisions.work' ORDER BY id").fetchall()
    services.skip_messages(app)
    for (text,) in rows:
        services.decide_on(app, text)
    found = app.execute("SELECT decision_id FROM decisions ORDER BY opened_at").fetchall()
    records = [load_record(services.decide, decision_id) for (decision_id,) in found]
    return [record for record in records if record is not None]


def states(record: Record) -> list[str]:
    return [step.body["state"] for step in record.all("state")]


def test_one_stocks_fall_is_hedged_without_a_person(market: Connection[Any], services: Services) -> None:
    close = fall(market, "AAPL", 0.5)
    for entity in ("IBM", "MSFT"):
        fall(market, entity, 1.0)
    closes(market, "AAPL", [round(close * 0.9, 4)] * 5, first=LAST + 1)
    record, *_ = decide(services, market)
    assert states(record) == ["released", "executed"]
    assert record.decision.state == "scored"
    ordered = "SELECT side, quantity_micros, fill_price_micros IS NOT NULL FROM paper_orders"
    assert market.execute(ordered).fetchall() == [("sell", 10_000_000, False)]
    services.show_bars(market)
    assert market.execute(ordered).fetchall() == [("sell", 10_000_000, True)]
    proposal, outcome = record.last("proposal"), record.last("outcome")
    assert proposal is not None
    assert (proposal.body["action_type"], proposal.body["hypothesis"]) == ("HEDGE", "single_name_fall")
    assert outcome is not None
    assert outcome.body["move_ppm"] == pytest.approx(-100_000, abs=20)
    hedge = next(each for each in outcome.body["options"] if each["name"] == "hedge_small")
    assert hedge["against_nothing_micros"] > 0
    scored = market.execute(
        "SELECT agent, forecast FROM agent_scores WHERE decision_id = %s ORDER BY 1", [record.decision.decision_id]
    ).fetchall()
    assert scored == [
        ("action_recommender", "large_move"),
        ("financial_impact", "loss_beyond_var95"),
        ("pattern_recognition", "large_move"),
        ("signal_detection", "large_move"),
    ]


def test_a_falling_market_asks_a_person(market: Connection[Any], services: Services) -> None:
    for entity in STOCKS:
        fall(market, entity, 0.8)
    first, *others = decide(services, market)
    assert states(first) == ["awaiting_approval", "approved", "released", "executed"]
    assert [states(record) for record in others] == [["refused"], ["refused"]]


def test_a_split_that_came_before_the_decision_opens_none(market: Connection[Any], services: Services) -> None:
    fall(market, "AAPL", 0.5)
    fold(market, [split(2, entity="AAPL", minute=LAST)])
    assert decide(services, market) == []
    assert market.execute("SELECT count(*) FROM decisions").fetchone() == (0,)


class Interrupted(Services):
    """Services with which something happens just before an agent answers, or a verdict falls."""

    before: str = ""
    happens: Callable[[], object] = staticmethod(lambda: None)

    def _deliver(self, topic: str, text: str) -> None:
        if topic == self.before:
            self.before = ""
            self.happens()
        super()._deliver(topic, text)


@pytest.mark.parametrize(
    ("before", "state", "why"),
    [
        ("agents.work", "abandoned", "superseded"),
        ("gatekeeper.work", "observing", "splits and dividends"),
    ],
)
def test_a_split_that_comes_while_it_decides_hedges_nothing(
    market: Connection[Any], database: TestDatabase, before: str, state: str, why: str
) -> None:
    fall(market, "AAPL", 0.5)
    with Interrupted(database.url, plug_ins()) as services:
        services.before = before
        services.happens = lambda: fold(market, [split(2, entity="AAPL", minute=LAST)])
        record, *others = decide(services, market)
    assert (others, record.decision.state) == ([], state)
    assert len(record.all("joined")) == 1
    said = {kind: (record.last(kind) or record.steps[0]).body for kind in ("closed", "verdict", "joined")}
    assert why in str(said)
    assert market.execute("SELECT count(*) FROM executions").fetchone() == (0,)


def test_a_split_that_comes_before_the_execution_stops_it(market: Connection[Any], database: TestDatabase) -> None:
    fall(market, "AAPL", 0.5)
    with Interrupted(database.url, plug_ins()) as services:

        def withdraw() -> None:
            fold(market, [split(2, entity="AAPL", minute=LAST)])
            [(text,)] = market.execute("SELECT payload_json::text FROM outbox ORDER BY id DESC LIMIT 1").fetchall()
            services.decide_on(market, text)

        services.before, services.happens = "client.actions", withdraw
        (record,) = decide(services, market)
    assert states(record) == ["released", "failed"]
    assert market.execute("SELECT superseded_by IS NOT NULL FROM decisions").fetchone() == (True,)
    [(outcome, reason)] = market.execute("SELECT outcome, reason FROM executions").fetchall()
    assert (outcome, "superseded" in reason) == ("failed", True)
    assert market.execute("SELECT count(*) FROM paper_orders").fetchone() == (0,)


def test_a_market_whose_bars_come_late_is_not_hedged_alone(market: Connection[Any], database: TestDatabase) -> None:
    fall(market, "AAPL", 0.8)
    fall(market, "IBM", 0.8)
    with Interrupted(database.url, plug_ins()) as services:
        services.before = "gatekeeper.work"
        services.happens = lambda: fall(market, "MSFT", 0.8)
        first, *_ = decide(services, market)
    proposal, verdict = first.last("proposal"), first.last("verdict")
    assert proposal is not None
    assert proposal.body["hypothesis"] == "single_name_fall"
    assert verdict is not None
    assert verdict.body["reasons"] == ["evidence: the market has moved on since it was gathered: others fell with it"]
    assert first.last("released") is None


def test_an_old_anomaly_is_recorded_and_no_more(market: Connection[Any], database: TestDatabase) -> None:
    fall(market, "AAPL", 0.5)
    with Services(database.url, load_deciding()) as services:
        (record,) = decide(services, market)
    assert record.decision.state == "recorded"
    assert record.last("evidence") is None


def test_a_decision_is_decided_again_with_the_same_bytes(market: Connection[Any], services: Services) -> None:
    close = fall(market, "AAPL", 0.5)
    closes(market, "AAPL", [close] * 5, first=LAST + 1)
    record, *_ = decide(services, market)
    loaded = load(services.decide, record.decision.decision_id)
    assert loaded is not None
    again = replay(loaded, plug_ins()["finance"])
    assert again.difference is None
    assert again.steps > 10


class NextVersion(PatientPlaybook):
    """The playbook as it would be in its next version."""

    version = "next"


def test_a_version_in_shadow_decides_beside_and_sells_nothing(market: Connection[Any], database: TestDatabase) -> None:
    fall(market, "AAPL", 0.5)
    for entity in ("IBM", "MSFT"):
        fall(market, entity, 1.0)
    both = {name: replace(found, shadow_playbooks=(NextVersion(),)) for name, found in plug_ins().items()}
    with Services(database.url, both) as services:
        enforced, shadow = sorted(decide(services, market), key=lambda record: record.decision.is_shadow)
        for record in (enforced, shadow):
            loaded = load(services.decide, record.decision.decision_id)
            assert loaded is not None
            assert replay(loaded, both["finance"]).difference is None
    assert (enforced.decision.playbook_version, shadow.decision.playbook_version) == (UnusualBar.version, "next")
    assert states(enforced) == ["released", "executed"]
    assert states(shadow) == []
    proposed, judged = shadow.last("proposal"), shadow.last("verdict")
    assert proposed is not None
    assert judged is not None
    assert (proposed.body["action_type"], judged.body["verdict"]) == ("HEDGE", "permitted")
    assert market.execute("SELECT count(*) FROM paper_orders").fetchone() == (1,)
