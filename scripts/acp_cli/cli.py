"""The command line: what there is, and what becomes of an error."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import typer
from typer.core import TyperGroup

from acp_cli import (
    bench_command,
    breaker_commands,
    cloud_commands,
    db_commands,
    dead_letter_commands,
    demo_command,
    drill_command,
    invoke_command,
    new_command,
    pipeline_commands,
)
from control_plane.model.errors import ControlPlaneError
from local_cloud.aws import AWS_ERRORS
from local_cloud.cloud import Cloud
from local_cloud.environ import isolated
from local_cloud.errors import AcpError
from local_cloud.visible import Terminal, shown, shown_lines
from local_cloud.workspace import Workspace

if TYPE_CHECKING:
    from types import FrameType

EXIT_CODES = """[bold]Exit codes[/]  0 it is done · 1 what was asked for failed · 2 the command makes no sense ·
3 the local cloud is not running (scripts/acp up) · 4 another acp is at work · 130 interrupted"""


class Commands(TyperGroup):
    """Turns what a person can do something about into a clear message and an exit code; a bug stays a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except AcpError as error:
            report(str(error.args[0]), error.details, error.remedy)
            raise typer.Exit(error.exit_code) from None
        except (*AWS_ERRORS, psycopg.Error, ControlPlaneError) as error:
            report(str(error).strip(), "", "Is all well? See scripts/acp status")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            report("Interrupted.", "", "scripts/acp up goes on from here, scripts/acp down clears it away.")
            raise typer.Exit(130) from None


def report(message: str, details: str, remedy: str) -> None:
    """Say on standard error what went wrong, its evidence, and what to do."""
    console = Terminal(stderr=True)
    console.print(f"[red]{shown_lines(message)}[/]", soft_wrap=True)
    if details:
        console.print("\n".join(f"  [dim]│[/] {shown(line)}" for line in details.splitlines()), soft_wrap=True)
    if remedy:
        console.print(shown_lines(remedy), soft_wrap=True)


app = typer.Typer(
    name="acp",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


@app.callback()
def root(ctx: typer.Context) -> None:
    """The AI Control Plane on this machine: bring it up, watch signals flow, follow any of them along its timeline."""
    ctx.obj = ctx.obj or Cloud(Workspace.from_environ(os.environ))


cloud_commands.register(app)
demo_command.register(app)
pipeline_commands.register(app)
invoke_command.register(app)
breaker_commands.register(app)
dead_letter_commands.register(app)
drill_command.register(app)
db_commands.register(app)
new_command.register(app)
bench_command.register(app)


def main() -> None:
    """The command's entry point."""
    # Of the user's AWS, all that may be meant for us.
    endpoint_url = os.environ.get("AWS_ENDPOINT_URL")
    cleaned = isolated(os.environ)
    os.environ.clear()
    os.environ.update(cleaned)
    # Ended by its supervisor or by Ctrl-C, it cleans up alike; a shell's background job starts with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app(prog_name="acp", obj=Cloud(Workspace.from_environ(os.environ), endpoint_url))
    except BrokenPipeError:
        # `acp watch | head`: whoever read has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
