"""Reads agents' answers in a decision's record."""

import json
from collections.abc import Mapping
from typing import Any

from control_plane.model.deciding import Record


def content_of(record: Record, found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Returns an answer as it was given, None where there is none; a large one is in its artifact alone."""
    if found is None or found["outcome"] != "answered":
        return None
    if found["answer"] is not None:
        answer: Mapping[str, Any] = found["answer"]
        return answer
    content: Mapping[str, Any] = json.loads(record.artifacts[bytes.fromhex(found["answer_sha256"])])
    return content


def answer_of(record: Record, agent: str) -> Mapping[str, Any] | None:
    """Returns the newest answer of an agent; None where it was not asked, or gave none that can be used."""
    for step in reversed(record.all("answers")):
        if agent in step.body["answers"]:
            return content_of(record, step.body["answers"][agent])
    return None


def was_asked(record: Record, agent: str) -> bool:
    """Whether an agent was asked and has answered or failed."""
    return any(agent in step.body["answers"] for step in record.all("answers"))


def next_to_ask(record: Record, agent: str) -> str | None:
    """Returns the agent to be asked, or its stand-in where it gave no answer; None once there is nobody left to ask.

    An agent that a person switched off has no stand-in: the question is not to be answered.
    """
    if not was_asked(record, agent):
        return agent
    outcome = next(
        step.body["answers"][agent]["outcome"]
        for step in reversed(record.all("answers"))
        if agent in step.body["answers"]
    )
    stand_in = stand_in_of(agent)
    return None if outcome in ("answered", "switched_off") or was_asked(record, stand_in) else stand_in


def answer_or_stand_in(record: Record, agent: str) -> Mapping[str, Any] | None:
    """Returns an agent's newest answer, or its stand-in's; None where neither gave one."""
    return answer_of(record, agent) or answer_of(record, stand_in_of(agent))


def stand_in_of(agent: str) -> str:
    """Returns the name of the deterministic agent that is asked in the place of one that gave no answer."""
    return f"{agent}_by_rule"
