"""Follows docs/writing_a_consumer.md in a copy of the checkout, from the page's own text."""

import re
from pathlib import Path

import pytest
from tests.checkout import ROOT, Copy
from tests.followed import follow
from tests.template import RESOURCES

PAGE = (ROOT / "docs" / "writing_a_consumer.md").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
def test_who_follows_the_page_ends_with_green_checks(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "checkout")
    assert len(follow(PAGE, copy)) == 5


def test_the_page_names_each_file_that_the_skeleton_writes(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "checkout")
    for kind in (["consumer", "source_watch", "--topic", "system.events"], ["migration", "source_watch"]):
        would = copy.run("-m", "acp_cli", "new", *kind, "--dry-run")
        assert would.returncode == 0, would.stderr
        paths = [line.rpartition(" ")[2] for line in would.stdout.splitlines()]
        assert len(paths) >= 2
        for path in paths:
            assert f"`{re.sub(r'/[0-9]{4}_', '/NNNN_', path)}`" in PAGE, path
    assert list(copy.folder.rglob("*source_watch*")) == [], "a dry run writes nothing"


def test_the_template_is_as_the_page_says() -> None:
    named = set(re.findall(r"\*?\*?SourceWatch(\w+)", PAGE))
    for suffix in named:
        assert f"SignalLab{suffix}" in RESOURCES or f"MarketTicks{suffix}" in RESOURCES or suffix == "BehindAlarm"
