"""How finance decides on an unusual bar: evidence, explanations, a simulation, and a proposal or none.

``next`` is pure. Numbers come from the evidence and our own arithmetic; an agent only explains, and chooses among the
options that were simulated and that the explanation admits.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, Final

from control_plane.model.deciding import (
    AgentRequest,
    CallAgents,
    Close,
    Command,
    Gather,
    JsonObject,
    ObserveAt,
    PlaybookLimits,
    Propose,
    Record,
    Simulate,
)
from domains.finance.deciding import measures
from domains.finance.deciding.evidence import gather_evidence, gather_until, has_all_bars
from domains.finance.deciding.options import ACCOUNT, ACTION_TYPES, build_options, own_position
from domains.finance.deciding.outcome import ceiling, observe_outcome
from domains.finance.deciding.reading import answer_of, answer_or_stand_in, next_to_ask, was_asked
from domains.finance.deciding.recommending import NOTHING, allowed_options

NAME: Final = "unusual_bar"
VERSION: Final = "1"
PATHS: Final = 5_000
_DETECTOR: Final = "robust-z"
_KINDS: Final = ("return", "range")
_NO_ACTION: Final = {
    "split": "A split changes the price of a share and nobody's wealth: there is nothing to act on.",
    "data_error": "There is nothing to act on in prices that may be wrong.",
}


class UnusualBar:
    """The playbook of finance's anomalies. See :class:`~control_plane.model.deciding.Playbook`."""

    name = NAME
    version = VERSION
    limits = PlaybookLimits(
        deadline=timedelta(minutes=15),
        oldest=timedelta(minutes=30),
        budget_micros=200_000,
    )

    def handles(self, anomaly: JsonObject) -> bool:
        """Decides on what finance's own detector finds."""
        return anomaly["detector"] == _DETECTOR and anomaly["kind"] in _KINDS

    def next(self, record: Record) -> Command:
        """Returns what is to be done now. Pure."""
        if record.last("outcome") is not None:
            return Close("scored", why_held(record) or "The horizon is over.")
        if record.last("proposal") is not None or record.last("observing") is not None:
            return self._observe(record)
        gathered = record.last("evidence")
        if gathered is None:
            return Gather(wait_until=gather_until(record.decision))
        return self._explain(record, gathered.body)

    def _explain(self, record: Record, evidence: JsonObject) -> Command:
        if evidence["bar"] is None:
            return self._observe(record)
        if not was_asked(record, "signal_detection"):
            # None of the three needs what another says, so all are asked at once.
            calls = [AgentRequest("signal_detection", signal_request(evidence))]
            calls.append(AgentRequest("pattern_recognition", pattern_request(evidence)))
            calls.append(AgentRequest("hypotheses", hypotheses_request(evidence)))
            return CallAgents("hypothesising", tuple(calls))
        if (explainer := next_to_ask(record, "hypotheses")) is not None:
            return CallAgents("hypothesising", (AgentRequest(explainer, hypotheses_request(evidence)),))
        hypothesis = chosen_hypothesis(record, evidence)
        if hypothesis in _NO_ACTION:
            return self._observe(record)
        return self._weigh(record, evidence, hypothesis)

    def _weigh(self, record: Record, evidence: JsonObject, hypothesis: str) -> Command:
        if not was_asked(record, "financial_impact"):
            calls = [AgentRequest("financial_impact", impact_request(evidence))]
            calls.append(AgentRequest("risk_prioritisation", risk_request(evidence)))
            return CallAgents("scoring", tuple(calls))
        simulation = record.last("simulation")
        if simulation is None:
            return Simulate(
                {
                    "seed": seed_of(record),
                    "paths": PATHS,
                    "horizon_bars": measures.HORIZON_BARS,
                    "large_move_ppm": measures.large_move_ppm(evidence["sigma_ppm"]),
                    "options": list(build_options(evidence)),
                }
            )
        if not was_asked(record, "action_recommender"):
            request = recommendation_request(evidence, simulation.body, hypothesis)
            return CallAgents("simulating", (AgentRequest("action_recommender", request),))
        option = chosen_option(record, evidence, hypothesis)
        if option == NOTHING:
            return self._observe(record)
        if (writer := next_to_ask(record, "executive_summary")) is not None:
            request = summary_request(record, evidence, simulation.body, hypothesis)
            return CallAgents("simulating", (AgentRequest(writer, request),))
        return Propose(proposal(record, option, hypothesis))

    def gather(self, connection: Any, record: Record) -> JsonObject:
        """Reads the evidence, as it was known at the bar."""
        trigger = record.last("anomaly")
        assert trigger is not None, "a decision is opened by an anomaly"
        return gather_evidence(connection, record.decision, trigger.body["payload"])

    def is_complete(self, connection: Any, record: Record) -> bool:
        """Whether every stock that was traded just before has its bar of that instant: so the market is seen whole."""
        return has_all_bars(connection, record.decision)

    def simulate(self, record: Record, spec: JsonObject) -> JsonObject:
        """Simulates each option on the same paths."""
        # AgentFunction and the gatekeeper import this module too, and need no numpy.
        from domains.finance.deciding.simulation import simulate  # noqa: PLC0415

        gathered = record.last("evidence")
        assert gathered is not None, "a simulation follows evidence"
        return simulate({**spec, **assets_of(gathered.body)})

    def observe(self, connection: Any, record: Record, bars: int, now: datetime) -> JsonObject | None:
        """Returns what came of it; None while the horizon's bars are awaited."""
        return observe_outcome(connection, record, bars, now)

    def sources(self) -> Mapping[str, bytes]:
        """The version, and every file of this package: code, statements and prompts."""
        return {"version": VERSION.encode(), **_files()}

    def _observe(self, record: Record) -> ObserveAt:
        return ObserveAt(measures.HORIZON_BARS, ceiling(record.decision.series))


@cache
def _files() -> Mapping[str, bytes]:
    folder = resources.files(__package__)
    files = [*folder.iterdir(), *folder.joinpath("prompts").iterdir()]
    found = {file.name: file.read_bytes() for file in files if file.name.endswith((".py", ".sql", ".txt"))}
    return dict(sorted(found.items()))


# What agents are told: fields of the evidence, and no identifier of an account.


def signal_request(evidence: JsonObject) -> JsonObject:
    """Of the signal detection agent."""
    return {
        "kind": evidence["anomaly"].get("kind", ""),
        "adjusted_return_ppm": evidence["bar"]["adjusted_return_ppm"],
        "returns_ppm": evidence["returns_ppm"],
    }


def pattern_request(evidence: JsonObject) -> JsonObject:
    """Of the pattern recognition agent."""
    return {"sigma_ppm": evidence["sigma_ppm"], "neighbours": evidence["neighbours"]}


def hypotheses_request(evidence: JsonObject) -> JsonObject:
    """Of whoever explains the move."""
    bar, market = evidence["bar"], evidence["market"]
    return {
        "entity_id": evidence["entity_id"],
        "kind": evidence["anomaly"].get("kind", ""),
        "return_ppm": bar["return_ppm"],
        "adjusted_return_ppm": bar["adjusted_return_ppm"],
        "z_milli": evidence["z_milli"],
        "entities": market["entities"],
        "fell": market["fell"],
        "median_return_ppm": market["median_return_ppm"],
        "is_market_wide": market["is_market_wide"],
        "corporate_actions": evidence["corporate_actions"],
        "problem": evidence["problem"],
    }


def impact_request(evidence: JsonObject) -> JsonObject:
    """Of the financial impact agent."""
    position = own_position(evidence)
    return {
        "returns_ppm": evidence["returns_ppm"],
        "position_micros": position["value_micros"] if position else 0,
        "portfolio_micros": evidence["portfolio"]["value_micros"],
    }


def risk_request(evidence: JsonObject) -> JsonObject:
    """Of the risk prioritisation agent."""
    return {"severity": evidence["severity"], "exposure_ppm": exposure_ppm(evidence)}


def recommendation_request(evidence: JsonObject, simulation: JsonObject, hypothesis: str) -> JsonObject:
    """Of the action recommender."""
    return {
        "hypothesis": hypothesis,
        "severity": evidence["severity"],
        "exposure_ppm": exposure_ppm(evidence),
        "portfolio_micros": evidence["portfolio"]["value_micros"],
        "large_move": simulation["large_move"],
        "options": simulation["options"],
    }


def summary_request(record: Record, evidence: JsonObject, simulation: JsonObject, hypothesis: str) -> JsonObject:
    """Of whoever summarises."""
    advice = answer_of(record, "action_recommender") or {"option": NOTHING, "why": ""}
    nothing = next(option for option in simulation["options"] if option["name"] == NOTHING)
    return {
        "entity_id": evidence["entity_id"],
        "currency": evidence["portfolio"]["currency"],
        "adjusted_return_ppm": evidence["bar"]["adjusted_return_ppm"],
        "z_milli": evidence["z_milli"],
        "severity": evidence["severity"],
        "hypothesis": hypothesis,
        "expected_shortfall_micros": nothing["expected_shortfall_micros"],
        "option": advice["option"],
        "why": advice["why"],
    }


# What our code makes of the evidence and of the answers


def exposure_ppm(evidence: JsonObject) -> int:
    """Returns the position's share of the portfolio."""
    position = own_position(evidence)
    held = abs(position["value_micros"]) if position else 0
    return min(measures.MILLION, measures.share_ppm(held, evidence["portfolio"]["value_micros"]))


def refute(hypothesis: str, evidence: JsonObject) -> str | None:
    """Returns why evidence without a split or a problem contradicts an explanation; None where it may hold."""
    is_wide = evidence["market"]["is_market_wide"]
    is_fall = hypothesis in ("market_wide_fall", "single_name_fall")
    contradictions = (
        (hypothesis == "split", "No split is known."),
        (hypothesis == "data_error", "The prices show no error."),
        (hypothesis == "market_wide_fall" and not is_wide, "The market did not fall with it."),
        (hypothesis == "single_name_fall" and is_wide, "The market fell with it."),
        (is_fall and evidence["bar"]["adjusted_return_ppm"] >= 0, "It did not fall."),
    )
    return next((reason for is_so, reason in contradictions if is_so), None)


def splits(evidence: JsonObject) -> bool:
    """Whether a split took effect with the bar."""
    return any(action["kind"] == "split" for action in evidence["corporate_actions"])


def chosen_hypothesis(record: Record, evidence: JsonObject) -> str:
    """Returns the likeliest explanation that the evidence does not refute. A split or an error needs no agent."""
    if splits(evidence):
        return "split"
    if evidence["problem"] is not None:
        return "data_error"
    answer = answer_or_stand_in(record, "hypotheses") or {"explanations": []}
    standing = [each for each in answer["explanations"] if refute(each["hypothesis"], evidence) is None]
    standing.sort(key=lambda each: -each["confidence_ppm"])
    return str(standing[0]["hypothesis"]) if standing else "unexplained"


def chosen_option(record: Record, evidence: JsonObject, hypothesis: str) -> str:
    """Returns the recommended option where it was simulated and the explanation admits it; else to do nothing."""
    answer, simulation = answer_of(record, "action_recommender"), record.last("simulation")
    if answer is None or simulation is None:
        return NOTHING
    allowed = allowed_options(hypothesis, severity=evidence["severity"], exposure_ppm=exposure_ppm(evidence))
    name = str(answer["option"])
    is_there = any(option["name"] == name and option["action"] for option in simulation.body["options"])
    return name if is_there and name in allowed else NOTHING


def proposal(record: Record, option: str, hypothesis: str) -> JsonObject:
    """Returns the proposal of an option, in the shape of docs/decision_engine.md."""
    gathered, simulation = record.last("evidence"), record.last("simulation")
    assert gathered is not None, "a proposal follows evidence"
    assert simulation is not None, "a proposal follows a simulation"
    chosen = next(each for each in simulation.body["options"] if each["name"] == option)
    summary = answer_or_stand_in(record, "executive_summary")
    return {
        "action_type": ACTION_TYPES[option],
        "account": ACCOUNT,
        "option": option,
        "action": chosen["action"],
        "claims": {
            "return_ppm": gathered.body["bar"]["return_ppm"],
            "is_market_wide": gathered.body["market"]["is_market_wide"],
            "expected_shortfall_micros": chosen["expected_shortfall_micros"],
            "severity": gathered.body["severity"],
        },
        "evidence_seq": gathered.seq,
        "simulation_seq": simulation.seq,
        "hypothesis": hypothesis,
        "summary": summary["text"] if summary is not None else None,
    }


def why_held(record: Record) -> str | None:
    """Returns why nothing was proposed; None where something was."""
    gathered = record.last("evidence")
    if record.last("proposal") is not None or gathered is None:
        return None
    evidence = gathered.body
    hypothesis = chosen_hypothesis(record, evidence) if evidence["bar"] is not None else "data_error"
    if hypothesis in _NO_ACTION:
        return " ".join(filter(None, ("Held.", _NO_ACTION[hypothesis], evidence["problem"])))
    advice = answer_of(record, "action_recommender")
    if advice is None:
        return "Held. No agent recommended anything."
    if advice["option"] != NOTHING:
        return f"Held. The evidence does not admit {advice['option']}, which was recommended."
    return f"Held. {advice['why']}"


def seed_of(record: Record) -> int:
    """Returns the seed of a decision's paths: 48 bits of its id, which JSON holds exactly."""
    return record.decision.decision_id.int % 2**48


def assets_of(evidence: JsonObject) -> JsonObject:
    """Returns the simulation's assets: the entity first, then whatever else is held."""
    position = own_position(evidence)
    own = {
        "value_micros": position["value_micros"] if position else 0,
        "returns_ppm": [*evidence["returns_ppm"], evidence["bar"]["adjusted_return_ppm"]],
        "scale_ppm": evidence["scale_ppm"],
    }
    others = [
        {name: each[name] for name in ("value_micros", "returns_ppm", "scale_ppm")}
        for each in evidence["portfolio"]["positions"]
        if each is not position
    ]
    return {"own": 0, "assets": [own, *others]}
