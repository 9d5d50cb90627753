"""logs: a function's log, or what all functions logged about one event, one run or one decision, in order."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer

from acp_cli.asking import is_local, wanted_profile
from acp_cli.logs import instant_of_line, render_line, since_seconds
from acp_cli.output import wait_while_read
from acp_cli.own_aws import own_aws
from local_cloud.build import TEMPLATE
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.functions import functions_of, short_name, short_names
from local_cloud.logs import Line, read_group
from local_cloud.progress import Progress
from local_cloud.template import read_template
from local_cloud.visible import Terminal, shown, visible_lines
from local_cloud.workspace import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mypy_boto3_logs import CloudWatchLogsClient

PANEL = "Signals"
_ID: Final = re.compile(r"[0-9a-f][0-9a-f-]{3,35}")
_WHOLE_ID: Final = 36
_REGION_OF_API: Final = re.compile(r"[a-z0-9]+\.execute-api\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?")
_NEWEST: Final = "15m"
_NEWEST_ABOUT: Final = "1d"


@dataclass(frozen=True, slots=True)
class About:
    """What lines are to be about: a field of theirs, and the id that it has, or the beginning of it."""

    field: str
    id: str

    @property
    def pattern(self) -> str:
        """CloudWatch's filter pattern for such lines."""
        return f'{{ $.{self.field} = "{self.id}{"" if len(self.id) == _WHOLE_ID else "*"}" }}'

    def fits(self, line: Line) -> bool:
        """Whether a line says that it is about this."""
        try:
            content = json.loads(line.message)
        except ValueError:
            return False
        return isinstance(content, dict) and str(content.get(self.field) or "").lower().startswith(self.id)


@dataclass(frozen=True, slots=True)
class Logs:
    """Where logs are: a client, and the log group of each function by the name that people use."""

    client: CloudWatchLogsClient
    groups: Mapping[str, str]
    knows_patterns: bool

    def read(self, about: About | None, *, start: int) -> Iterator[tuple[str, Line]]:
        """Yields the lines since an instant in milliseconds, with their functions; those of several in time order."""
        found = ((name, line) for name, group in self.groups.items() for line in self._read(group, about, start))
        return found if len(self.groups) == 1 else iter(sorted(found, key=lambda one: instant_of_line(one[1])))

    def _read(self, group: str, about: About | None, start: int) -> Iterator[Line]:
        pattern = about.pattern if about is not None and self.knows_patterns else ""
        for line in read_group(self.client, group, start_milliseconds=start, pattern=pattern):
            if about is None or about.fits(line):
                yield line


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("logs", rich_help_panel=PANEL)(logs)


def logs(
    ctx: typer.Context,
    function: Annotated[
        str | None,
        typer.Argument(
            help="ingestion, relay, signal-lab, ops-api, migration, maintenance, or a logical id.", show_default=False
        ),
    ] = None,
    *,
    trace: Annotated[
        str | None,
        typer.Option("--trace", metavar="ID", help="Lines of all functions about one run.", show_default=False),
    ] = None,
    event: Annotated[
        str | None,
        typer.Option("--event", metavar="ID", help="Lines of all functions about one event.", show_default=False),
    ] = None,
    decision: Annotated[
        str | None,
        typer.Option("--decision", metavar="ID", help="Lines of all functions about one decision.", show_default=False),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    since: Annotated[
        str | None,
        typer.Option(help="How far back: 30s, 10m, 2h, 1d.", show_default=f"{_NEWEST}; about an id {_NEWEST_ABOUT}"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The lines as they were written.")] = False,
    stack: Annotated[
        str | None,
        typer.Option(
            "--stack",
            metavar="NAME",
            help="A stack in the AWS account of your own credentials (AWS_PROFILE and the like), such as "
            "ai-control-plane; without it the local cloud's.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show a function's log, or what all functions logged about one id, their JSON lines made readable.

    An id may be given by its first characters. This is the one command that needs the cloud's own credentials.
    """
    about = _about(trace=trace, event=event, decision=decision)
    if since is None:
        since = _NEWEST if about is None else _NEWEST_ABOUT
    seconds = since_seconds(since)
    if function is None and about is None:
        names = short_names(read_template(CHECKOUT / TEMPLATE)["Resources"])
        msg = f"It is not said whose log. There are: {', '.join(names)}."
        raise UsageError(
            msg, remedy=f"Try scripts/acp logs {names[0]}, or --trace, --event or --decision with an id for all of them"
        )
    with _logs_of(ctx, function, stack) as found:
        has_any = _show(found, about, int((time.time() - seconds) * 1000), follow=follow, raw=raw)
    if not has_any:
        who = function or "No function"
        what = "nothing" if function else "anything"
        whom = "" if about is None else f" about {about.field.removesuffix('_id')} {about.id}"
        Progress().say(f"{who} has logged {what}{whom} in the last {since}.")


def _show(found: Logs, about: About | None, start: int, *, follow: bool, raw: bool) -> bool:
    """Prints the lines, each once; returns whether there were any."""
    console, seen = Terminal(), set[str]()
    width = max(map(len, found.groups))
    try:
        while True:
            for name, line in found.read(about, start=start):
                if line.id not in seen:
                    seen.add(line.id)
                    source = "" if len(found.groups) == 1 else f"{name:{width}} "
                    if raw:
                        sys.stdout.write(visible_lines(line.message) + "\n")
                    else:
                        console.print(render_line(line, source=shown(source)), soft_wrap=True)
                # A line of another environment may arrive late, with an earlier time.
                start = max(start, line.milliseconds - 10_000)
            if not follow:
                break
            sys.stdout.flush()
            wait_while_read(1)
    except KeyboardInterrupt:
        return True
    return bool(seen)


def _about(**ids: str | None) -> About | None:
    """Returns what lines are to be about; None where no id is given. Raises UsageError."""
    given = {name: text for name, text in ids.items() if text is not None}
    if not given:
        return None
    if len(given) > 1:
        msg = f"--{' and --'.join(given)} are given: a line is looked for by one id."
        raise UsageError(msg)
    [(name, text)] = given.items()
    if _ID.fullmatch(text.lower()) is None:
        msg = f"{text!r} is no {name}'s id, nor the first four or more characters of one."
        raise UsageError(msg)
    return About(f"{name}_id", text.lower())


@contextmanager
def _logs_of(ctx: typer.Context, function: str | None, stack: str | None) -> Iterator[Logs]:
    """Yields the logs of the local cloud, or of a stack in the user's account. Raises AcpError."""
    if stack is None:
        if not is_local(ctx):
            msg = "A deployment's API knows no logs: they are read by the cloud's own credentials."
            raise UsageError(msg, remedy="Name its stack: scripts/acp logs --stack NAME, with AWS_PROFILE set")
        cloud = ctx.obj
        assert isinstance(cloud, Cloud), "the callback sets it"
        run = cloud.running()
        groups = {
            short_name(logical): f"/aws/lambda/{name}" for logical, name in functions_of(cloud.outputs(run)).items()
        }
        yield Logs(cloud.aws(run).logs, _chosen(groups, function), knows_patterns=False)
        return
    import boto3  # noqa: PLC0415  it takes half a second
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        with own_aws():
            session = boto3.Session(region_name=_region_of(ctx))
            pages = session.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
            groups = {
                short_name(one["LogicalResourceId"].removesuffix("LogGroup")): one["PhysicalResourceId"]
                for page in pages
                for one in page["StackResourceSummaries"]
                if one["ResourceType"] == "AWS::Logs::LogGroup"
            }
            yield Logs(session.client("logs"), _chosen(groups, function), knows_patterns=True)
    except (BotoCoreError, ClientError) as error:
        msg = f"The logs of the stack {stack} cannot be read: {error}"
        raise AcpError(
            msg,
            remedy="Are AWS_PROFILE (or keys) and AWS_REGION those of its account? It asks CloudFormation and Logs.",
        ) from None


def _region_of(ctx: typer.Context) -> str | None:
    """Returns the region that a deployment's URL names; None for the one that the user has set."""
    profile = wanted_profile(ctx)
    found = None if profile is None else _REGION_OF_API.fullmatch(urlsplit(profile.url).hostname or "")
    return None if found is None else found[1]


def _chosen(groups: Mapping[str, str], function: str | None) -> Mapping[str, str]:
    if function is None:
        return groups
    wanted = re.sub(r"[-_ ]", "", function).lower().removesuffix("function")
    for name, group in groups.items():
        if function == group.removeprefix("/aws/lambda/") or wanted == name.replace("-", ""):
            return {name: group}
    msg = f"There is no function {function!r}. There are: {', '.join(groups)}."
    raise UsageError(msg)
