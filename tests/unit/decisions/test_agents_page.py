"""docs/agents.md: its code runs, its figures add up, it names every variable that is read."""

import re
from pathlib import Path
from typing import Any

from control_plane.decisions import settings
from control_plane.decisions.models import model_agent
from control_plane.decisions.models.conversation import Usage
from control_plane.decisions.models.model_agent import MOST_REPAIRS, ModelAgent, check_answer
from control_plane.decisions.models.prices import OVERHEAD_TOKENS, price_of

PAGE = (Path(__file__).parents[3] / "docs" / "agents.md").read_text(encoding="utf-8")


def page_code() -> dict[str, Any]:
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "docs/agents.md", "exec"), names)
    return names


def test_the_pages_agents_are_agents() -> None:
    names = page_code()
    result = names["CauseByRule"]().call(b"{}", attempt=1, seconds_left=1)
    assert check_answer(result.answer, names["Cause"]) is None
    assert isinstance(names["CAUSE_BY_MODEL"], ModelAgent)


def test_the_pages_example_of_costs_adds_up() -> None:
    price = price_of("eu.anthropic.claude-haiku-4-5-20251001-v1:0")
    assert f"{price.input_micros:,}/{price.output_micros:,}" in PAGE
    repair = model_agent._MOST_REPAIR_BYTES
    reserved = sum(price.worst_case(6000 + turn * repair, 1024) for turn in range(1 + MOST_REPAIRS))
    assert f"about {round(reserved, -3):,} micros" in PAGE
    assert f"is charged {price.of(Usage(2000, 300)):,}" in PAGE
    assert f"bytes plus {OVERHEAD_TOKENS:,}" in PAGE


def test_the_page_has_every_variable_of_models() -> None:
    source = Path(settings.__file__).read_text(encoding="utf-8")
    read = set(re.findall(r'"(MODEL_[A-Z_]+)"', source)) | {"AGENT_LEASE_SECONDS"}
    assert read <= set(re.findall(r"`([A-Z_]+)`", PAGE))
