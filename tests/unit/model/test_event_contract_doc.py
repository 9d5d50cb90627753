"""docs/event_contract.md is true: its example is an event, its steps give the example's id, its lists are complete."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from control_plane.model.contract import PLATFORM_PAYLOADS, Event
from control_plane.model.decision_events import DECISION_PAYLOADS
from control_plane.model.ids import EVENT_NAMESPACE, MAX_DEPTH, canonical_json
from control_plane.model.trace import traceparent
from domains import DOMAINS, EVENT_TYPES

ROOT = Path(__file__).parents[3]
DOC = ROOT / "docs" / "event_contract.md"
TEXT = DOC.read_text(encoding="utf-8")


def block(language: str) -> str:
    """Returns the only code block in a language, without its indentation."""
    (found,) = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", TEXT, re.MULTILINE | re.DOTALL)
    indentation, code = found
    return "".join(line.removeprefix(indentation) for line in code.splitlines(keepends=True))


EXAMPLE: dict[str, Any] = json.loads(block("json"))


def test_the_example_is_an_event_as_it_is_published() -> None:
    event = EVENT_TYPES.parse_event(block("json"))
    assert event.to_message() == EXAMPLE
    assert list(event.to_message()) == list(EXAMPLE)


def test_the_canonical_text_is_that_of_the_examples_eight_fields() -> None:
    eight = ["source", "event_type", "entity_id", "series", "occurred_at", "schema_version", "revision", "payload"]
    assert block("text").strip().encode() == canonical_json({name: EXAMPLE[name] for name in eight})


def test_the_steps_lead_to_the_examples_id() -> None:
    variables: dict[str, Any] = {"canonical_text": block("text").strip()}
    exec(block("python"), variables)
    assert variables["event_id"] == UUID(EXAMPLE["event_id"])
    assert variables["namespace"] == EVENT_NAMESPACE
    assert f"`event_id` is `{EXAMPLE['event_id']}`" in TEXT
    assert f"\n    {EVENT_NAMESPACE}\n" in TEXT


def test_the_field_table_names_every_field_in_order() -> None:
    envelope = TEXT[: TEXT.index("On a queue")]
    assert re.findall(r"^\| `(\w+)` \|", envelope, re.MULTILINE) == list(Event.model_fields)


def test_the_event_table_names_every_type_version_topic_and_schema() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(schemas/(\S+)\) \| (\d+) \| `(\S+)` \|", TEXT, re.MULTILINE)
    assert rows == [
        (
            model.event_type,
            f"{model.event_type.lower()}.v{model.schema_version}.schema.json",
            str(model.schema_version),
            model.topic,
        )
        for model in (
            *(payload for domain in DOMAINS for payload in domain.payloads),
            *PLATFORM_PAYLOADS,
            *DECISION_PAYLOADS,
        )
    ]
    assert len(rows) == len(list(EVENT_TYPES))


def test_the_limits_are_those_of_the_code() -> None:
    assert f"at most {MAX_DEPTH} deep" in " ".join(TEXT.split())
    parent = traceparent(EXAMPLE["trace_id"], EXAMPLE["event_id"])
    assert parent.split("-")[2] == UUID(EXAMPLE["event_id"]).bytes[-8:].hex()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (DOC.parent / target).exists()
