"""Reads a function's log lines from CloudWatch Logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local_cloud.aws import LocalCloud


@dataclass(frozen=True, slots=True)
class Line:
    """One log event; `milliseconds` counts from 1970."""

    id: str
    milliseconds: int
    message: str


def read_lines(cloud: LocalCloud, function: str, *, start_milliseconds: int) -> Iterator[Line]:
    """Returns the lines since an instant, in their order, or None if the function has not run yet."""
    logs = cloud.logs
    token: dict[str, str] = {}
    while True:
        try:
            page = logs.filter_log_events(
                logGroupName=f"/aws/lambda/{function}",
                startTime=start_milliseconds,
                **token,  # type: ignore[arg-type]  # only ever nextToken
            )
        except logs.exceptions.ResourceNotFoundException:
            return
        for event in page["events"]:
            message = event["message"].rstrip("\n")
            # MiniStack gives its log events no ids.
            id_ = event.get("eventId") or f"{event['logStreamName']} {event['timestamp']} {message}"
            yield Line(id_, event["timestamp"], message)
        if "nextToken" not in page:
            return
        token = {"nextToken": page["nextToken"]}
