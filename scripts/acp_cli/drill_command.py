"""drill: shows on the running local cloud that the guarantees hold."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer
from rich.table import Table

from control_plane.model.errors import ControlPlaneError
from control_plane.platform.breakers import read_breakers
from drills import mending
from drills.narrator import Narrator, Result
from drills.record import DrillRecord
from drills.scenarios import DRILLS, Drill
from drills.stage import Stage
from local_cloud import database
from local_cloud.aws import AWS_ERRORS
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.interrupts import uninterrupted
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown
from local_cloud.workspace import locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from local_cloud.run_state import RunState

PANEL = "Signals"
_ALL = "all"
_PROBLEMS = (AcpError, *AWS_ERRORS, psycopg.Error, ControlPlaneError)


class MendingError(AcpError):
    """Raised when a drill's changes could not be undone; its record stays until they are."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("drill", rich_help_panel=PANEL)(drill)


def drill(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A drill, or all; without one they are listed.")] = None,
    *,
    list_them: Annotated[bool, typer.Option("--list", help="List the drills, as without a name.")] = False,
    mend: Annotated[bool, typer.Option("--mend", help="Put right what a drill that was cut off has left.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts; what happens goes to standard error.")] = False,
) -> None:
    """Make something fail on the running local cloud, see the guarantee hold, and have everything put right again."""
    chosen = _chosen(name)
    if list_them or (not chosen and not mend):
        _list()
        return
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    progress = Progress()
    with locked(cloud.workspace.state, f"drill {name or '--mend'}", on_wait=progress.say):
        run = cloud.running()
        if mending.mend_what_was_left(cloud, run, progress.say) is None and mend:
            progress.say("No drill has left anything to mend.")
        console = Terminal(stderr=as_json)
        results: list[Result] = []
        try:
            for each in chosen:
                results.append(Result(each.name, each.guarantee))
                _play(cloud, run, each, Narrator(console), results[-1])
        except KeyboardInterrupt:
            progress.say("Interrupted.")
            raise typer.Exit(130) from None
        finally:
            if as_json and chosen:
                _print_json(results)
    if failed := [result for result in results if not result.held]:
        msg = "\n".join(map(verdict, failed))
        raise AcpError(msg)


def _play(cloud: Cloud, run: RunState, drill: Drill, narrator: Narrator, result: Result) -> None:
    """Runs one drill and then undoes its changes, however it ended. Raises MendingError if that fails."""
    url = database.owner_url(cloud.postgres(run), run)
    record = DrillRecord.begin(drill.name)
    # The connection is only closed: if a statement was interrupted, it could not roll back, and has nothing to.
    opened = contextlib.closing(psycopg.connect(url, autocommit=True, application_name="acp-drill"))
    with narrator.telling(result), opened as connection:
        stage = Stage(cloud, run, record, narrator, connection, is_of_source=drill.is_of_source)
        try:
            _refuse_where_it_would_mislead(stage)
            with _mended(cloud, run, record, narrator):
                drill.play(stage)
            result.problem = ""
        except MendingError:
            raise
        except _PROBLEMS as error:
            result.problem = str(error).strip()
            narrator.say(result.problem, style="red")


@contextlib.contextmanager
def _mended(cloud: Cloud, run: RunState, record: DrillRecord, narrator: Narrator) -> Iterator[None]:
    """Undoes the drill's changes after the block, whatever happens in it. Raises MendingError if that fails."""
    try:
        record.save(cloud.workspace)
        yield
    finally:
        with uninterrupted():
            narrator.show("putting everything right")
            try:
                mending.mend(cloud, run, record, narrator.say)
            except _PROBLEMS as error:
                msg = f"Not everything could be put right: {error}"
                raise MendingError(msg, remedy="Once the cause is gone: scripts/acp drill --mend") from error
            narrator.say("everything is as before", style="green")


def _refuse_where_it_would_mislead(stage: Stage) -> None:
    """Raises AcpError if the breaker that the drill is about is not closed at the start."""
    breaker = next(iter(read_breakers(stage.connection, [stage.breaker])), None)
    if breaker is None or breaker.is_closed:
        return
    if breaker.held_by is not None:
        why = f": {breaker.held_reason}" if breaker.held_reason else ""
        msg = f"The breaker of {breaker.name} is held open by {breaker.held_by}{why}."
        raise AcpError(msg, remedy=f"A drill needs it closed: scripts/acp resume {breaker.name}")
    msg = f"The breaker of {breaker.name} is {breaker.state.replace('_', '-')} already: {breaker.last_error}"
    raise AcpError(msg, remedy="A drill on a real fault would show nothing. See scripts/acp status")


def _chosen(name: str | None) -> Sequence[Drill]:
    """Returns the named drills. Raises UsageError that lists all drills."""
    if name is None:
        return ()
    chosen = DRILLS if name == _ALL else [drill for drill in DRILLS if drill.name == name]
    if not chosen:
        msg = f"There is no drill {name!r}. There are: {', '.join(drill.name for drill in DRILLS)}; or {_ALL}."
        raise UsageError(msg)
    return chosen


def _list() -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for drill in DRILLS:
        table.add_row(f"[bold]{drill.name}[/]", shown(drill.guarantee))
    table.add_row(f"[bold]{_ALL}[/]", "one after another")
    Terminal().print(table)


def verdict(result: Result) -> str:
    """Returns why a drill did not show its guarantee."""
    if result.problem:
        return f"{result.drill}: {result.problem}"
    return f"{result.drill}: not seen to hold: {'; '.join(claim.claim for claim in result.claims if not claim.held)}."


def _print_json(results: Sequence[Result]) -> None:
    content = {"held": all(result.held for result in results), "drills": [result.to_dict() for result in results]}
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
