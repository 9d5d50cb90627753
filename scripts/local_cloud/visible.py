"""Makes text from elsewhere harmless on its way to a terminal; no other module does that.

A source's text, a token's name or an error can hold terminal escapes, line ends and what rich takes for markup. `shown`
makes such a text part of a line of markup; `visible` does the same for what is written without rich. Every command
prints to a `Terminal`, which lets no control character through that is not rich's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from control_plane.model.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

__all__ = ["Terminal", "shown", "shown_lines", "visible", "visible_lines"]


def shown(text: object) -> str:
    """Returns a foreign text for use within rich markup: on one line, and with nothing in it to be interpreted."""
    return escape(visible(str(text)))


def shown_lines(text: str) -> str:
    """Returns a text of several lines for use within rich markup: our own errors have a line per complaint."""
    return escape(visible_lines(text))


def visible_lines(text: str) -> str:
    """Returns a text of several lines, such as a program's output, with each of its lines visible."""
    return "\n".join(visible(line.expandtabs()) for line in text.split("\n"))


class Terminal(Console):
    """The console of every command. It highlights nothing, and control characters in what it prints are written out."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yields the segments of what is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible_lines(segment.text))
