"""The commands hold, resume and breakers, by which a person controls a breaker."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from rich.table import Table

from acp_cli.status import duration
from control_plane.platform import breakers
from control_plane.platform.breakers import Breaker
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.market import SOURCES
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from local_cloud.run_state import RunState

PANEL = "Signals"
_breakers = typer.Typer(
    help="List the breakers of subscriptions and sources, or forget one that nobody guards with any more.",
    invoke_without_command=True,
)
_NameArgument = Annotated[
    str,
    typer.Argument(
        help="A subscription (signal_lab), by its name or its queue (MarketTicksQueue), or a source (yfinance).",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A subscription or a source that has a breaker: its name, and the other words that a user may type for it."""

    name: str
    also: tuple[str, ...] = ()
    kind: str = ""
    """``subscription`` or ``source``; empty for a breaker that is stored but guards neither."""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.also)})" if self.also else self.name


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (hold, resume):
        app.command(command.__name__, rich_help_panel=PANEL)(command)
    app.add_typer(_breakers, name="breakers", rich_help_panel=PANEL)


def hold(
    ctx: typer.Context,
    name: _NameArgument,
    *,
    by: Annotated[str, typer.Option("--by", envvar="USER", help="Who holds it; others see it.")] = "somebody",
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; others see it, too.", show_default=False)
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Take over what somebody else holds.")] = False,
) -> None:
    """Hold a subscription's or a source's breaker open until `resume`: nothing is sent to it or fetched from it."""
    if not by.strip():
        msg = "--by is empty: say who holds it."
        raise UsageError(msg)
    cloud, run = _running(ctx)
    with psycopg.connect(database.owner_url(cloud.postgres(run), run)) as connection:
        guarded = _named(connection, cloud, run, name)
        holder = breakers.hold(connection, guarded.name, by=by.strip(), reason=reason, force=force)
    if holder is not None:
        msg = f"{guarded} is held by {holder} already."
        raise AcpError(msg, remedy=f"To hold it in their place: scripts/acp hold {guarded.name} --force")
    what = "no message is sent to it" if guarded.kind == "subscription" else "nothing is fetched from it"
    Progress().say(f"{guarded} is held by {by.strip()}: {what} until scripts/acp resume {guarded.name}")


def resume(ctx: typer.Context, name: _NameArgument) -> None:
    """Let go of a breaker that is held, or cut the cool-down of an open one short: it is probed at once."""
    cloud, run = _running(ctx)
    with psycopg.connect(database.owner_url(cloud.postgres(run), run)) as connection:
        guarded = _named(connection, cloud, run, name)
        resumed = breakers.resume(connection, guarded.name)
    Progress().say(
        f"{guarded} is probed by the next run: its breaker closes if that succeeds."
        if resumed
        else f"{guarded} is not open: there is nothing to resume."
    )


@_breakers.callback()
def list_breakers(
    ctx: typer.Context, *, as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False
) -> None:
    """List the breakers of subscriptions and sources, or forget one that nobody guards with any more."""
    if ctx.invoked_subcommand is not None:
        return
    cloud, run = _running(ctx)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run)) as connection:
        stored = {breaker.name: breaker for breaker in breakers.read_breakers(connection)}
    guarded = guarded_by_breakers(run, cloud.outputs(run), stored)
    # A breaker that never failed and was never held is not stored.
    rows = [(each, stored.get(each.name) or Breaker(each.name)) for each in guarded]
    if as_json:
        content = [dataclasses.asdict(breaker) | {"guards": each.kind or None} for each, breaker in rows]
        sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
    else:
        Terminal().print(_table(rows))


@_breakers.command("forget")
def forget(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A breaker, as `acp breakers` lists it.", show_default=False)],
) -> None:
    """Forget a breaker, for a subscription or a source that is gone. One that is still guarded with starts closed."""
    cloud, run = _running(ctx)
    with psycopg.connect(database.owner_url(cloud.postgres(run), run)) as connection:
        stored = {breaker.name: breaker for breaker in breakers.read_breakers(connection)}
        known = guarded_by_breakers(run, cloud.outputs(run), stored)
        found = find([each for each in known if each.name in stored], name)
        breaker = stored[found.name]
        if breaker.is_guarded and breaker.held_by is not None:
            msg = f"{found} is held by {breaker.held_by}, and is still guarded with: forgetting it would let it go."
            raise UsageError(msg, remedy=f"If that is meant: scripts/acp resume {found.name}")
        breakers.forget(connection, found.name)
    Progress().say(f"The breaker of {found} is forgotten.")


def guarded_by_breakers(run: RunState, outputs: Mapping[str, str], stored: Iterable[str]) -> list[Guarded]:
    """Returns the relay's subscriptions with their queues' logical ids, the source, and any other stored breaker."""
    urls = relay_queue_urls(run)
    guarded = [
        Guarded(
            subscription,
            tuple(output.removesuffix("Url") for output, known in outputs.items() if known == url),
            kind="subscription",
        )
        for subscription, url in urls.items()
    ]
    guarded += [Guarded(SOURCES[choice], kind="source") for choice in SOURCES if run.market_source == choice]
    names = {each.name for each in guarded}
    return guarded + [Guarded(name) for name in stored if name not in names]


def relay_queue_urls(run: RunState) -> dict[str, str]:
    """Returns the queue of each subscription that the deployed relay delivers to."""
    urls: dict[str, str] = (
        json.loads(run.deployment.environ.get("SUBSCRIPTION_QUEUE_URLS", "{}")) if run.deployment else {}
    )
    return urls


def find(guarded: Sequence[Guarded], asked: str) -> Guarded:
    """Returns the breaker that a word or its beginning names, in upper or lower case.

    Raises UsageError that names the possible ones.
    """
    wanted = asked.strip().lower()
    by_word = {word.lower(): each for each in guarded for word in (each.name, *each.also)}
    if wanted in by_word:
        return by_word[wanted]
    begun = {each for word, each in by_word.items() if wanted and word.startswith(wanted)}
    if len(begun) == 1:
        return begun.pop()
    said = f"{asked!r} could be several" if begun else f"Nothing called {asked!r} has a breaker"
    there_are = f"There are: {', '.join(map(str, guarded))}." if guarded else "There are none."
    msg = f"{said}. {there_are}"
    raise UsageError(msg)


def _table(rows: Sequence[tuple[Guarded, Breaker]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("breaker", "guards", "state", "since", "next", "why"):
        table.add_column(column, no_wrap=column != "why", overflow="fold")
    for guarded, breaker in rows:
        table.add_row(
            shown(breaker.name),
            guarded.kind or ("–" if breaker.is_guarded else "nothing now"),
            _state(breaker),
            f"{breaker.opened_at.astimezone(UTC):%m-%d %H:%M}Z" if breaker.opened_at and not breaker.is_closed else "–",
            _outlook(breaker),
            shown("; last error: ".join(filter(None, (breaker.held_reason, breaker.last_error)))),
        )
    return table


def _state(breaker: Breaker) -> str:
    if breaker.is_closed:
        return "[green]closed[/]"
    return f"[yellow]{'held' if breaker.held_by is not None else breaker.state.replace('_', '-')}[/]"


def _outlook(breaker: Breaker) -> str:
    if breaker.held_by is not None:
        return f"by {shown(breaker.held_by)}"
    if breaker.probe_is_due:
        return "probe is due"
    return f"probe in {duration(breaker.retry_in_seconds)}" if breaker.retry_in_seconds is not None else "–"


def _named(connection: psycopg.Connection[tuple[Any, ...]], cloud: Cloud, run: RunState, asked: str) -> Guarded:
    stored = [breaker.name for breaker in breakers.read_breakers(connection)]
    return find(guarded_by_breakers(run, cloud.outputs(run), stored), asked)


def _running(ctx: typer.Context) -> tuple[Cloud, RunState]:
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    return cloud, cloud.running()
