"""Events as the owner's functions take them that store them: as JSON, each with the topics it is published on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class NewMessage:
    """One event to be stored and published."""

    topic: str
    message: Mapping[str, Any]
    """The whole canonical event, as JSON."""
    also_topics: tuple[str, ...] = ()
    """Further topics that it is published on."""
    raw_payload_id: UUID | None = None


def as_json(messages: Sequence[NewMessage]) -> str:
    """Returns what insert_events and insert_decision_events take. A message is sent as it is written here."""
    return json.dumps(
        [_given(message) for message in messages], allow_nan=False, ensure_ascii=False, separators=(",", ":")
    )


def one_as_json(message: NewMessage) -> str:
    """Returns the one event that an owner's function takes beside what it records."""
    return _dumps(_given(message))


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _given(message: NewMessage) -> dict[str, Any]:
    return {
        "topic": message.topic,
        "also_topics": list(message.also_topics),
        "raw_payload_id": None if message.raw_payload_id is None else str(message.raw_payload_id),
        "message": message.message,
    }
