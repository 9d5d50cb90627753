"""demo: the whole pipeline on this machine, from nothing to an event's timeline."""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer
from psycopg.rows import class_row

from acp_cli.asking import asking_locally
from acp_cli.cloud_commands import PANEL, CloudOption, FromOption, MarketOption
from acp_cli.demo_decision import DEFAULT_DAY, show_decision
from acp_cli.output import ReaderGone
from acp_cli.page_command import page_address
from acp_cli.pipeline_commands import QUERIES
from acp_cli.timeline import render_timeline
from control_plane.ops.timeline import read_timeline
from local_cloud import database
from local_cloud.cloud import Cloud, UpOptions
from local_cloud.errors import AcpError
from local_cloud.functions import function_name
from local_cloud.interrupts import uninterrupted
from local_cloud.market import MarketChoice, choose
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown
from local_cloud.workspace import locked

if TYPE_CHECKING:
    from local_cloud.progress import Step
    from local_cloud.run_state import RunState

SYMBOLS_WANTED = 3
_LIMIT_SECONDS = 300
_HELP = """Or in another terminal:
  scripts/acp watch           events and their deliveries, live
  scripts/acp status          counts and ages
  scripts/acp trace EVENT_ID  an event's timeline
  scripts/acp decisions       what was decided; anomalies: what was unusual
  scripts/acp logs relay -f   a function's log
  scripts/acp db shell        psql"""

_DECISION_HINT = f"To see an unusual day decided on: Ctrl-C, then scripts/demo --from {DEFAULT_DAY}"


@dataclass(frozen=True, slots=True)
class Flow:
    """How far the pipeline has come, in counts."""

    symbols: int
    deliveries: int
    delivered: int
    dead_lettered: int
    ticks: int
    consumed: int

    @property
    def complete(self) -> bool:
        """Whether enough events were ingested and all of them have arrived."""
        return self.symbols >= SYMBOLS_WANTED and self.delivered == self.deliveries and self.consumed == self.ticks

    def __str__(self) -> str:
        return (
            f"{self.symbols} symbols ingested · {self.delivered} of {self.deliveries} messages delivered · "
            f"{self.consumed} of {self.ticks} ticks consumed"
        )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", rich_help_panel=PANEL)(demo)


def demo(
    ctx: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Take everything down again as soon as it has worked.")] = False,
    cloud_name: CloudOption = None,
    market: MarketOption = MarketChoice.AUTO,
    from_day: FromOption = None,
) -> None:
    """Bring everything up, start a first run, watch signals arrive, and follow one along its timeline.

    With --from it then shows what was decided about that day; so it does for 2008-09-26 where Yahoo is out of reach.
    Stays up until Ctrl-C, then takes everything down. With --once it waits for the schedules alone.
    """
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    progress = Progress()
    state = cloud.workspace.state
    staying = False
    with contextlib.ExitStack() as at_the_end:
        try:
            with locked(state, "demo", on_wait=progress.say):
                if state.exists():
                    msg = f"There is a local cloud already, or what is left of one, in {state}."
                    raise AcpError(msg, remedy="The demo takes everything down at its end: run scripts/acp down first.")
                if from_day is None and market is MarketChoice.AUTO and not once:
                    from_day = _day_without_yahoo(progress)
                # From here on, what runs was started by this demo, so the demo has to take it down.
                at_the_end.push(functools.partial(_take_down, cloud, progress))
                run = cloud.up(UpOptions(market, cloud_name, from_day=from_day, containers=False), progress)
            if not once:
                _start_first_run(cloud, run, progress)
            _show(cloud, run, progress)
            if run.market_from is not None:
                show_decision(cloud, run, progress, stays=not once)
            if not once:
                staying = True
                hint = "" if run.market_from is not None else f"\n\n{_DECISION_HINT}"
                _show_page(cloud, run, progress)
                progress.say(f"\n{_HELP}{hint}\n\nIt stays up until Ctrl-C.")
                _stay(cloud)
        except KeyboardInterrupt:
            progress.say("Stopping …")
            if not staying:
                raise


def _day_without_yahoo(progress: Progress) -> str | None:
    """Returns the day to replay where Yahoo is out of reach, so that whoever just tries it sees a decision."""
    if choose(MarketChoice.AUTO).source is not MarketChoice.REPLAY:
        return None
    progress.say(f"Yahoo is out of reach: the demo replays real prices from {DEFAULT_DAY} on.")
    return DEFAULT_DAY


def _take_down(
    cloud: Cloud, progress: Progress, error: type[BaseException] | None, _value: object, _traceback: object
) -> None:
    """Takes everything down at the demo's end; after a failure the logs are kept, because they show the reason."""
    workspace = cloud.workspace
    with uninterrupted(), locked(workspace.state, "down", on_wait=progress.say):
        if error is not None and not issubclass(error, KeyboardInterrupt | ReaderGone) and workspace.logs.exists():
            kept = workspace.home / "last-demo-logs"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(workspace.logs, kept)
            progress.say(f"The logs are kept in {kept}.")
        cloud.down(progress, keep=False)


def _start_first_run(cloud: Cloud, run: RunState, progress: Progress) -> None:
    """Starts a first ingestion and relay, so that nobody waits a minute for the schedules.

    With --once only the schedules run.
    """
    with progress.step("A first ingestion and relay; the schedules go on from here"):
        for function, event in (("ingestion", {}), ("relay", {"linger_seconds": 0})):
            cloud.aws(run).invoke(function_name(cloud.outputs(run), function), event)


def _show(cloud: Cloud, run: RunState, progress: Progress) -> None:
    url = database.reader_url(cloud.postgres(run), run)
    with psycopg.connect(url, autocommit=True) as connection:
        with progress.step("Ingested, relayed, consumed") as step:
            step.note = str(_wait_for_flow(connection, cloud, run, step))
        row = connection.execute(QUERIES["newest_consumed_event"].sql).fetchone()
        assert row is not None, "ticks were consumed"
        timeline = read_timeline(connection, row[0])
    assert timeline is not None, "events are never deleted here"
    console = Terminal()
    console.print(f"\nOne event's timeline, from {run.market_source} to its consumer:")
    console.print(render_timeline(timeline))


def _show_page(cloud: Cloud, run: RunState, progress: Progress) -> None:
    with asking_locally(cloud, run) as client:
        address = page_address(client, "the demo")
    # On standard output, as what a script could take; and whole, so that a terminal can follow it.
    progress.say("\nThe page, for a browser:")
    Terminal().print(shown(address.url), soft_wrap=True)
    progress.say(address.told)


def _wait_for_flow(connection: psycopg.Connection, cloud: Cloud, run: RunState, step: Step) -> Flow:
    """Waits until enough events have arrived. Raises AcpError if they do not arrive in time."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while True:
        with connection.cursor(row_factory=class_row(Flow)) as cursor:
            flow = cursor.execute(QUERIES["demo_progress"].sql).fetchone()
        assert flow is not None, "an aggregate has a row"
        step.update(str(flow))
        if flow.complete:
            return flow
        if flow.dead_lettered:
            msg = f"{flow.dead_lettered} messages were dead-lettered."
            raise AcpError(msg, remedy="Run scripts/acp up, then look with scripts/acp dead-letters.")
        if time.monotonic() > deadline:
            msg = f"Not complete after {_LIMIT_SECONDS} s: {flow}."
            raise AcpError(
                msg, details=cloud.emulator(run).log_tail(), remedy="Run scripts/acp up and scripts/acp logs."
            )
        cloud.running()
        time.sleep(0.5)


def _stay(cloud: Cloud) -> None:
    """Returns at Ctrl-C, SIGTERM, or when somebody runs `acp down`."""
    while True:
        cloud.running()
        time.sleep(1)
