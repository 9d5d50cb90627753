"""Follows docs/writing_a_domain.md in a copy of the checkout, from the page's own text."""

from pathlib import Path

import pytest
from tests.checkout import ROOT, Copy
from tests.followed import follow, run

PAGE = (ROOT / "docs" / "writing_a_domain.md").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
def test_who_follows_the_page_ends_with_green_checks(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "checkout")
    # The page's last chapter names a consumer; it is made once the domain with its topic exists.
    before, checks = PAGE.rsplit("$ scripts/test checks unit\n", 1)
    assert follow(before + checks, copy) == ["$ .acp/venvs/dev/bin/python scripts/generate"]
    command = "scripts/acp new consumer frost_watch --topic weather.measurements"
    assert f"`{command}`" in PAGE
    run(command, copy)
    assert (copy.folder / "layers/core/domains/weather/frost_watch/__init__.py").is_file()
    run("scripts/test checks unit", copy)
