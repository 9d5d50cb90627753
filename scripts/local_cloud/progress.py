"""Shows progress, one line per step, on standard error, because standard output is for results."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from local_cloud.visible import Terminal, shown, shown_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


_LINE_SECONDS = 5.0


class Step:
    """One running step."""

    def __init__(self, title: str, console: Console) -> None:
        self.note = ""
        """What is worth knowing about how it went; shown once it is done."""
        self._title = title
        self._console = console
        self._started = time.monotonic()
        self._shown = ""
        self._shown_at = 0.0
        self._status = console.status(self._spinning()) if console.is_terminal else None

    def update(self, text: str) -> None:
        """Shows how far it is: beside the spinner, or as an occasional line."""
        if self._status is not None:
            self._status.update(f"{self._spinning()} {shown(text)}")
        elif text != self._shown and time.monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown, self._shown_at = text, time.monotonic()
            self._console.print(f"  {shown(text)}", soft_wrap=True)

    def _spinning(self) -> str:
        return f"{shown(self._title)} …"

    def start(self) -> None:
        """Shows that the step runs."""
        if self._status is not None:
            self._status.start()

    def finish(self, mark: str, note: str = "") -> None:
        """Prints one line: how the step ended, and after how long."""
        if self._status is not None:
            self._status.stop()
        elapsed = f"[dim]{time.monotonic() - self._started:.1f} s[/]"
        self._console.print(f"{mark} {shown(self._title)}{shown(note)}  {elapsed}", soft_wrap=True)


class Progress:
    """Shows progress: on a terminal a spinner and then a tick; otherwise plain lines as things happen."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal(stderr=True)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Shows a step from its start to its end. If it fails, the error says why; this does not."""
        step = Step(title, self.console)
        step.start()
        try:
            yield step
        except BaseException:
            step.finish("[red]✗[/]")
            raise
        step.finish("[green]✓[/]", f": {step.note}" if step.note else "")

    def say(self, text: str) -> None:
        """Prints a line of plain text."""
        self.console.print(shown_lines(text), soft_wrap=True)
