"""The command line: its table of commands, and how an error becomes a message and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from acp_cli.output import ReaderGone, prepare_streams
from acp_cli.own_aws import keep
from acp_cli.version import version
from local_cloud.environ import isolated
from local_cloud.errors import AcpError, UsageError
from local_cloud.workspace import Workspace, has_checkout

if TYPE_CHECKING:
    from types import FrameType

    from local_cloud.cloud import Cloud

EXIT_CODES = """[bold]Exit codes[/]  0 it is done · 1 what was asked for failed · 2 the command makes no sense ·
3 the local cloud is not running (scripts/acp up) · 4 another acp is at work · 5 a deployment does not answer ·
130 interrupted"""


class Entry(NamedTuple):
    """A command whose module is not imported yet. Importing all takes a second or two, and --help needs none."""

    module: str
    summary: str


_CLOUD, _SIGNALS, _DATABASE, _MEASURING = "The local cloud", "Signals", "The database", "Measuring"
_DECISIONS = "Decisions"
_DEPLOYMENTS = "Deployments"
COMMANDS = {
    _CLOUD: {
        "up": Entry("cloud_commands", "Start PostgreSQL and something that stands in for AWS, build, deploy."),
        "down": Entry("cloud_commands", "Stop everything and clear the local state."),
        "status": Entry("cloud_commands", "Services, deliveries, dead letters, consumers, queues; what is wrong."),
        "env": Entry("cloud_commands", 'What a script needs to reach it: eval "$(scripts/acp env)".'),
        "demo": Entry("demo_command", "The whole pipeline from nothing, until Ctrl-C."),
    },
    _SIGNALS: {
        "ingest": Entry("pipeline_commands", "Ingest symbols now, without waiting for the schedule."),
        "relay": Entry("pipeline_commands", "Deliver what is pending now."),
        "backfill": Entry("backfill_command", "Fill in the past from a source or a file."),
        "watch": Entry("pipeline_commands", "Messages and their deliveries as they happen."),
        "metrics": Entry("metrics_command", "What was counted, as Prometheus reads it."),
        "events": Entry("event_commands", "What was stored, newest first."),
        "trace": Entry("pipeline_commands", "One event's timeline, or the events of one ingestion run."),
        "logs": Entry("logs_command", "A function's log, or all lines about one event or decision."),
        "invoke": Entry("invoke_command", "Run a function once in Lambda's own container."),
        "hold": Entry("breaker_commands", "Send nothing to a subscription, or fetch nothing from a source."),
        "resume": Entry("breaker_commands", "End a hold or a cool-down of a breaker."),
        "breakers": Entry("breaker_commands", "The breakers of subscriptions and sources."),
        "anomalies": Entry("anomaly_commands", "The bars that were found unusual, and what explains them."),
        "dead-letters": Entry("dead_letter_commands", "The messages that were given up on, and why."),
        "redrive": Entry("redrive_command", "Send dead letters again."),
        "replay": Entry("replay_command", "Plan that stored messages are sent again."),
        "operations": Entry("operations_commands", "Redrives, replays and others: plan, start, follow, cancel."),
        "discard": Entry("dead_letter_commands", "Let dead letters go that nobody needs."),
        "drill": Entry("drill_command", "Make something fail, and see the guarantee hold."),
    },
    _DECISIONS: {
        "decisions": Entry("decision_commands", "What was decided, newest first."),
        "decision": Entry("decision_commands", "One decision, step by step, as a tree."),
        "artifact": Entry("artifact_command", "What a decision used, by its hash."),
        "approvals": Entry("approval_commands", "The actions that people are asked to approve."),
        "approve": Entry("approval_commands", "Approve exactly one action, as yourself."),
        "deny": Entry("approval_commands", "Deny an action."),
        "switch": Entry("approval_commands", "Switch off, or on, all or a part of what is decided."),
        "switches": Entry("approval_commands", "What is switched off, by whom and why."),
        "audit": Entry("audit_command", "Who changed what by the API; whether the record is as it was."),
        "policy": Entry("policy_commands", "Check policies, or try them on what was judged so far."),
    },
    _DEPLOYMENTS: {
        "login": Entry("profile_commands", "Store a deployment's URL and token, and ask it from now on."),
        "logout": Entry("profile_commands", "Forget a deployment and its token."),
        "profiles": Entry("profile_commands", "The deployments that acp knows."),
        "tokens": Entry("token_commands", "Who may ask the API for what: list, make, revoke."),
        "whoami": Entry("whoami_command", "Say whose token the API is asked with, and what it may do."),
        "page": Entry("page_command", "The address of the page that shows it all, with a token."),
    },
    _DATABASE: {"db": Entry("db_commands", "Migrate the local database, or look into it with psql.")},
    _MEASURING: {
        "bench": Entry("bench_command", "Measure the relay beside bare loops."),
        "backtest": Entry("backtest_command", "Decide on thirteen real years; see how good the forecasts were."),
    },
    "The code": {"new": Entry("new_command", "Make the first files of a consumer or a migration.")},
    "The shell": {"completion": Entry("completion_command", "Print what completes acp's words in bash or zsh.")},
}
LOCAL_ONLY = frozenset({"up", "down", "env", "demo", "watch", "invoke", "drill", "db"})
"""The commands that work on this machine's cloud itself, and so on no other deployment."""
OF_A_CHECKOUT = LOCAL_ONLY | {"bench", "backtest", "new"}
"""The commands that need the checkout: where acp was installed alone, they say so."""
OF_NO_DEPLOYMENT = frozenset({"login", "logout", "profiles", "completion", "logs"})
"""The commands that ask no deployment's API."""
_USE_A_CHECKOUT = "Clone the AI Control Plane and use its scripts/acp."


class Commands(TyperGroup):
    """Imports a command's module once the command is called; turns errors into a message and an exit code.

    An error that a user cannot correct is a bug and stays a traceback.
    """

    def __init__(self, **settings: Any) -> None:
        stubs = {
            name: TyperCommand(name, short_help=entry.summary, rich_help_panel=panel)
            for panel, entries in COMMANDS.items()
            for name, entry in entries.items()
        }
        super().__init__(**{**settings, "commands": stubs})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the command that is called, fully loaded; the list of commands needs only names and summaries."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in OF_A_CHECKOUT and not has_checkout():
            msg = f"{name} works in a checkout alone, and this acp was installed without one."
            raise UsageError(msg, remedy=_USE_A_CHECKOUT)
        return name, load(name) if name is not None and command is not None else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except AcpError as error:
            report(str(error.args[0]), error.details, error.remedy)
            raise typer.Exit(error.exit_code) from None
        except ModuleNotFoundError as error:
            if has_checkout():
                raise
            report(f"This needs {error.name}, which this acp was installed without.", "", _USE_A_CHECKOUT)
            raise typer.Exit(2) from None
        except _expected_errors() as error:
            report(str(error).strip(), "", "See scripts/acp status")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            report("Interrupted.", "", "scripts/acp up continues from here; scripts/acp down removes everything.")
            raise typer.Exit(130) from None


def load(name: str) -> TyperCommand | TyperGroup:
    """Returns a command with its options, from its module."""
    (entry,) = (entries[name] for entries in COMMANDS.values() if name in entries)
    of_its_module = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    # With a callback, typer does not mistake a module's only command for the whole program.
    of_its_module.callback()(lambda: None)
    importlib.import_module(f"acp_cli.{entry.module}").register(of_its_module)
    command = typer.main.get_group(of_its_module).commands[name]
    assert isinstance(command, TyperCommand | TyperGroup), "typer makes no others"
    return command


def _expected_errors() -> tuple[type[Exception], ...]:
    """Returns the types of errors that come from outside.

    They are imported only after an error, because it takes a while.
    """
    import psycopg  # noqa: PLC0415

    from control_plane.model.errors import ControlPlaneError  # noqa: PLC0415
    from local_cloud.aws import AWS_ERRORS  # noqa: PLC0415

    return (*AWS_ERRORS, psycopg.Error, ControlPlaneError)


def report(message: str, details: str, remedy: str) -> None:
    """Prints an error to standard error: what went wrong, the details, and what to do."""
    from local_cloud.visible import Terminal, shown, shown_lines  # noqa: PLC0415

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


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"acp {version()}\n")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    *,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The API of a deployment to ask (ACP_URL).", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="The token to ask it with (better in ACP_TOKEN, or stored by login: other users see options).",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A deployment that login has stored, or local (ACP_PROFILE).", show_default=False
        ),
    ] = None,
) -> None:
    """The AI Control Plane: bring it up on this machine, or ask a deployment; follow what flows, decide, mend."""
    if url or token or profile:
        from acp_cli.asking import Wanted  # noqa: PLC0415  --help and --version need none

        ctx.meta["acp.deployment"] = Wanted(url, token, profile)
    if ctx.invoked_subcommand in LOCAL_ONLY and (url or profile not in {None, "local"}):
        msg = f"{ctx.invoked_subcommand} is for the local cloud alone."
        raise UsageError(msg, remedy="Leave out --url and --profile.")
    if not has_checkout() and ctx.invoked_subcommand not in OF_NO_DEPLOYMENT:
        from acp_cli.asking import is_local  # noqa: PLC0415  --help and --version need none

        if is_local(ctx):
            msg = "Which deployment? This acp was installed without a checkout, so there is no local cloud."
            raise UsageError(msg, remedy="acp login NAME --url URL stores one; or give --url and --token.")
    if ctx.obj is None or callable(ctx.obj):
        ctx.obj = ctx.obj() if ctx.obj is not None else _open_cloud(None)


def _open_cloud(endpoint_url: str | None) -> Cloud:
    from local_cloud.cloud import Cloud  # noqa: PLC0415  --help and --version need none

    return Cloud(Workspace.from_environ(os.environ), endpoint_url)


def main() -> None:
    """Runs the command line."""
    prepare_streams(os.environ)
    # Of the user's AWS variables, only this one may be meant for acp.
    endpoint_url = os.environ.get("AWS_ENDPOINT_URL")
    keep(os.environ)
    cleaned = isolated(os.environ)
    os.environ.clear()
    os.environ.update(cleaned)
    # Ctrl-C and a supervisor's SIGTERM must clean up alike; a shell's background job starts with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if "_ACP_COMPLETE" in os.environ:
        # With add_completion typer would do this itself, and offer to edit the user's own shell files.
        from typer._completion_classes import completion_init  # noqa: PLC0415

        completion_init()
    try:
        try:
            app(prog_name="acp", obj=partial(_open_cloud, endpoint_url))
        finally:
            sys.stdout.flush()
    except ReaderGone:
        sys.exit(0)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
