"""up, down, status, env: the local cloud as a whole."""

from __future__ import annotations

import json
import re
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acp_cli.symbols import split_symbols
from local_cloud import database
from local_cloud.build import TEMPLATE
from local_cloud.cloud import Cloud, UpOptions
from local_cloud.emulators import EMULATORS
from local_cloud.errors import UsageError
from local_cloud.market import REPLAYED, MarketChoice
from local_cloud.progress import Progress
from local_cloud.roles import SECRETS
from local_cloud.run_state import DEFAULT, STACK
from local_cloud.schedules import problem_of
from local_cloud.template import read_template
from local_cloud.template_parameters import parameter_problem
from local_cloud.visible import Terminal
from local_cloud.workspace import CHECKOUT, locked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PANEL = "The local cloud"
_STACK = re.compile(r"^[a-z][a-z0-9-]{0,48}[a-z0-9]$")
"""A stack's name. It must also be valid within the name of a bucket."""
_OPTIONS = {
    "Symbols": "--symbols",
    "IngestionSchedule": "--ingestion-schedule",
    "RelaySchedule": "--relay-schedule",
    "RelayLingerSeconds": "--linger",
}
"""The option that sets each of the template's parameters."""

MarketOption = Annotated[
    MarketChoice,
    typer.Option(
        help="Where prices come from: Yahoo, a local replay of real historical prices, or Yahoo if it can be reached."
    ),
]


def _known_cloud(name: str) -> str:
    if name in EMULATORS:
        return name
    msg = f"There is no cloud {name!r}. There are: {', '.join(EMULATORS)}."
    raise UsageError(msg)


CloudOption = Annotated[
    str | None,
    typer.Option(
        "--cloud",
        parser=_known_cloud,
        metavar=f"[{'|'.join(EMULATORS)}]",
        help="What stands in for AWS: LocalStack, MiniStack, or an external one at $AWS_ENDPOINT_URL.",
        show_default=DEFAULT,
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="YYYY-MM-DD",
        help="A real day for the replay to start at, in a fresh database: 2008-09-26.",
        show_default=False,
    ),
]
SymbolsOption = Annotated[
    str | None,
    typer.Option(help=f"What to ingest: AAPL,MSFT. The replay has {REPLAYED}.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (up, down, status_, env):
        app.command(command.__name__.rstrip("_"), rich_help_panel=PANEL)(command)


def up(
    ctx: typer.Context,
    *,
    cloud_name: CloudOption = None,
    market: MarketOption = MarketChoice.AUTO,
    from_day: FromOption = None,
    symbols: SymbolsOption = None,
    ingestion_schedule: Annotated[
        str | None, typer.Option(help="How often to ingest: 'rate(5 minutes)'.", show_default=False)
    ] = None,
    relay_schedule: Annotated[
        str | None, typer.Option(help="How often to start a relay: 'rate(1 minute)'.", show_default=False)
    ] = None,
    linger: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=840,
            metavar="SECONDS",
            help="How long a relay stays, unless the next one comes first.",
            show_default="90",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other parameter of template.yaml; may be given several times.",
            show_default=False,
        ),
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="The stack's name; another one beside it needs its own.", show_default=STACK)
    ] = None,
) -> None:
    """Bring the local cloud up: PostgreSQL, something that stands in for AWS, the functions. What runs already is kept.

    What no option names stays as it is; `down` forgets it.
    """
    cloud, progress = _cloud(ctx), Progress()
    if stack is not None and not _STACK.match(stack):
        msg = f"{stack!r} cannot be a stack's name: small letters, digits and hyphens, 50 at most, a letter first."
        raise UsageError(msg)
    parameters = _parameters(symbols, IngestionSchedule=ingestion_schedule, RelaySchedule=relay_schedule, linger=linger)
    parameters = {**_set(settings or []), **parameters}
    options = UpOptions(market, cloud_name, stack, parameters, from_day)
    from drills import mending  # noqa: PLC0415 - slow to import, and not needed by a command that is refused

    with locked(cloud.workspace.state, "up", on_wait=progress.say):
        run = cloud.up(options, progress)
        mending.mend_what_was_left(cloud, run, progress.say)
    progress.say(f"It is up, with market data from {run.market_source}. Next: scripts/acp page, watch, status, trace.")
    if run.market_source == MarketChoice.REPLAY:
        progress.say(f"The replay has {REPLAYED}, and no other symbol.")
    if url := cloud.outputs(run).get("ApiUrl"):
        progress.say(f"The API: curl {url}/health")


def down(
    ctx: typer.Context,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the database and the logs for the next `up`.")] = False,
) -> None:
    """Stop everything and clear the local state. Safe at any time, also twice, after a crash or a reboot."""
    cloud, progress = _cloud(ctx), Progress()
    with locked(cloud.workspace.state, "down", on_wait=progress.say):
        cloud.down(progress, keep=keep)


def status_(
    ctx: typer.Context, *, as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False
) -> None:
    """Show the services, the deliveries of each subscription by state with ages, dead letters, sources and queues.

    Of a deployment it shows what its API tells: its health, and what is open for each subscription.
    """
    from acp_cli.asking import asking, is_local  # noqa: PLC0415  up and down need none

    if not is_local(ctx):
        from acp_cli.deployment_status import read_deployment  # noqa: PLC0415

        with asking(ctx) as client:
            of_deployment = read_deployment(client)
        if as_json:
            _print_json(of_deployment.to_dict())
        else:
            Terminal().print(of_deployment.render())
        return
    cloud = _cloud(ctx)
    run = cloud.running()
    # Slow to import, and needed only where there is something to see.
    import psycopg  # noqa: PLC0415

    from acp_cli.breaker_commands import relay_queue_urls  # noqa: PLC0415
    from acp_cli.status import Report  # noqa: PLC0415
    from control_plane.ops.status import read_status  # noqa: PLC0415
    from drills import record  # noqa: PLC0415
    from local_cloud.queues import queue_depths  # noqa: PLC0415

    with psycopg.connect(database.reader_url(cloud.postgres(run), run), autocommit=True) as connection:
        pipeline = read_status(connection)
    report = Report(
        services=cloud.describe(run),
        pipeline=pipeline,
        queues=queue_depths(cloud.aws(run), cloud.outputs(run)),
        relay_subscriptions=relay_queue_urls(run).keys(),
        drill=record.load(cloud.workspace),
    )
    if as_json:
        _print_json(report.to_dict())
    else:
        Terminal().print(report.render())


def env(ctx: typer.Context, *, as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Print what a script needs to reach it: eval "$(scripts/acp env)"."""
    cloud = _cloud(ctx)
    environ = cloud.environ(cloud.running())
    if as_json:
        _print_json(environ)
    else:
        sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())


def _cloud(ctx: typer.Context) -> Cloud:
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    return cloud


def _parameters(symbols: str | None, *, linger: int | None, **schedules: str | None) -> Mapping[str, str]:
    """Returns the template's parameters that the user gave. Raises UsageError that names the first bad one."""
    parameters = {}
    if symbols is not None:
        names = split_symbols([symbols])
        if not names:
            msg = "--symbols names none: try AAPL,MSFT."
            raise UsageError(msg)
        parameters["Symbols"] = ",".join(names)
    for name, expression in schedules.items():
        if expression is not None:
            if problem := problem_of(expression):
                msg = f"{_OPTIONS[name]} {expression!r} is no schedule: {problem}."
                raise UsageError(msg)
            parameters[name] = expression
    if linger is not None:
        parameters["RelayLingerSeconds"] = str(linger)
    declared = read_template(CHECKOUT / TEMPLATE)["Parameters"]
    for name, value in parameters.items():
        if problem := parameter_problem(declared[name], value):
            msg = f"{_OPTIONS[name]} {value!r} {problem}."
            raise UsageError(msg)
    return parameters


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def _set(settings: Sequence[str]) -> Mapping[str, str]:
    """Returns the parameters that were given by --set. Raises UsageError that names the first bad one."""
    declared = read_template(CHECKOUT / TEMPLATE)["Parameters"]
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in declared:
            msg = f"--set {setting!r} names no parameter of {TEMPLATE}: give NAME=VALUE, such as LogLevel=DEBUG."
            raise UsageError(msg)
        if name in _OPTIONS:
            msg = f"--set {name}: it has an option of its own, {_OPTIONS[name]}."
            raise UsageError(msg)
        if name in {*SECRETS, "ApiTokenSecretArn", "MarketDataUrl"}:
            msg = f"--set {name}: `up` gives it a value of its own."
            raise UsageError(msg)
        if problem := parameter_problem(declared[name], value):
            msg = f"--set {name} {value!r}: it {problem}."
            raise UsageError(msg)
        found[name] = value
    return found
