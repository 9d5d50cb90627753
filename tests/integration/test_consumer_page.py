"""docs/writing_a_consumer.md, followed from its own text in a copy of the checkout."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.checkout import ROOT, Copy
from tests.template import RESOURCES

PAGE = (ROOT / "docs" / "writing_a_consumer.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^`([^`\s]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKS = (
    ("-m", "ruff", "check", "."),
    ("-m", "ruff", "format", "--check", "."),
    ("-m", "mypy", "functions/source_watch", "layers/core/domains", "tests/integration/test_source_watch.py"),
    ("-c", "import importlinter.cli; importlinter.cli.lint_imports_command()"),
    ("-m", "samcli", "validate", "--lint"),
    ("scripts/generate", "--check"),
)
"""What `scripts/test checks` runs, with mypy on what is new."""
UNIT = ("tests/unit/test_*.py", "tests/unit/model", "tests/unit/acp_cli/test_invoke_command.py")
"""Of `scripts/test unit`, the tests that read the template, the domains, the samples and the docs."""


def commands(line: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """One command of the page, as Python runs it in the copy."""
    match shlex.split(line):
        case ["scripts/acp", *arguments]:
            yield ("-m", "acp_cli", *arguments)
        case [".acp/venvs/dev/bin/python", *arguments]:
            yield tuple(arguments)
        case ["scripts/test", "checks", "unit"]:
            yield from CHECKS
            yield pytest_of(*(str(path.relative_to(folder)) for pattern in UNIT for path in folder.glob(pattern)))
        case ["scripts/test", "integration", "--", *paths]:
            yield pytest_of(*paths)
        case words:
            raise AssertionError(f"the page tells to run {words}")


def pytest_of(*paths: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)


@pytest.mark.timeout(900)
def test_who_follows_the_page_ends_with_green_checks(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "checkout")
    done: list[str] = []
    for path, language, text in BLOCK.findall(PAGE):
        if language != "console":
            assert path, f"a block that belongs to no file: {text}"
            [migration] = copy.folder.glob("db/migrations/*_source_watch.sql")
            copy.write(path.replace("NNNN_source_watch.sql", migration.name), text)
            continue
        for line in text.splitlines():
            for command in commands(line.removeprefix("$ "), copy.folder):
                ran = copy.run(*command)
                assert ran.returncode == 0, f"{line}\n{command}\n{ran.stdout[-6000:]}\n{ran.stderr[-3000:]}"
            done.append(line)
    assert len(done) == 5


def test_the_page_names_each_file_that_the_skeleton_writes(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "checkout")
    for kind in (["consumer", "source_watch", "--topic", "system.events"], ["migration", "source_watch"]):
        would = copy.run("-m", "acp_cli", "new", *kind, "--dry-run")
        assert would.returncode == 0, would.stderr
        paths = [line.rpartition(" ")[2] for line in would.stdout.splitlines()]
        assert len(paths) >= 2
        for path in paths:
            assert f"`{re.sub(r'/[0-9]{4}_', '/NNNN_', path)}`" in PAGE, path


def test_what_the_page_says_of_the_template_is_so() -> None:
    named = set(re.findall(r"\*?\*?SourceWatch(\w+)", PAGE))
    for suffix in named:
        assert f"SignalLab{suffix}" in RESOURCES or f"MarketTicks{suffix}" in RESOURCES or suffix == "BehindAlarm"
