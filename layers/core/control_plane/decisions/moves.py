"""The moves that a decision can make, and the steps that they become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from control_plane.model.deciding import JsonObject, Record, Step, derived_id
from control_plane.model.ids import canonical_json

SWITCHED_OFF: Final = "switched off: "
GIVEN_UP: Final = "given up: "
GIVEN_UP_AFTER: Final = timedelta(hours=1)
"""How long after its time a decision that was released, or refused, waits for a playbook that fails or is gone."""
BEFORE_RELEASE: Final = frozenset({
    "opened", "gathering", "hypothesising", "scoring", "simulating", "proposed", "awaiting_approval", "approved",
})  # fmt: skip
STATES: Final = {
    "opened": "opened", "evidence": "gathering", "simulation": "simulating", "proposal": "proposed",
    "observing": "observing",
}  # fmt: skip
"""The state that a step of a kind leads to, where that is always the same."""
CLOSED: Final = frozenset({"scored", "abandoned", "recorded"})
TRUNK: Final = frozenset({"anomaly", "evidence", "answers", "simulation", "proposal", "state", "observing", "outcome"})
"""Kinds of steps that the next one grows from, in the tree that a decision is shown as."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a move depends on beside the record. The step that it leads to says so, and a replay reads it from there."""

    is_overdue: bool = False
    """Its time is over: see ends_at."""
    is_expired: bool = False
    """Nobody answered the approval request in time."""
    switched_off: frozenset[str] = frozenset()
    """Scopes."""
    fault: str = ""
    """Why its playbook could not say what follows."""
    now: datetime | None = None
    """The instant; None where nothing waits for one."""


@dataclass(frozen=True, slots=True)
class Append:
    """Append a step, and move the decision to a state, where one is given."""

    kind: str
    parent: int
    body: JsonObject
    state: str | None = None
    output: bytes | None = None
    output_kind: str = ""
    artifacts: Sequence[tuple[str, bytes]] = ()
    """Further ones to be stored, with their kinds."""
    calls: Sequence["IntendedCall"] = ()
    """To be intended in the same transaction."""
    is_output: bool = False
    """Whether the output is the body's own bytes."""

    def body_bytes(self) -> bytes:
        """The bytes that are hashed. Raises ContractViolation for what is no JSON."""
        if self.is_output:
            assert self.output is not None, "the body's own bytes"
            return self.output
        return canonical_json(dict(self.body), field=f"step {self.kind}")


@dataclass(frozen=True, slots=True)
class IntendedCall:
    """One attempt of an agent's call."""

    agent: str
    agent_version: str
    attempt: int
    request_sha256: bytes
    micros: int
    """The most that it may cost."""
    seconds: float
    """How long it may take."""


@dataclass(frozen=True, slots=True)
class Intend:
    """Intend attempts of the calls of a step."""

    calls_seq: int
    calls: Sequence[IntendedCall]


@dataclass(frozen=True, slots=True)
class Collect:
    """Collect the evidence, where a playbook says so not before it is complete."""

    wait_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """Simulate the options."""

    spec: JsonObject


@dataclass(frozen=True, slots=True)
class Observe:
    """See whether the horizon is over."""

    bars: int
    ends_at: datetime
    since: datetime


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done until something is added to the record, or until an instant, where one is given."""

    until: datetime | None = None
    kind: str = "call"
    """Of the timer that is set for that instant."""


type Move = Append | Intend | Collect | Model | Observe | Wait


def trunk(record: Record) -> int:
    """The number of the step that the next one grows from."""
    return next((step.seq for step in reversed(record.steps) if step.kind in TRUNK), 0)


def evidence(record: Record, gathered: JsonObject) -> Append:
    """The step that what was gathered becomes."""
    content = canonical_json(dict(gathered), field="evidence")
    return Append("evidence", trunk(record), gathered, "gathering", content, "evidence", is_output=True)


def simulation(record: Record, result: JsonObject) -> Append:
    """The step that a simulation's result becomes."""
    content = canonical_json(dict(result), field="simulation")
    return Append("simulation", trunk(record), result, "simulating", content, "simulation", is_output=True)


def outcome(record: Record, observed: JsonObject) -> Append:
    """The step that an outcome becomes, with each forecast's Brier score.

    An agent's second forecast of one event is not scored: the first is the one that counts.
    """
    scores: dict[tuple[str, str], JsonObject] = {}
    for forecast in observed.get("forecasts", ()):
        chance = _probability(forecast)
        scores.setdefault(
            (forecast["agent"], forecast["forecast"]),
            {
                "agent": forecast["agent"],
                "agent_version": forecast["agent_version"],
                "forecast": forecast["forecast"],
                "probability": chance,
                "happened": forecast["happened"],
                "brier": round((chance - forecast["happened"]) ** 2, 12),
            },
        )
    return Append("outcome", trunk(record), {**observed, "scores": list(scores.values())})


def budget_exhausted(calls_seq: int, call: IntendedCall) -> Append:
    """The step that says that a call was not made, because a budget has no room for it."""
    return Append(
        "budget_exhausted", calls_seq, {"agent": call.agent, "attempt": call.attempt, "most_micros": call.micros}
    )


def call_id(record: Record, calls_seq: int, call: IntendedCall) -> UUID:
    """The id of one attempt: whoever intends it again gets the same."""
    return derived_id("call", record.decision.decision_id, calls_seq, call.agent, call.attempt)


def has_open_calls(record: Record) -> bool:
    """Whether an attempt was intended and has not ended."""
    ended = {step.body["call_id"] for step in record.all("call_answered")}
    return any(step.body["call_id"] not in ended for step in record.all("call_intended"))


def is_superseded(record: Record) -> bool:
    """Whether an event says that what the decision was opened for is not so."""
    return any(step.body["supersedes"] for step in record.all("joined"))


def ends_at(record: Record) -> datetime:
    """When a decision's time is over: its deadline before the release, and after it the end of its horizon."""
    if record.decision.state in BEFORE_RELEASE:
        return record.decision.deadline
    begun = record.last("observing")
    if begun is None:
        return record.decision.deadline + GIVEN_UP_AFTER
    return begun.at + timedelta(seconds=begun.body["ceiling_seconds"]) + GIVEN_UP_AFTER


def approval_expiry(record: Record) -> datetime | None:
    """Until when the approval that is waited for may be given."""
    asked = record.last("approval_asked")
    return None if asked is None else datetime.fromisoformat(asked.body["expires_at"])


def state_after(kind: str, body: JsonObject) -> str | None:
    """The state that a step moves its decision to; None where it stays."""
    return str(body["state"]) if kind in ("calls", "state", "closed") else STATES.get(kind)


def moved(record: Record, state: str, because: Step | None) -> Append:
    """The step that says which state follows from what."""
    parent = trunk(record) if because is None else because.seq
    return Append("state", parent, {"state": state}, state)


def closed(record: Record, state: str, reason: str) -> Append:
    """The last step."""
    return Append("closed", trunk(record), {"state": state, "reason": reason}, state)


def _probability(forecast: Mapping[str, Any]) -> float:
    if "probability_ppm" in forecast:
        return float(forecast["probability_ppm"]) / 1_000_000
    return float(forecast["probability"])
