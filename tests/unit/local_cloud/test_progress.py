from __future__ import annotations

import io

import pytest
from rich.console import Console

from local_cloud.progress import Progress


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=40, force_terminal=False)


def test_a_step_is_one_line_with_its_note_however_long(console: Console) -> None:
    with Progress(console).step("Market data") as step:
        step.note = "replay, because [this] is quite a long reason"
    (line,) = written(console).splitlines()
    assert line.startswith("✓ Market data: replay, because [this] is quite a long reason  0.")


def test_a_failed_step_is_marked_and_its_error_goes_on(console: Console) -> None:
    with pytest.raises(ValueError, match="why"), Progress(console).step("Build"):
        raise ValueError("why")
    assert written(console).startswith("✗ Build  0.")


def test_progress_becomes_a_line_only_now_and_then(console: Console) -> None:
    with Progress(console).step("Flow") as step:
        for count in range(100):
            step.update(f"{count} of 100")
    assert written(console).splitlines()[0] == "  0 of 100"
    assert len(written(console).splitlines()) == 2
