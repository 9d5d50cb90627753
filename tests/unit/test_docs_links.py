"""Links and references in the Markdown files and in the code lead somewhere."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from tests.checkout import ROOT, files

PAGES = [path for path in files() if path.suffix == ".md"]
TEXTS = {".py", ".md", ".sql", ".yaml", ".yml", ".toml", ".sh", ""}
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NOWHERE = re.compile(r"\b(?:design(?:\.md)?,? section|section \d|row \d+ of|guarantee G?\d|G\d{1,2}\b(?![+/=]))")
"""A numbered reference to a document that is not in the repository."""


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), f"{link} leaves the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link
        elif anchor.startswith("L"):
            assert int(anchor[1:]) <= len(target.read_text(encoding="utf-8").splitlines()), link


def test_nothing_refers_to_a_numbered_place_elsewhere() -> None:
    found = []
    for path in files():
        if path.suffix in TEXTS and path != Path("tests/unit/test_docs_links.py") and (ROOT / path).is_file():
            lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
            found += [f"{path}:{number}: {line}" for number, line in enumerate(lines, 1) if NOWHERE.search(line)]
    assert found == []


def test_every_guarantee_is_linked_to_tests_that_exist() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    chapters = text.split("\n## ")[1:]
    assert len(chapters) == 15
    for chapter in chapters:
        links = re.findall(r"^- \[(\w+)\]\(\.\./(tests/\S+\.py)\)$", chapter, re.MULTILINE)
        assert len(links) >= 2, chapter
        for name, path in links:
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def test_readme_and_the_guarantees_page_have_the_same_guarantees() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("**What you can rely on**")[2]
    rows = re.findall(r"^\| ([A-Z][a-z ]+) \|", readme.partition("**What that costs.**")[0], re.MULTILINE)
    assert rows == re.findall(r"^## (.+)$", page, re.MULTILINE)


def test_a_word_has_one_line_in_the_glossary() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| (?!word|-)([^|]+?) \|", text, re.MULTILINE)
    assert len(words) >= 40
    assert len(words) == len(set(words))


def test_every_command_of_the_justfile_calls_a_script_that_exists() -> None:
    recipes = re.findall(r"^    @?(.+)$", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE)
    called = {shlex.split(line)[0] for line in recipes}
    scripts = {name for name in called if name.startswith("scripts/")}
    assert scripts >= {"scripts/test", "scripts/acp", "scripts/demo", "scripts/lock"}
    assert all((ROOT / name).is_file() for name in scripts)
    assert called - scripts <= {"just", "bash", ".acp/venvs/dev/bin/ruff", ".acp/venvs/dev/bin/python"}


def test_the_workflows_call_scripts_that_exist() -> None:
    called: set[str] = set()
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            for step in job["steps"]:
                called |= set(re.findall(r"(?:scripts|\.ci)/\w+", step.get("run", "")))
    assert ".ci/run" in called
    assert all((ROOT / name).is_file() for name in called)


def test_the_forms_of_github_are_yaml() -> None:
    forms = [*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"), ROOT / ".github" / "dependabot.yml"]
    assert len(forms) >= 3
    for path in forms:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_scripts_that_are_run_by_hand_are_executable() -> None:
    for name in ("acp", "demo", "lock", "test"):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name


MADE_UP = {"docs/writing_a_consumer.md", "docs/writing_a_domain.md"}
"""Pages that make files, whose paths tests follow elsewhere."""


@pytest.mark.parametrize("page", [page for page in PAGES if str(page) not in MADE_UP], ids=str)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    top = "tests|scripts|functions|layers|db|docs|events|requirements"
    for path in re.findall(rf"`((?:{top})/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path


def test_every_test_that_a_page_names_is_there() -> None:
    tests = [path for path in files() if path.parts[0] == "tests" and path.suffix == ".py"]
    there = {name for path in tests for name in re.findall(r"def (test_\w+)\(", (ROOT / path).read_text("utf-8"))}
    named = {
        name
        for page in PAGES
        for name in re.findall(r"`(test_\w+)`", CODE.sub("", (ROOT / page).read_text(encoding="utf-8")))
    }
    assert len(named) >= 20
    assert named - there == set()
