"""Progress, one line per step, on standard error: standard output is for what was asked for."""

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
        """Show how far it is: beside the spinner, or as a line now and then."""
        if self._status is not None:
            self._status.update(f"{self._spinning()} {shown(text)}")
        elif text != self._shown and time.monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown, self._shown_at = text, time.monotonic()
            self._console.print(f"  {shown(text)}", soft_wrap=True)

    def _spinning(self) -> str:
        return f"{shown(self._title)} …"

    def start(self) -> None:
        """Show that it runs."""
        if self._status is not None:
            self._status.start()

    def finish(self, mark: str, note: str = "") -> None:
        """Leave one line: how it ended, and after how long."""
        if self._status is not None:
            self._status.stop()
        elapsed = f"[dim]{time.monotonic() - self._started:.1f} s[/]"
        self._console.print(f"{mark} {shown(self._title)}{shown(note)}  {elapsed}", soft_wrap=True)


class Progress:
    """On a terminal a spinner, then a tick; otherwise plain lines as things happen."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal(stderr=True)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a step from its start to its end. It says nothing about why one failed: the error does."""
        step = Step(title, self.console)
        step.start()
        try:
            yield step
        except BaseException:
            step.finish("[red]✗[/]")
            raise
        step.finish("[green]✓[/]", f": {step.note}" if step.note else "")

    def say(self, text: str) -> None:
        """A line of plain prose."""
        self.console.print(shown_lines(text), soft_wrap=True)
