"""audit verify: whether what was decided is still on record as it was, and whether the accounts add up to it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer

from acp_cli.asking import is_local
from acp_cli.audit_log_command import log
from control_plane.decisions.audit import audit
from domains import load_reconciling
from local_cloud import database
from local_cloud.aws import AWS_ERRORS
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.logs import read_lines
from local_cloud.progress import Progress
from local_cloud.visible import Terminal, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from control_plane.decisions.audit import Audit, Finding
    from local_cloud.run_state import RunState

PANEL = "Decisions"
_audit = typer.Typer(help="The API's log of changes, or a check of what was decided.", no_args_is_help=True)
_SHOWN = 50
_UNDETECTABLE = "changes by one who may write every table cannot be detected there"


@dataclass(frozen=True, slots=True)
class _Log:
    """The anchors that the log has; ``source`` says where they were read, ``missing`` why there are none."""

    lines: Sequence[dict[str, Any]]
    source: str
    missing: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    _audit.command("log")(log)
    app.add_typer(_audit, name="audit", rich_help_panel=PANEL)


@_audit.command("verify")
def verify(
    ctx: typer.Context,
    *,
    log_file: Annotated[
        Path | None,
        typer.Option(
            "--log",
            help="A file with TimersFunction's log lines, in the place of the local cloud's log.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Check every decision's record against its chain, the chains against the anchors, the accounts against both.

    Ends with 1 where something was changed, added or taken away; each finding says whose and which step or row.
    """
    if not is_local(ctx):
        msg = "audit verify reads the database and the log themselves, so it is for the local cloud alone."
        raise UsageError(msg, remedy="Leave out --url and --profile.")
    cloud, progress = ctx.obj, Progress()
    assert isinstance(cloud, Cloud), "the callback sets it"
    run = cloud.running()
    anchors = _from_file(log_file) if log_file is not None else _from_cloud(cloud, run)
    with psycopg.connect(database.reader_url(cloud.postgres(run), run)) as connection:
        with progress.step("Chains, anchors, rows") as step:
            found = audit(connection, anchors.lines)
            step.note = f"{found.decisions} decisions, {found.steps} steps"
        with progress.step("Accounts") as step:
            accounts = [finding for reconcile in load_reconciling() for finding in reconcile(connection)]
            step.note = f"{len(accounts)} findings" if accounts else "they add up"
    findings = [*found.findings, *accounts]
    if as_json:
        _print_json(found, findings, anchors)
    else:
        _print(found, findings, anchors, progress)
    if findings:
        raise typer.Exit(1)


def _print_json(found: Audit, findings: Sequence[Finding], anchors: _Log) -> None:
    content = {
        "decisions": found.decisions,
        "steps": found.steps,
        "unanchored_steps": found.unanchored_steps,
        "logged_anchors": len(anchors.lines),
        "erased_decisions": found.erased,
        "expired_decisions": found.expired,
        "is_clean": not findings,
        "findings": [asdict(finding) for finding in findings],
    }
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def _print(found: Audit, findings: Sequence[Finding], anchors: _Log, progress: Progress) -> None:
    console = Terminal()
    for finding in findings[:_SHOWN]:
        whose = f"decision {finding.decision_id}" if finding.decision_id is not None else "no one decision"
        console.print(f"[red]{shown(finding.where)}[/]  {whose}\n  {shown(finding.what)}", soft_wrap=True)
    if len(findings) > _SHOWN:
        progress.say(f"… and {len(findings) - _SHOWN} more; --json has all.")
    said = f"{len(findings)} findings" if findings else "Nothing was changed"
    progress.say(f"{said} in {found.decisions} decisions with {found.steps} steps.")
    if found.erased or found.expired:
        progress.say(f"{found.erased} decisions were erased and {found.expired} expired; each left its anchored head.")
    if found.unanchored_steps:
        progress.say(f"{found.unanchored_steps} steps are newer than the last anchor: {_UNDETECTABLE}.")
    if anchors.lines:
        progress.say(f"Held against {len(anchors.lines)} anchors {anchors.source}.")
    else:
        progress.say(
            f"Not held against a log, {anchors.missing}: one who rewrote chains and anchors alike is not found."
        )


def _from_file(file: Path) -> _Log:
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} cannot be read: {error}"
        raise UsageError(msg, remedy="--log takes a file with one JSON line per log line.") from error
    lines = list(_anchored(content.splitlines()))
    return _Log(lines, f"of {file}", "for the file has no line “anchored”")


def _from_cloud(cloud: Cloud, run: RunState) -> _Log:
    name = cloud.outputs(run).get("TimersFunctionName")
    if name is None:
        return _Log((), "", "for the stack has no TimersFunction")
    try:
        lines = list(_anchored(line.message for line in read_lines(cloud.aws(run), name, start_milliseconds=0)))
    except AWS_ERRORS as error:
        msg = f"TimersFunction's log cannot be read: {error}"
        raise AcpError(msg, remedy="scripts/acp status, or give the lines in a file by --log FILE.") from error
    return _Log(lines, "of TimersFunction's log", "for it has no line “anchored” yet")


def _anchored(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields the fields of the lines that tell of an anchor; other lines of the log are none of its business."""
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and content.get("message") == "anchored":
            yield content
