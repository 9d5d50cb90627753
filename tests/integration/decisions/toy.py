"""A second domain: something wobbles, and is nudged. It plugs in without an edit of the core."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from control_plane.model.deciding import (
    ActionSchema,
    AgentRequest,
    AgentResult,
    Answer,
    CallAgents,
    Close,
    Command,
    Deciding,
    Gather,
    JsonObject,
    Judged,
    ObserveAt,
    PlaybookLimits,
    Propose,
    Record,
    Simulate,
)
from control_plane.model.ids import canonical_json

LIMITS = PlaybookLimits(
    deadline=timedelta(minutes=10), oldest=timedelta(days=1), budget_micros=1_000, call_seconds=5, most_attempts=2
)
ENDS = ("refused", "denied", "expired", "executed", "failed")


class Named(Answer):
    hypothesis: str
    chance_ppm: int


class Weighed(Answer):
    weight: int


@dataclass
class ToyAgent:
    """Answers from its request alone; ``gives`` may make it lie, fail or cost."""

    name: str
    answer_type: type[Answer]
    answer: Callable[[Any], JsonObject]
    version: str = "1"
    model: str | None = None
    costs: int = 0
    gives: Callable[[int], AgentResult | None] = lambda attempt: None

    def most_micros(self, request: bytes) -> int:
        return self.costs

    def call(self, request: bytes, *, attempt: int, seconds_left: float) -> AgentResult:
        given = self.gives(attempt)
        if given is not None:
            return given
        return AgentResult("answered", canonical_json(dict(self.answer(json.loads(request)))), cost_micros=self.costs)


@dataclass
class Nudging:
    """Gather, name it, weigh it, simulate, propose, see what came of it."""

    name: str = "nudging"
    version: str = "1"
    limits: PlaybookLimits = LIMITS
    ceiling: timedelta = timedelta(hours=1)
    observed: JsonObject | None = field(default_factory=lambda: {"state": "observed", "moved_ppm": 7, "forecasts": []})

    def handles(self, anomaly: JsonObject) -> bool:
        return bool(anomaly["kind"] == "wobble")

    def next(self, record: Record) -> Command:
        rounds = {step.body["state"]: step for step in record.all("calls")}
        answers = [step.body["answers"] for step in record.all("answers")]
        command: Command = Propose(self._proposal(answers))
        if record.last("evidence") is None:
            command = Gather()
        elif "hypothesising" not in rounds:
            evidence = record.all("evidence")[0].body
            both = ("namer", "checker")
            command = CallAgents("hypothesising", tuple(AgentRequest(one, {"evidence": evidence}) for one in both))
        elif all(answer["answer"] is None for answer in answers[0].values()):
            command = Close("abandoned", "nobody can name it")
        elif "scoring" not in rounds:
            command = CallAgents("scoring", (AgentRequest("weigher", {"named": answers[0]}),))
        elif record.last("simulation") is None:
            command = Simulate({"seed": 7})
        elif record.last("outcome") is not None:
            command = Close("scored", "the horizon is over")
        elif record.decision.state in ENDS or (record.decision.is_shadow and record.last("verdict") is not None):
            command = ObserveAt(bars=1, ceiling=self.ceiling)
        return command

    def gather(self, connection: Any, record: Record) -> JsonObject:
        anomaly = record.all("anomaly")[0].body
        return {"anomaly": anomaly["payload"], "entity_id": record.decision.entity_id}

    def simulate(self, record: Record, spec: JsonObject) -> JsonObject:
        return {"seed": spec["seed"], "options": [{"name": "nothing"}, {"name": "nudge", "loss_micros": 3}]}

    def observe(self, connection: Any, record: Record, bars: int, now: datetime) -> JsonObject | None:
        if self.observed is None:
            return None
        forecasts = [
            {"agent": "namer", "agent_version": "1", "forecast": "moves", "probability": 0.7, "happened": True}
        ]
        return {**self.observed, "forecasts": forecasts}

    def sources(self) -> Mapping[str, bytes]:
        return {"playbook": f"{self.name} {self.version}".encode(), "prompt": b"Name it."}

    def _proposal(self, answers: Sequence[Any]) -> JsonObject:
        named = (
            next((one["answer"] for one in answers[0].values() if one["answer"] is not None), None) if answers else None
        )
        return {
            "action_type": "NUDGE",
            "account": "toy",
            "option": "nudge",
            "action": {"by": 1},
            "claims": {},
            "hypothesis": named["hypothesis"] if named else "unexplained",
            "summary": None,
        }


class Nudge(ActionSchema):
    by: int


class NoClaims(ActionSchema):
    pass


class ToyGate:
    action_types: Mapping[str, type[ActionSchema]] = {"NUDGE": Nudge}
    claims_type: type[ActionSchema] = NoClaims
    policies = "permit (principal, action, resource);"
    schema = ""
    expires_after = timedelta(minutes=5)
    approval_within = timedelta(minutes=2)

    def check_evidence(self, connection: Any, judged: Judged) -> Sequence[str]:
        return ()

    def policy_request(self, connection: Any, judged: Judged) -> JsonObject:
        return {"principal": "toy", "resource": "toy", "context": {}, "entities": []}

    def render(self, judged: Judged) -> str:
        return "Nudge it."


def agents(**changes: dict[str, Any]) -> tuple[ToyAgent, ...]:
    """The three agents; ``changes`` name one and what is different about it."""
    made = {
        "namer": {"answer_type": Named, "answer": lambda _: {"hypothesis": "wobble", "chance_ppm": 700_000}},
        "checker": {"answer_type": Named, "answer": lambda _: {"hypothesis": "wobble", "chance_ppm": 600_000}},
        "weigher": {"answer_type": Weighed, "answer": lambda request: {"weight": len(request["named"])}},
    }
    return tuple(ToyAgent(**{"name": name, **given, **changes.get(name, {})}) for name, given in made.items())


def deciding(*playbooks: Nudging, **changes: dict[str, Any]) -> Mapping[str, Deciding]:
    return {"toy": Deciding(playbooks or (Nudging(),), agents(**changes), ToyGate())}
