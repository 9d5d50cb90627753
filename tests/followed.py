"""Follows a page of the docs in a copy of the checkout: runs its commands and makes its files and edits, in order."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.checkout import Copy

BLOCK = re.compile(r"(?:^`([^`\s]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKS = (
    ("-m", "ruff", "check", "."),
    ("-m", "ruff", "format", "--check", "."),
    ("-m", "mypy", "functions", "layers/core/domains"),
    ("-c", "import importlinter.cli; importlinter.cli.lint_imports_command()"),
    ("-m", "samcli", "validate", "--lint"),
    ("scripts/generate", "--check"),
)
"""What `scripts/test checks` runs, with mypy on what the pages add to."""
UNIT = (
    "tests/unit/test_*.py",
    "tests/unit/model/test_contract.py",
    "tests/unit/model/test_event_contract_doc.py",
    "tests/unit/model/test_schemas.py",
    "tests/unit/acp_cli/test_invoke_command.py",
)
"""Of `scripts/test unit`, the tests that read the template, the domains, the samples and the docs."""


def follow(page: str, copy: Copy) -> list[str]:
    """Does what the page says, in its order; returns the commands that it ran, all of which succeeded."""
    done: list[str] = []
    for path, language, text in BLOCK.findall(page):
        if language == "console":
            for line in text.splitlines():
                run(line.removeprefix("$ "), copy)
                done.append(line)
        elif language == "diff":
            edit(copy.folder / path, text)
        else:
            assert path, f"a block that belongs to no file: {text}"
            copy.write(numbered(path, copy), text)
    return done


def numbered(path: str, copy: Copy) -> str:
    """Returns a migration's path with the number that it was given."""
    if "/NNNN_" not in path:
        return path
    [found] = copy.folder.glob(path.replace("NNNN", "[0-9][0-9][0-9][0-9]"))
    return str(found.relative_to(copy.folder))


def edit(file: Path, difference: str) -> None:
    """Applies an edit: lines to remove (-), lines to insert (+), and unchanged lines that say where."""
    text = file.read_text(encoding="utf-8")
    before = ""
    for line in difference.splitlines():
        kind, content = line[0], line[1:] + "\n"
        if kind == "+":
            text = text.replace(before, before + content, 1) if before else text.replace("\0", content, 1)
            before = ""
            continue
        assert text.count(content) == 1, f"{file.name} has no such line: {content}"
        before = content if kind == " " else ""
        text = text if before else text.replace(content, "\0", 1)
    assert "\0" not in text
    file.write_text(text, encoding="utf-8")


def run(line: str, copy: Copy) -> None:
    """Runs a command of the page; shows its output if it fails."""
    for command in commands(line, copy.folder):
        ran = copy.run(*command)
        assert ran.returncode == 0, f"{line}\n{command}\n{ran.stdout[-6000:]}\n{ran.stderr[-3000:]}"


def commands(line: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """Returns a command of the page in the form in which Python runs it in the copy."""
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
    """Returns the command for pytest on these paths."""
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)
