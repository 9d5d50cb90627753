"""Shows the result of a bench as a table for people and as JSON for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.figures import Bar, Figure, Measured


@dataclass(frozen=True, slots=True)
class Report:
    """All results of a run. `settings` are those of the measured relays, `machine` describes the machine."""

    started_at: str
    quick: bool
    rounds: int
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    scenarios: Mapping[str, Measured]

    @property
    def figures(self) -> Sequence[Figure]:
        """Returns the figures of all scenarios."""
        return [figure for measured in self.scenarios.values() for figure in measured.figures]

    @property
    def missed(self) -> Sequence[Figure]:
        """Returns the figures that do not meet their bar; for a quick run, none."""
        return [] if self.quick else [figure for figure in self.figures if figure.met is False]

    @property
    def summary(self) -> str:
        """Returns a line that says how the values were measured."""
        return "one round" if self.rounds == 1 else f"median of {self.rounds} rounds, peaks the highest"

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON, including every round's raw numbers."""
        return {
            "version": 1,
            "started_at": self.started_at,
            "quick": self.quick,
            "rounds": self.rounds,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "scenarios": {
                name: {
                    "figures": [figure.to_dict() for figure in measured.figures],
                    "settings": dict(measured.settings),
                    "rounds": list(measured.rounds),
                }
                for name, measured in self.scenarios.items()
            },
        }

    def render(self) -> Table:
        """Prints one line per figure."""
        machine = self.machine
        caption = (
            f"{machine['cores']} cores ({machine['processor']}), Python {machine['python']}, PostgreSQL "
            f"{machine['postgres']['server_version']} with fsync {machine['postgres']['fsync']}, "
            f"load {machine['load_average_at_start']:g} at the start; {self.summary}"
        )
        if self.quick:
            caption += "\n--quick: a check that it works; the figures mean nothing, so no bars are shown"
        table = Table(caption=caption, caption_justify="left")
        table.add_column("figure", overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        if self.rounds > 1:
            table.add_column("rounds", justify="right", no_wrap=True, style="dim")
        if not self.quick:
            table.add_column("bar", justify="right", no_wrap=True)
        for figure in self.figures:
            cells = [figure.title, value_text(figure)]
            if self.rounds > 1:
                cells.append(" – ".join(map(number_text, figure.spread)) if figure.spread else "")
            if figure.bar is not None and not self.quick:
                mark = "[green]✓[/]" if figure.met else "[red]✗[/]"
                cells.append(f"{bar_text(figure.bar)} {mark}")
            table.add_row(*cells)
        return table


def number_text(number: float) -> str:
    """Returns a number with three significant digits: 1.62, 23.4, 8,150."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def value_text(figure: Figure) -> str:
    """Returns a value with its unit: 1.62 ×, 8,150 /s."""
    return f"{number_text(figure.value)} {figure.unit}"


def bar_text(bar: Bar) -> str:
    """Returns a bar as text, such as ≥ 1.5; its unit is the figure's."""
    return f"{bar.sense} {number_text(bar.limit)}"
