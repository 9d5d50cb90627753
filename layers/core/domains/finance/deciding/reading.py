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
