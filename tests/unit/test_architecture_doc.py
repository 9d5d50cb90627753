"""The links of docs/architecture.md lead to the lines that define the named things."""

import re
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs" / "architecture.md"
LINKS = re.findall(r"\[`([^`]+)`\]\(([^)#]+)#L(\d+)\)", DOC.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "path", "line"), LINKS, ids=[f"{path}:{name}" for name, path, _ in LINKS])
def test_a_link_leads_to_the_line_that_defines_its_name(name: str, path: str, line: str) -> None:
    lines = (DOC.parent / path).read_text(encoding="utf-8").splitlines()
    last = name.rpartition(".")[2]
    definition = re.compile(rf"\s*(def {last}\b|class {last}\b|-- name: {last}$)")
    there = [number for number, text in enumerate(lines, 1) if definition.match(text)]
    assert int(line) in there, f"{name} is at line {' or '.join(map(str, there))} of {path}"


def test_a_message_passes_five_files() -> None:
    chapter = DOC.read_text(encoding="utf-8").split("## One message, from claim to settle")[1].split("\n## ")[0]
    files = re.findall(r"^\| \d \| `(\w+\.py)` \|", chapter, re.MULTILINE)
    assert files == ["invocation.py", "lanes.py", "claims.py", "sending.py", "settlements.py"]
