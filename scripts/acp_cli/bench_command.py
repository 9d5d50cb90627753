"""bench: measures how fast the relay is, beside the best that is possible on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.chart import chart
from bench.report import Report
from bench.rig import BenchError, open_rig
from bench.scenarios import ON_DEMAND, QUICK, SCENARIOS, Sizes
from local_cloud.cloud import Cloud
from local_cloud.errors import UsageError
from local_cloud.progress import Progress
from local_cloud.visible import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

PANEL = "Measuring"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=PANEL)(bench)


def bench(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help=f"Only these: {', '.join(SCENARIOS)}.", show_default=False),
    ] = None,
    *,
    scenario: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The same; may be repeated.", show_default=False)
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Turns of each side.", show_default="5")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small numbers, one round: a check that it works.")] = False,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Measure less or more than usual, as rebuilt_events=200000; may be repeated. --json tells the sizes.",
            show_default=False,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Where an SQS is, instead of a LocalStack of the bench's own.", show_default=False
        ),
    ] = None,
    latency_ms: Annotated[float, typer.Option(min=0, help="How long the local queue takes to answer.")] = 0,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Every round's numbers; - for standard output.", show_default=False
        ),
    ] = None,
    chart_file: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE", help="An SVG of what peers measures.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a bar is missed.")] = False,
) -> None:
    """Measure the relay and deciding, each figure beside a bare loop or a limit. Takes about half an hour.

    Needs nothing running: it starts a PostgreSQL (fsync on, as in production), a local queue and LocalStack's SQS, and
    clears them away. Only acp bench peers compares the relay with other queues, which it installs into .acp.
    """
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    sizes = dataclasses.replace(QUICK if quick else Sizes(), **_chosen_sizes(size or ()))
    if rounds is not None:
        sizes = dataclasses.replace(sizes, rounds=rounds)
    named = [*(names or ()), *(scenario or ())]
    chosen = list(dict.fromkeys(named or [name for name in SCENARIOS if name not in ON_DEMAND]))
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        msg = f"There is no scenario {unknown[0]!r}. There are: {', '.join(SCENARIOS)}."
        raise UsageError(msg)
    if chart_file is not None and "peers" not in chosen:
        msg = "The chart shows what peers measures, and that was not asked for."
        raise UsageError(msg, remedy=f"scripts/acp bench peers --chart {chart_file}")
    report = _measure(cloud, chosen, sizes, quick=quick, endpoint=endpoint, latency_ms=latency_ms)
    _hand_over(report, json_file, chart_file)
    if strict and report.missed:
        msg = f"Missed: {'; '.join(figure.title for figure in report.missed)}."
        raise BenchError(msg)


def _chosen_sizes(texts: Sequence[str]) -> dict[str, int]:
    """Returns the sizes that were named. Raises UsageError for a name that is none, and for no positive number."""
    chosen = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in {field.name for field in dataclasses.fields(Sizes)} or not number.isdecimal() or int(number) < 1:
            names = ", ".join(field.name for field in dataclasses.fields(Sizes))
            msg = f"--size {text} names no size with a positive number. There are: {names}."
            raise UsageError(msg, remedy="scripts/acp bench rebuild --size rebuilt_events=200000")
        chosen[name] = int(number)
    return chosen


def _measure(
    cloud: Cloud, chosen: list[str], sizes: Sizes, *, quick: bool, endpoint: str | None, latency_ms: float
) -> Report:
    progress = Progress()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        with progress.step("Starting") as step:
            rig = stack.enter_context(
                open_rig(cloud.workspace, endpoint_url=endpoint, latency_ms=latency_ms, say=step.update)
            )
            machine = rig.facts()
        scenarios = {}
        for name in chosen:
            with progress.step(name) as step:
                scenarios[name] = SCENARIOS[name](rig, sizes, step.update)
    return Report(
        started_at=started_at,
        quick=quick,
        rounds=sizes.rounds,
        machine=machine,
        settings={"queue_latency_ms": latency_ms, **rig.relay_settings},
        scenarios=scenarios,
    )


def _hand_over(report: Report, json_file: str | None, chart_file: Path | None) -> None:
    text = json.dumps(report.to_dict(), indent=2) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
    else:
        Terminal().print(report.render())
        if json_file is not None:
            Path(json_file).write_text(text, encoding="utf-8")
    if chart_file is not None:
        note = (
            f"{report.started_at[:10]} · {report.machine['cores']} cores, Python {report.machine['python']}, "
            f"PostgreSQL {report.machine['postgres']['server_version']} · "
            f"load {report.machine['load_average_at_start']:g} at the start · {report.summary} · "
            "scripts/acp bench peers"
        )
        chart_file.write_text(chart(report.scenarios["peers"].figures, note=note), encoding="utf-8")
