"""Reads functions' log lines from CloudWatch Logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_logs import CloudWatchLogsClient

    from local_cloud.aws import LocalCloud


@dataclass(frozen=True, slots=True)
class Line:
    """One log event; `milliseconds` counts from 1970."""

    id: str
    milliseconds: int
    message: str


def read_lines(cloud: LocalCloud, function: str, *, start_milliseconds: int) -> Iterator[Line]:
    """Yields the lines of a function of the local cloud since an instant, in their order; none if it has not run."""
    return read_group(cloud.logs, f"/aws/lambda/{function}", start_milliseconds=start_milliseconds)


def read_group(logs: CloudWatchLogsClient, group: str, *, start_milliseconds: int, pattern: str = "") -> Iterator[Line]:
    """Yields the lines of a log group since an instant, in their order; none if there is no such group.

    `pattern` is a filter pattern of CloudWatch's, which emulators may not know: they are asked without.
    """
    more: dict[str, str] = {"filterPattern": pattern} if pattern else {}
    while True:
        try:
            page = logs.filter_log_events(logGroupName=group, startTime=start_milliseconds, **more)  # type: ignore[arg-type]  # texts alone
        except logs.exceptions.ResourceNotFoundException:
            return
        for event in page["events"]:
            message = event["message"].rstrip("\n")
            # MiniStack gives its log events no ids.
            id_ = event.get("eventId") or f"{event['logStreamName']} {event['timestamp']} {message}"
            yield Line(id_, event["timestamp"], message)
        if "nextToken" not in page:
            return
        more["nextToken"] = page["nextToken"]
