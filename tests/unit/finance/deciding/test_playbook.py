"""How finance's playbook goes from evidence to a proposal, or to none."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from tests.unit.finance.deciding.records import Run, evidence

from control_plane.model.deciding import AgentResult, CallAgents, Close, ObserveAt, Propose
from control_plane.model.ids import canonical_json
from domains.finance.deciding.agents import AGENTS, STAND_INS, RuleAgent
from domains.finance.deciding.answers import HypothesesAnswer, RecommendationAnswer
from domains.finance.deciding.options import build_options
from domains.finance.deciding.playbook import why_held
from domains.finance.detector import scoring, telling
from domains.finance.gate import GATE
from domains.finance.paper_account.orders import read_order

BY_NAME = {agent.name: agent for agent in (*AGENTS, *STAND_INS)}
SPLIT = [{"kind": "split", "occurred_at": "2008-09-29T00:00:00Z", "ratio_ppm": 2_000_000}]


def answering(name: str, answer: dict[str, Any]) -> dict[str, RuleAgent]:
    """The agents, one of which says what it is told to."""

    class Scripted(RuleAgent):
        def call(self, request: bytes, *, attempt: int, seconds_left: float) -> AgentResult:
            return AgentResult("answered", json.dumps(answer).encode())

    agent = BY_NAME[name]
    return BY_NAME | {name: Scripted(agent.name, agent.version, agent.answer_type, agent.answer)}


def explaining(*hypotheses: str) -> dict[str, RuleAgent]:
    given = [{"hypothesis": name, "confidence_ppm": 900_000, "why": "so it says"} for name in hypotheses]
    HypothesesAnswer.model_validate_json(json.dumps({"explanations": given}))
    return answering("hypotheses", {"explanations": given})


def recommending(option: str) -> dict[str, RuleAgent]:
    given = {"option": option, "why": "so it says", "rejected": {}, "forecasts": []}
    RecommendationAnswer.model_validate_json(json.dumps(given))
    return answering("action_recommender", given)


def held(run: Run) -> str:
    assert isinstance(run.until_waiting(), ObserveAt)
    reason = why_held(run.record)
    assert reason is not None
    return reason


def test_one_stocks_fall_proposes_a_small_hedge() -> None:
    run = Run(evidence(-500_000))
    command = run.until_waiting()
    assert isinstance(command, Propose)
    proposal = command.proposal
    assert (proposal["action_type"], proposal["option"]) == ("HEDGE", "hedge_small")
    assert proposal["hypothesis"] == "single_name_fall"
    assert proposal["action"] == {
        "source": "test", "entity_id": "AAPL", "series": "1d", "side": "sell", "quantity_micros": 10_000_000,
        "reference_price_micros": 50_000_000, "notional_micros": 500_000_000, "currency": "USD",
    }  # fmt: skip
    assert read_order(canonical_json(proposal["action"])) is not None, "the paper account can execute it"
    assert proposal["claims"]["severity"] == 4
    assert run.states == ["gathering", "hypothesising", "scoring", "simulating"]


def test_the_paper_account_reads_every_action_that_the_gate_takes() -> None:
    actions = [option["action"] for option in build_options(evidence()) if option["action"] is not None]
    assert len(actions) == 3
    for action in actions:
        order = read_order(json.dumps(action).encode())
        assert order is not None
        for schema in GATE.action_types.values():
            assert schema.model_validate(action).model_dump() == order.model_dump() == action


def test_a_falling_market_proposes_more() -> None:
    command = Run(evidence(-180_000, is_market_wide=True)).until_waiting()
    assert isinstance(command, Propose)
    assert command.proposal["hypothesis"] == "market_wide_fall"
    assert command.proposal["option"] in ("hedge_large", "reduce_half")


def test_a_proposal_cites_its_evidence_and_simulation() -> None:
    run = Run(evidence())
    command = run.until_waiting()
    assert isinstance(command, Propose)
    assert run.record.steps[command.proposal["evidence_seq"]].kind == "evidence"
    simulation = run.record.steps[command.proposal["simulation_seq"]]
    assert simulation.kind == "simulation"
    chosen = next(each for each in simulation.body["options"] if each["name"] == command.proposal["option"])
    assert command.proposal["claims"]["expected_shortfall_micros"] == chosen["expected_shortfall_micros"]
    assert "standard deviations" in command.proposal["summary"]


def test_four_options_are_simulated_nothing_among_them() -> None:
    run = Run(evidence())
    run.until_waiting()
    simulation = run.record.last("simulation")
    assert simulation is not None
    assert [option["name"] for option in simulation.body["options"]] == [
        "do_nothing", "hedge_small", "hedge_large", "reduce_half",
    ]  # fmt: skip
    assert simulation.body["paths"] >= 5_000


def test_a_split_proposes_nothing_and_says_why() -> None:
    bar = evidence()["bar"] | {"return_ppm": -500_000, "adjusted_return_ppm": 8_000}
    run = Run(evidence(-500_000, bar=bar, corporate_actions=SPLIT))
    assert "split" in held(run)
    assert run.record.last("simulation") is None


@pytest.mark.parametrize("claimed", ["single_name_fall", "market_wide_fall", "data_error"])
def test_an_agent_cannot_talk_a_split_away(claimed: str) -> None:
    assert "split" in held(Run(evidence(-500_000, corporate_actions=SPLIT), agents=explaining(claimed)))


def test_a_split_that_nobody_knows_is_refuted() -> None:
    run = Run(evidence(-500_000), agents=explaining("split", "single_name_fall"))
    command = run.until_waiting()
    assert isinstance(command, Propose)
    assert command.proposal["hypothesis"] == "single_name_fall"


def test_wrong_prices_propose_nothing_and_say_why() -> None:
    run = Run(evidence(problem="The bar was corrected after the anomaly was detected."))
    assert held(run).endswith("The bar was corrected after the anomaly was detected.")


def test_a_bar_that_is_missing_is_held() -> None:
    assert held(Run(evidence(bar=None, problem="The bar of the anomaly is not known here."))).endswith(
        "not known here."
    )


def test_a_rise_is_held() -> None:
    assert "No explanation" in held(Run(evidence(+200_000)))


def test_a_mild_move_is_held() -> None:
    assert "not severe enough" in held(Run(evidence(-50_000)))


def test_an_account_that_holds_nothing_sells_nothing() -> None:
    assert "nothing is held" in held(Run(evidence(held=0)))


def test_a_bearable_loss_is_held() -> None:
    portfolio = evidence(held=1)["portfolio"] | {"value_micros": 10**15}
    assert "bears" in held(Run(evidence(-500_000, held=1, portfolio=portfolio)))


@pytest.mark.parametrize("option", ["reduce_half", "hedge_large", "sell_everything", "do_nothing"])
def test_a_recommendation_that_is_not_admitted_is_held(option: str) -> None:
    held(Run(evidence(-500_000), agents=recommending(option)))


@pytest.mark.parametrize("agents", [{"hypotheses", "hypotheses_by_rule"}, {"action_recommender"}])
def test_without_an_explanation_or_advice_it_holds(agents: set[str]) -> None:
    held(Run(evidence(-500_000), failing=frozenset(agents)))


def asked(run: Run) -> list[str]:
    return [call["agent"] for step in run.record.all("calls") for call in step.body["calls"]]


@pytest.mark.parametrize("agent", ["hypotheses", "executive_summary"])
def test_a_stand_in_answers_for_an_agent_that_failed(agent: str) -> None:
    run = Run(evidence(-500_000), failing=frozenset({agent}))
    command = run.until_waiting()
    assert isinstance(command, Propose)
    assert (command.proposal["hypothesis"], command.proposal["option"]) == ("single_name_fall", "hedge_small")
    assert f"{agent}_by_rule" in asked(run)


def test_nobody_stands_in_for_an_agent_that_answered() -> None:
    run = Run(evidence(-500_000))
    run.until_waiting()
    assert not any(name.endswith("_by_rule") for name in asked(run))


def test_nobody_stands_in_for_an_agent_that_is_off() -> None:
    run = Run(evidence(-500_000), failing=frozenset({"hypotheses"}), failure="switched_off")
    held(run)
    assert "hypotheses_by_rule" not in asked(run)


@pytest.mark.parametrize(
    "agent",
    ["signal_detection", "pattern_recognition", "financial_impact", "risk_prioritisation", "executive_summary"],
)
def test_it_goes_on_without_any_other_agent(agent: str) -> None:
    command = Run(evidence(-500_000), failing=frozenset({agent})).until_waiting()
    assert isinstance(command, Propose)
    assert command.proposal["summary"] is not None


def test_it_goes_on_without_any_summary() -> None:
    failing = frozenset({"executive_summary", "executive_summary_by_rule"})
    command = Run(evidence(-500_000), failing=failing).until_waiting()
    assert isinstance(command, Propose)
    assert command.proposal["summary"] is None


def test_after_the_horizon_it_closes_scored() -> None:
    run = Run(evidence(-500_000))
    command = run.until_waiting()
    assert isinstance(command, Propose)
    run.append("proposal", {name: value for name, value in command.proposal.items() if name != "action"})
    assert isinstance(run.until_waiting(), ObserveAt)
    run.append("observing", {})
    run.append("outcome", {"state": "observed"})
    assert run.until_waiting() == Close("scored", "The horizon is over.")


def test_the_same_record_gives_the_same_command() -> None:
    run, other = Run(evidence()), Run(evidence())
    assert run.until_waiting() == other.until_waiting()
    assert run.record == other.record


def test_agents_learn_nothing_of_the_account() -> None:
    run, asked = Run(evidence()), []

    class Watched(RuleAgent):
        def call(self, request: bytes, *, attempt: int, seconds_left: float) -> AgentResult:
            asked.append(request)
            return super().call(request, attempt=attempt, seconds_left=seconds_left)

    run.agents = {agent.name: Watched(agent.name, agent.version, agent.answer_type, agent.answer) for agent in AGENTS}
    run.until_waiting()
    assert len(asked) == 7
    assert not any(word in content for content in asked for word in (b"paper", b"cash", b"positions", b"account"))


def test_what_its_own_detector_finds_is_handled() -> None:
    playbook = Run({}).playbook
    for kind in get_args(scoring.Kind.__value__):
        assert playbook.handles({"kind": kind, "detector": telling.DETECTOR})
        assert not playbook.handles({"kind": kind, "detector": "another"})
    assert not playbook.handles({"kind": "frost", "detector": telling.DETECTOR})


def test_sources_pin_code_statements_and_prompts() -> None:
    sources = Run({}).playbook.sources()
    assert {"version", "playbook.py", "queries.sql", "hypotheses.txt", "executive_summary.txt"} <= sources.keys()
    assert all(sources.values())


def test_calls_of_an_open_decision_wait_in_their_state() -> None:
    run = Run(evidence())
    run.append("evidence", run.gathered, state="gathering")
    command = run.playbook.next(replace(run.record))
    assert isinstance(command, CallAgents)
    assert command.state == "hypothesising"
    assert [call.agent for call in command.calls] == ["signal_detection", "pattern_recognition", "hypotheses"]
