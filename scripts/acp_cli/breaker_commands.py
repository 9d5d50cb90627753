"""The commands hold, resume and breakers, by which a person controls a breaker."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from acp_cli.asking import EVERY, ByOption, asking, is_local, why
from acp_cli.status import duration
from acp_client.client import ApiError, in_path
from control_plane.platform.breakers import Breaker
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.market import SOURCES
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from acp_client.client import Client
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
    by: ByOption = None,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; others see it, too.", show_default=False)
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Take over what somebody else holds.")] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Hold exactly this source, though it never failed and so is not listed.")
    ] = False,
) -> None:
    """Hold a subscription's or a source's breaker open until `resume`: nothing is sent to it or fetched from it."""
    recorded = why(reason, by)
    with asking(ctx) as client:
        stored = _stored(client)
        known = _guarded(ctx, client, stored)
        guarded = Guarded(name, kind="source") if new else find(known, name)
        body = {"reason": recorded, "force": force}
        if guarded.kind != "subscription":
            body["is_new"] = new or (guarded.kind == "source" and guarded.name not in stored)
        try:
            held = client.send("POST", f"{_path(guarded)}/hold", body)
        except ApiError as error:
            if error.status != 409 or force:
                raise
            holder = _stored(client).get(guarded.name, Breaker(guarded.name)).held_by
            msg = f"{guarded} is held by {holder} already."
            raise AcpError(msg, remedy=f"To hold it in their place: scripts/acp hold {guarded.name} --force") from None
    what = "no message is sent to it" if guarded.kind == "subscription" else "nothing is fetched from it"
    Progress().say(f"{guarded} is held by {held['held_by']}: {what} until scripts/acp resume {guarded.name}")


def resume(ctx: typer.Context, name: _NameArgument) -> None:
    """Let go of a breaker that is held, or cut the cool-down of an open one short: it is probed at once."""
    with asking(ctx) as client:
        stored = _stored(client)
        guarded = find(_guarded(ctx, client, stored), name)
        resumed = not stored.get(guarded.name, Breaker(guarded.name)).is_closed
        if resumed:
            try:
                client.send("POST", f"{_path(guarded)}/resume", {"reason": why("")})
            except ApiError as error:
                if error.status != 409:  # It has closed meanwhile.
                    raise
                resumed = False
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
    with asking(ctx) as client:
        stored = _stored(client)
        guarded = _guarded(ctx, client, stored)
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
    with asking(ctx) as client:
        stored = _stored(client)
        found = find([each for each in _guarded(ctx, client, stored) if each.name in stored], name)
        breaker = stored[found.name]
        if breaker.is_guarded and breaker.held_by is not None:
            msg = f"{found} is held by {breaker.held_by}, and is still guarded with: forgetting it would let it go."
            raise UsageError(msg, remedy=f"If that is meant: scripts/acp resume {found.name}")
        client.send("DELETE", f"/breakers/{in_path(found.name)}", reason=why(""))
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


def _stored(client: Client) -> dict[str, Breaker]:
    """Returns the breakers that ever failed or were held, by name."""
    fields = {field.name for field in dataclasses.fields(Breaker)}
    found = {}
    for row in client.pages("/breakers", most=EVERY):
        known = {name: value for name, value in row.items() if name in fields}
        if known["opened_at"] is not None:
            known["opened_at"] = datetime.fromisoformat(known["opened_at"])
        found[row["name"]] = Breaker(**known)
    return found


def _guarded(ctx: typer.Context, client: Client, stored: Iterable[str]) -> list[Guarded]:
    """Returns what has a breaker: of the local cloud as it was deployed, of another deployment as its API lists it."""
    if is_local(ctx):
        cloud = ctx.obj
        assert isinstance(cloud, Cloud), "the callback sets it"
        run = cloud.running()
        return guarded_by_breakers(run, cloud.outputs(run), stored)
    there = client.pages("/subscriptions", most=EVERY)
    guarded = [Guarded(row["name"], kind="subscription") for row in there if row["removed_at"] is None]
    names = {each.name for each in guarded}
    return guarded + [Guarded(name) for name in stored if name not in names]


def _path(guarded: Guarded) -> str:
    kind = "subscriptions" if guarded.kind == "subscription" else "breakers"
    return f"/{kind}/{in_path(guarded.name)}"
