"""invoke: runs one function in Lambda's own runtime container."""

from __future__ import annotations

import collections
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from local_cloud import build, containers, tools
from local_cloud.aws import InvocationError
from local_cloud.cloud import Cloud
from local_cloud.errors import AcpError, UsageError
from local_cloud.functions import function_name, short_name
from local_cloud.progress import Progress
from local_cloud.visible import visible_lines
from local_cloud.workspace import locked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local_cloud.run_state import RunState
    from local_cloud.workspace import Workspace

PANEL = "Signals"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("invoke", rich_help_panel=PANEL)(invoke)


def invoke(
    ctx: typer.Context,
    function: Annotated[
        str,
        typer.Argument(
            help="ingestion, relay, signal-lab, ops-api, migration, maintenance, or a logical id.", show_default=False
        ),
    ],
    *,
    event: Annotated[
        Path | None, typer.Option("-e", "--event", help="A JSON file; without it, the function's sample in events/.")
    ] = None,
) -> None:
    """Run a function once in Lambda's own container (sam local invoke), against the running local cloud. Needs Docker.

    Its answer goes to standard output, its log to standard error. Fails where the function does.
    """
    cloud, progress = ctx.obj, Progress()
    assert isinstance(cloud, Cloud), "the callback sets it"
    workspace, run = cloud.workspace, cloud.running()
    logical_id = _logical_id(cloud.outputs(run), function)
    path = event or sample(workspace, logical_id)
    _check(path)
    with locked(workspace.state, "invoke", on_wait=progress.say):
        cloud.prepare_containers(run)
    with progress.step("Build for Lambda") as step:
        step.note = build.build_for_containers(workspace, on_wait=progress.say)
    answer = _sam_local_invoke(workspace, run, logical_id, path)
    sys.stdout.write(visible_lines(answer.rstrip("\n")) + "\n")
    error = failure(answer)
    if error is not None:
        msg = f"{logical_id} failed: {error}"
        raise InvocationError(msg, remedy="Its log is above.")


def sample(workspace: Workspace, logical_id: str) -> Path:
    """Returns the function's sample event. Raises UsageError if there is none, or more than one."""
    name = short_name(logical_id).replace("-", "_")
    found = sorted((workspace.checkout / "events").glob(f"{name}*.json"))
    exact = [path for path in found if path.stem == name]
    if len(exact or found) != 1:
        msg = f"{logical_id} has {len(found)} samples in events/: name an event with -e."
        raise UsageError(msg, remedy="\n".join(f"  -e {path.relative_to(workspace.checkout)}" for path in found))
    return (exact or found)[0]


def failure(answer: str) -> str | None:
    """Returns what went wrong if the answer is the runtime's report of an error instead of the handler's result."""
    try:
        content = json.loads(answer)
    except ValueError:
        return "it gave no answer"
    if isinstance(content, dict) and {"errorMessage", "errorType"} <= content.keys():
        return f"{content['errorType']}: {content['errorMessage']}"
    return None


def _logical_id(outputs: Mapping[str, str], asked: str) -> str:
    deployed = function_name(outputs, asked)
    return next(
        output.removesuffix("Name")
        for output, name in outputs.items()
        if output.endswith("FunctionName") and name == deployed
    )


def _check(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}."
        raise UsageError(msg) from None
    except ValueError as error:
        msg = f"{path} holds no JSON: {error}."
        raise UsageError(msg) from None


def _sam_local_invoke(workspace: Workspace, run: RunState, logical_id: str, event: Path) -> str:
    """Returns the answer as SAM prints it; empty if the function gave none. Raises AcpError if SAM itself fails."""
    command = tools.sam_command(
        "local",
        "invoke",
        logical_id,
        f"--event={event.absolute()}",
        f"--env-vars={containers.environment_file(workspace)}",
        f"--layer-cache-basedir={workspace.home / 'cache' / 'sam' / 'layers'}",
    )
    # SAM asks STS for the account, for AWS::AccountId; the container does not see this endpoint.
    environ = tools.sam_environ(workspace) | {"AWS_ENDPOINT_URL": run.endpoint}
    tail: collections.deque[str] = collections.deque(maxlen=15)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as answer,
        subprocess.Popen(
            command,
            cwd=workspace.checkout,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            assert process.stderr is not None, "it was asked for"
            for line in process.stderr:
                sys.stderr.write(visible_lines(line))
                tail.append(line)
            process.wait()
        finally:
            if process.poll() is None:
                # SAM removes its container.
                process.send_signal(signal.SIGINT)
                process.wait()
        if process.returncode != 0:
            msg = f"sam local invoke failed (exit code {process.returncode})."
            raise AcpError(msg, details="" if sys.stderr.isatty() else "".join(tail))
        answer.seek(0)
        return answer.read()
