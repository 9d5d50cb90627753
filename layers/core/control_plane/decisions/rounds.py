"""A round of agents' calls: who is asked, who is asked again, who is given up on, and what came of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

from control_plane.decisions.moves import Append, Circumstances, Intend, IntendedCall, Move, Wait, trunk
from control_plane.decisions.record import sha256
from control_plane.model.deciding import AgentRequest, JsonObject, Playbook, Record, Step
from control_plane.model.errors import PlaybookFault
from control_plane.model.ids import canonical_json

MOST_CALLS: Final = 7
"""Of agents side by side: their answers must fit into one step."""
MOST_ANSWER_BYTES: Final = 8192
"""A larger answer is in its artifact alone."""


class PricedAgent(Protocol):
    """What a round needs to know of an agent. In a replay, that is what the record says of it."""

    name: str
    version: str

    def most_micros(self, request: bytes) -> int:
        """See :class:`~control_plane.model.deciding.Agent`."""


def pinned_agents(record: Record) -> Mapping[str, str]:
    """Returns each agent's version as of the decision's opening, by its name."""
    pins = json.loads(record.artifacts[record.decision.pins_sha256])
    return {str(name): str(version) for name, version in pins["agents"].items()}


def begin_round(
    record: Record, state: str, requests: Sequence[AgentRequest], playbook: Playbook, agents: Mapping[str, PricedAgent]
) -> Append:
    """The step that asks agents, each in its pinned version and with its own request. Raises PlaybookFault."""
    names, pinned = [request.agent for request in requests], pinned_agents(record)
    if not names or len(names) > MOST_CALLS or len(set(names)) < len(names) or not set(names) <= pinned.keys():
        raise PlaybookFault(
            f"playbook {playbook.name} calls {names}: it must be 1 to {MOST_CALLS} of its domain's agents, each once"
        )
    contents = {request.agent: canonical_json(dict(request.request), field="request") for request in requests}
    calls = tuple(
        _intended(agents[agent], 1, content, playbook)
        for agent, content in contents.items()
        if _is_here(agent, pinned[agent], agents)  # the next move gives up on the others
    )
    return Append(
        "calls",
        trunk(record),
        {
            "state": state,
            "calls": [
                {"agent": agent, "agent_version": pinned[agent], "request_sha256": sha256(content).hex()}
                for agent, content in contents.items()
            ],
        },
        state,
        artifacts=tuple(("request", content) for content in contents.values()),
        calls=calls,
    )


def children(record: Record, parent: Step, *kinds: str) -> list[Step]:
    """The steps of some kinds that grow from one."""
    return [step for step in record.steps if step.parent == parent.seq and step.kind in kinds]


@dataclass(slots=True)
class _Call:
    """How one agent's call stands."""

    version: str
    intended: int = 0
    ended: list[Step] = field(default_factory=list)
    given_up: Step | None = None

    @property
    def answer(self) -> Step | None:
        return next((step for step in self.ended if step.body["outcome"] == "answered"), None)

    @property
    def is_settled(self) -> bool:
        return self.answer is not None or self.given_up is not None

    @property
    def is_open(self) -> bool:
        return len(self.ended) < self.intended

    @property
    def pauses_until(self) -> datetime | None:
        """Before then it is not tried again: whoever is behind the agent asked for that."""
        seconds = self.ended[-1].body.get("retry_after_seconds") if self.ended else None
        return None if seconds is None else self.ended[-1].at + timedelta(seconds=seconds)


def next_of_round(
    record: Record, calls: Step, playbook: Playbook, agents: Mapping[str, PricedAgent], given: Circumstances
) -> Move:
    """What is to be done for a round that has no answers yet."""
    standing = {call["agent"]: _Call(call["agent_version"]) for call in calls.body["calls"]}
    for step in children(record, calls, "call_intended", "call_answered", "agent_failed", "budget_exhausted"):
        call = standing[step.body["agent"]]
        match step.kind:
            case "call_intended":
                call.intended += 1
            case "call_answered":
                call.ended.append(step)
            case _:
                call.given_up = step
    due = [agent for agent, call in standing.items() if not call.is_settled and not call.is_open]
    for agent in due:
        if (
            failed := _given_up(
                record, calls, agent=agent, call=standing[agent], playbook=playbook, agents=agents, given=given
            )
        ) is not None:
            return failed
    paused = {agent: until for agent in due if (until := standing[agent].pauses_until) and _is_ahead(until, given)}
    due = [agent for agent in due if agent not in paused]
    if due:
        requests = {call["agent"]: bytes.fromhex(call["request_sha256"]) for call in calls.body["calls"]}
        return Intend(
            calls.seq,
            tuple(
                _intended(agents[agent], standing[agent].intended + 1, record.artifacts[requests[agent]], playbook)
                for agent in due
            ),
        )
    if paused or any(call.is_open for call in standing.values() if not call.is_settled):
        return Wait(min(paused.values(), default=None))
    return Append(
        "answers",
        calls.seq,
        {"calls_seq": calls.seq, "answers": {agent: _answer(record, call) for agent, call in standing.items()}},
    )


def _given_up(
    record: Record,
    calls: Step,
    *,
    agent: str,
    call: _Call,
    playbook: Playbook,
    agents: Mapping[str, PricedAgent],
    given: Circumstances,
) -> Append | None:
    """The step that says that a call is not tried again; None where it is."""
    last = call.ended[-1].body if call.ended else {}
    latest = record.decision.deadline - timedelta(seconds=playbook.limits.call_seconds)
    if call.intended >= playbook.limits.most_attempts:
        how, reason = last["outcome"], last.get("error") or ""
    elif f"agent:{agent}" in given.switched_off:
        how, reason = "switched_off", "it is switched off"
    elif not _is_here(agent, call.version, agents):
        how, reason = "gone", f"its version {call.version} is not in this release"
    elif call.pauses_until is not None and call.pauses_until > latest:
        how, reason = last["outcome"], "its pause would outlast the decision"
    else:
        return None
    return _failed(calls, agent, call.intended, how, reason)


def _is_ahead(until: datetime, given: Circumstances) -> bool:
    return given.now is not None and until > given.now


def _is_here(agent: str, version: str, agents: Mapping[str, PricedAgent]) -> bool:
    return agent in agents and agents[agent].version == version


def _failed(calls: Step, agent: str, attempts: int, how: str, reason: str) -> Append:
    return Append("agent_failed", calls.seq, {"agent": agent, "attempts": attempts, "outcome": how, "reason": reason})


def _answer(record: Record, call: _Call) -> JsonObject:
    step = call.answer
    if step is None:
        assert call.given_up is not None
        how = "budget_exhausted" if call.given_up.kind == "budget_exhausted" else call.given_up.body["outcome"]
        return {"outcome": how, "seq": call.given_up.seq, "answer": None, "answer_sha256": None}
    assert step.output_sha256 is not None
    content = record.artifacts[step.output_sha256]
    return {
        "outcome": "answered",
        "seq": step.seq,
        "answer": json.loads(content) if len(content) <= MOST_ANSWER_BYTES else None,
        "answer_sha256": step.output_sha256.hex(),
    }


def _intended(plug_in: PricedAgent, attempt: int, request: bytes, playbook: Playbook) -> IntendedCall:
    return IntendedCall(
        agent=plug_in.name,
        agent_version=plug_in.version,
        attempt=attempt,
        request_sha256=sha256(request),
        micros=plug_in.most_micros(request),
        seconds=playbook.limits.call_seconds,
    )
