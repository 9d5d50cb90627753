"""Operations as a command waits for them: until the plan is made, until the work is done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from acp_cli.status import duration
from local_cloud.errors import AcpError
from local_cloud.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from acp_client.client import Client
    from local_cloud.progress import Step

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
_WAITING: Final = "waiting for OperationsFunction, which comes every minute"
_STALLED: Final = "no step for five minutes: does OperationsFunction run? Its log and its alarms say more"


class OperationFailed(AcpError):
    """Raised when an operation could not be planned, or was given up, paused or cancelled while it was followed."""


def plan_operation(
    client: Client, kind: str, wanted: Mapping[str, Any], *, reason: str, rate: float | None = None
) -> dict[str, Any]:
    """Asks for a plan, and waits until it is made. Returns the operation. Raises OperationFailed."""
    body = {"kind": kind, "filter": wanted, "reason": reason} | ({} if rate is None else {"rate": rate})
    asked: dict[str, Any] = client.send("POST", "/operations", body)
    with Progress().step("Planned") as step:
        planned = _until(client, asked, lambda one: one["state"] != "planning", step)
        if planned["state"] == "planned":
            step.note = f"{planned['total']:,} in {_seconds(planned)}"
    if planned["state"] != "planned":
        msg = f"Operation {planned['operation_id']} cannot be planned: {planned['error'] or planned['state']}"
        raise OperationFailed(msg, remedy="Nothing was done. Mend the cause, or ask for less, and plan it again.")
    return planned


def follow_operation(client: Client, operation: dict[str, Any]) -> dict[str, Any]:
    """Waits until an operation has ended. Returns it; raises OperationFailed where it is not done."""
    operation_id = operation["operation_id"]
    try:
        with Progress().step("Done") as step:
            ended = _until(client, operation, lambda one: one["state"] not in {"planning", "planned", "running"}, step)
            step.note = f"{ended['done']:,} of {ended['total']:,}"
    except KeyboardInterrupt:
        Progress().say(f"It goes on: scripts/acp operations show {operation_id}, and cancel {operation_id} to end it.")
        raise
    if ended["state"] != "done":
        msg = f"Operation {operation_id} is {ended['state']}{': ' if ended['error'] else ''}{ended['error'] or ''}."
        goes_on = f"scripts/acp operations resume {operation_id} goes on where it was."
        raise OperationFailed(msg, remedy="" if ended["state"] == "cancelled" else goes_on)
    return ended


def cancel_operation(client: Client, operation: Mapping[str, Any], *, reason: str) -> dict[str, Any]:
    """Ends an operation, and returns it."""
    cancelled: dict[str, Any] = client.send(
        "POST", f"/operations/{operation['operation_id']}/cancel", {"reason": reason}
    )
    return cancelled


def progress_text(operation: Mapping[str, Any]) -> str:
    """Returns how far an operation is, in a few words."""
    done, total = operation["done"] + operation["skipped"], operation["total"]
    text = f"{done:,} of {total:,}"
    if operation["state"] == "running" and operation["rate"]:
        text += f", {operation['rate']:g} a second, {duration(max(total - done, 0) / operation['rate'])} left"
    return text


def _until(
    client: Client, operation: dict[str, Any], is_over: Callable[[Mapping[str, Any]], bool], step: Step
) -> dict[str, Any]:
    pause = _FIRST_PAUSE_SECONDS
    while not is_over(operation):
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        before = operation
        operation = client.get(f"/operations/{operation['operation_id']}")
        if is_over(operation):
            break
        if operation["is_stalled"]:
            step.update(_STALLED)
        elif operation["error"] is not None:
            step.update(f"tried again after: {operation['error']}")
        elif operation["total"]:
            step.update(progress_text(operation))
        elif operation == before and pause == _LONGEST_PAUSE_SECONDS:
            step.update(_WAITING)
    return operation


def _seconds(planned: Mapping[str, Any]) -> str:
    estimated = planned["plan"].get("estimated_seconds")
    return "unknown time" if estimated is None else f"about {duration(estimated)}"
