"""Draws messages a second as an SVG: one bar for each who was measured, and where the messages went."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from bench.report import number_text, value_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.figures import Figure

_WIDTH, _LABELS, _VALUES, _ROW, _TOP = 860, 250, 170, 40, 56
_PLOT = _WIDTH - _LABELS - _VALUES

# The chart has its own background in light and dark mode. GitHub shows it as an image, and an image follows the mode of
# the system, not of the page.
_STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; } .own { font-weight: 600; } .dim { fill: #59636e; font-size: 11px; }
.card { fill: #ffffff; stroke: #d1d9e0; } .spread { stroke: #59636e; }
.ours { fill: #0969da; } .other { fill: #afb8c1; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .dim { fill: #9198a1; }
  .card { fill: #0d1117; stroke: #3d444d; } .spread { stroke: #9198a1; }
  .ours { fill: #4493f8; } .other { fill: #3d444d; }
}"""


def chart(figures: Sequence[Figure], *, note: str) -> str:
    """Returns a chart of the figures that are rates, each with the lowest and highest of its rounds as a thin line.

    A title's first part, up to the first comma, says who, and the rest says where the messages go. ``note`` is the
    small print below.
    """
    rows = [figure for figure in figures if figure.unit == "/s"]
    most = max((value for figure in rows for value in (figure.value, *(figure.spread or ()))), default=1.0)
    height = _TOP + _ROW * len(rows) + 36
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
            f' height="{height}" role="img" aria-label="{_spoken(rows)}">'
        ),
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
        '<text class="title" x="16" y="30">Messages a second, one process each, on the same PostgreSQL</text>',
    ]
    for number, figure in enumerate(rows):
        y = _TOP + _ROW * number
        name, _, rest = figure.title.partition(", ")
        text, bar = ("own", "ours") if name.startswith("relay") else ("", "other")
        width = max(figure.value / most * _PLOT, 2.0)
        value_x = _WIDTH - _VALUES + 16
        lines += [
            f'<text class="{text}" x="16" y="{y + 12}">{escape(name)}</text>',
            f'<text class="dim" x="16" y="{y + 27}">{escape(rest)}</text>',
            f'<rect class="{bar}" x="{_LABELS}" y="{y}" width="{width:.1f}" height="22" rx="2"/>',
            f'<text class="{text}" x="{value_x}" y="{y + 16}">{value_text(figure)}</text>',
        ]
        if figure.spread is not None:
            low, high = (_LABELS + value / most * _PLOT for value in figure.spread)
            lines.append(f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 26}" y2="{y + 26}"/>')
    lines += [f'<text class="dim" x="16" y="{height - 14}">{escape(note)}</text>', "</svg>"]
    return "\n".join(lines) + "\n"


def _spoken(rows: Sequence[Figure]) -> str:
    """Returns the chart in words, for who cannot see it."""
    told = "; ".join(f"{figure.title}: {number_text(figure.value)}" for figure in rows)
    return escape(f"Messages a second. {told}", {'"': "&quot;"})
