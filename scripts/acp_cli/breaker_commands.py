"""hold and resume: a person's hand on a breaker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer

from control_plane.platform import breakers
from local_cloud import database
from local_cloud.cloud import Cloud
from local_cloud.errors import UsageError
from local_cloud.market import SOURCES
from local_cloud.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from local_cloud.run_state import RunState

PANEL = "Signals"
_NameArgument = Annotated[
    str,
    typer.Argument(
        help="A queue, by its topic or its name (market.ticks, MarketTicksQueue), or a source (yfinance).",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Guarded:
    """What has a breaker: its name, and the other words that mean it."""

    name: str
    also: tuple[str, ...] = ()
    is_queue: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.also)})" if self.also else self.name


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (hold, resume):
        app.command(command.__name__, rich_help_panel=PANEL)(command)


def hold(
    ctx: typer.Context,
    name: _NameArgument,
    *,
    by: Annotated[str, typer.Option("--by", envvar="USER", help="Who holds it; others see it.")] = "somebody",
) -> None:
    """Hold a queue's or a source's breaker open until `resume`: nothing is sent to it or fetched from it."""
    if not by.strip():
        msg = "--by is empty: say who holds it."
        raise UsageError(msg)
    cloud, run = _running(ctx)
    with psycopg.connect(database.app_url(cloud.postgres(run), run)) as connection:
        guarded = _named(connection, cloud, run, name)
        breakers.hold(connection, guarded.name, by=by.strip())
    waiting = "What is promised to it waits in the outbox" if guarded.is_queue else "None of its symbols is fetched"
    Progress().say(f"{guarded} is held open. {waiting} until scripts/acp resume {name}")


def resume(ctx: typer.Context, name: _NameArgument) -> None:
    """Let go of a breaker that is held, or cut the cool-down of an open one short: it is probed at once."""
    cloud, run = _running(ctx)
    with psycopg.connect(database.app_url(cloud.postgres(run), run)) as connection:
        guarded = _named(connection, cloud, run, name)
        resumed = breakers.resume(connection, guarded.name)
    Progress().say(
        f"{guarded} is probed by the next run: its breaker closes if that goes well."
        if resumed
        else f"{guarded} is not open: there is nothing to resume."
    )


def guarded_by_breakers(run: RunState, outputs: Mapping[str, str], stored: Iterable[str]) -> list[Guarded]:
    """The queues with their topics and logical ids, the source, and whatever else the database knows a breaker of."""
    topics = json.loads(run.deployment.environ.get("TOPIC_QUEUE_URLS", "{}")) if run.deployment else {}
    guarded = [
        Guarded(
            breakers.queue_name(url),
            (topic, *(output.removesuffix("Url") for output, known in outputs.items() if known == url)),
            is_queue=True,
        )
        for topic, url in topics.items()
    ]
    names = [SOURCES[choice] for choice in SOURCES if run.market_source == choice]
    return guarded + [
        Guarded(name) for name in dict.fromkeys([*names, *stored]) if name not in {queue.name for queue in guarded}
    ]


def find(guarded: Sequence[Guarded], asked: str) -> Guarded:
    """The one that is meant, in any case of letters, by a word for it or how only its words begin.

    Raises UsageError naming those there are.
    """
    wanted = asked.strip().lower()
    by_word = {word.lower(): each for each in guarded for word in (each.name, *each.also)}
    if wanted in by_word:
        return by_word[wanted]
    begun = {each for word, each in by_word.items() if wanted and word.startswith(wanted)}
    if len(begun) == 1:
        return begun.pop()
    said = f"{asked!r} could be several" if begun else f"Nothing called {asked!r} has a breaker"
    msg = f"{said}. There are: {', '.join(map(str, guarded))}."
    raise UsageError(msg)


def _named(connection: psycopg.Connection[tuple[object, ...]], cloud: Cloud, run: RunState, asked: str) -> Guarded:
    stored = [breaker.name for breaker in breakers.read_breakers(connection)]
    return find(guarded_by_breakers(run, cloud.outputs(run), stored), asked)


def _running(ctx: typer.Context) -> tuple[Cloud, RunState]:
    cloud = ctx.obj
    assert isinstance(cloud, Cloud), "the callback sets it"
    return cloud, cloud.running()
