"""Prints what a drill does: a line per event, and on a terminal a last line that says what the drill waits for."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from local_cloud.visible import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.status import Status


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a drill is to show, whether it was seen to hold, and what was seen."""

    claim: str
    held: bool
    seen: str


@dataclass
class Result:
    """The result of one drill."""

    drill: str
    guarantee: str
    problem: str = "not seen through"
    """The reason why the drill did not finish; empty if it did."""
    seconds: float = 0.0
    trace_ids: list[str] = field(default_factory=list)
    """The runs that stored its events; scripts/acp trace shows each event's timeline."""
    claims: list[Claim] = field(default_factory=list)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """Each thing that happened, with the seconds since the drill began."""

    @property
    def held(self) -> bool:
        """Whether the guarantee held: the drill finished, and every claim of it held."""
        return not self.problem and bool(self.claims) and all(claim.held for claim in self.claims)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON."""
        return {"drill": self.drill, "held": self.held, **asdict(self)}


class Narrator:
    """Prints what happens, and keeps it for the result."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._started = time.monotonic()
        self.result = Result("", "")

    @contextlib.contextmanager
    def telling(self, result: Result) -> Iterator[None]:
        """Shows one drill, from its heading to its end."""
        self.result, self._started = result, time.monotonic()
        self._console.print(f"[bold]{result.drill}[/]: {shown(result.guarantee)}", soft_wrap=True)
        self._status = self._console.status("…") if self._console.is_terminal else None
        with self._status or contextlib.nullcontext():
            try:
                yield
            finally:
                result.seconds = round(self.seconds, 1)
                self._status = None

    @property
    def seconds(self) -> float:
        """Returns the seconds since the drill began."""
        return time.monotonic() - self._started

    def say(self, text: str, *, style: str = "") -> None:
        """Prints something that happened."""
        seconds = self.seconds
        self.result.timeline.append((round(seconds, 2), text))
        words = f"[{style}]{shown(text)}[/]" if style else shown(text)
        self._console.print(f"[dim]{seconds:6.1f} s[/]  {words}", soft_wrap=True)

    def show(self, text: str) -> None:
        """Shows what the drill waits for; only on a terminal, in the place of what was shown before."""
        if self._status is not None:
            self._status.update(shown(text))

    def claim(self, claim: str, *, held: bool, seen: str) -> None:
        """Prints a claim, whether it held, and what was seen."""
        self.result.claims.append(Claim(claim, held, seen))
        mark = "[green]✓[/]" if held else "[red]✗[/]"
        self._console.print(f"      {mark}   {shown(claim)}: {shown(seen)}", soft_wrap=True)
