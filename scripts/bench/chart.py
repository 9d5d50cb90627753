"""Draws the figures with a bar as an SVG: how much better, or worse, each is than its bar asks for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from bench.report import bar_text, value_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.figures import Figure

_WIDTH, _LABELS, _VALUES, _ROW, _TOP = 860, 340, 170, 26, 56
_PLOT = _WIDTH - _LABELS - _VALUES
_DOUBLINGS = 3
"""How many doublings the scale shows in each direction, from 1/8 to 8 times; longer bars are cut off there."""

# The chart has its own background in light and dark mode. GitHub shows it as an image, and an image follows the mode of
# the system, not of the page.
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; } .dim { fill: #59636e; }
.card { fill: #ffffff; stroke: #d1d9e0; } .limit { stroke: #59636e; stroke-dasharray: 4 3; }
.met { fill: #1a7f37; } .missed { fill: #d1242f; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .dim { fill: #9198a1; }
  .card { fill: #0d1117; stroke: #3d444d; } .limit { stroke: #9198a1; }
  .met { fill: #3fb950; } .missed { fill: #f85149; }
}"""


def chart(figures: Sequence[Figure], *, note: str) -> str:
    """Returns a chart with one line per figure that has a bar.

    A line that reaches to the right of the dashed line meets its bar. `note` is the small print below.
    """
    rows = [(figure, figure.bar) for figure in figures if figure.bar is not None]
    height = _TOP + _ROW * len(rows) + 40
    limit_x = _LABELS + _PLOT / 2
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
            f' height="{height}" role="img" aria-label="The relay against its bars">'
        ),
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
        '<text class="title" x="16" y="28">The relay against its bars</text>',
        f'<text class="dim" x="{limit_x}" y="28" text-anchor="middle">worse ← limit → better</text>',
    ]
    for number, (figure, bar) in enumerate(rows):
        y = _TOP + _ROW * number
        end_x = limit_x + _reach(bar.margin(figure.value)) * _PLOT / 2
        kind = "met" if figure.met else "missed"
        # A value that equals the limit would have a bar of no length.
        left, width = min(limit_x, end_x), max(abs(end_x - limit_x), 2.0)
        lines += [
            f'<text x="16" y="{y + 12}">{escape(figure.title)}</text>',
            f'<rect class="{kind}" x="{left:.1f}" y="{y}" width="{width:.1f}" height="16" rx="2"/>',
            (
                f'<text x="{_WIDTH - _VALUES + 12}" y="{y + 12}">{escape(value_text(figure))}'
                f'<tspan class="dim"> {escape(bar_text(bar))}</tspan></text>'
            ),
        ]
    lines += [
        f'<line class="limit" x1="{limit_x}" x2="{limit_x}" y1="{_TOP - 10}" y2="{_TOP + _ROW * len(rows)}"/>',
        f'<text class="dim" x="16" y="{height - 16}">{escape(note)}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _reach(margin: float) -> float:
    """Returns a position from -1 (an eighth of what is asked) over 0 (just met) to 1 (eight times as good)."""
    if margin <= 0:
        return -1.0
    return max(-1.0, min(math.log2(margin) / _DOUBLINGS, 1.0))
