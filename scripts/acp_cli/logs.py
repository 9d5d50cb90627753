"""Makes a function's log lines readable."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from local_cloud.errors import UsageError
from local_cloud.visible import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local_cloud.logs import Line

_SINCE = re.compile(r"^(\d+)([smhd])$")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LEVEL_STYLES = {"DEBUG": "dim", "INFO": "green", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}
_PLATFORM = ("START ", "END ", "REPORT ", "INIT_START ")
# Fields of Lambda and Powertools that are the same on every line of a function.
_UNINTERESTING = {
    "level",
    "location",
    "message",
    "timestamp",
    "service",
    "cold_start",
    "function_name",
    "function_memory_size",
    "function_arn",
    "function_request_id",
    "exception_name",
    "stack_trace",
    "xray_trace_id",
}


def since_seconds(text: str) -> int:
    """Returns a duration such as 30s, 10m, 2h, 1d in seconds. Raises UsageError."""
    match = _SINCE.match(text)
    if match is None:
        msg = f"{text!r} is no span of time: try 30s, 10m, 2h or 1d."
        raise UsageError(msg)
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def instant_of_line(line: Line) -> datetime:
    """Returns when a line was written, as far as it says so; the log's own time may be the invocation's end."""
    try:
        content = json.loads(line.message)
    except ValueError:
        content = None
    return _own_instant(content) or datetime.fromtimestamp(line.milliseconds / 1000, UTC)


def render_line(line: Line, *, source: str = "") -> str:
    """Returns a line as rich markup: its time, ``source``, level, message, and the other fields that matter."""
    try:
        content = json.loads(line.message)
    except ValueError:
        content = None
    moment = _own_instant(content) or datetime.fromtimestamp(line.milliseconds / 1000, UTC)
    clock = f"[dim]{moment:%H:%M:%S}.{moment.microsecond // 1000:03}[/]"
    if source:
        clock += f" [bold]{source}[/]"
    if not isinstance(content, dict):
        style = "dim" if line.message.startswith(_PLATFORM) else "default"
        # Lambda's REPORT lines have tabs between their parts, tracebacks in front.
        first, *more = re.split(r"\r\n?|\n", line.message.expandtabs(4))
        return "\n    ".join([f"{clock} [{style}]{shown(first)}[/]", *(f"[red]{shown(row)}[/]" for row in more)])
    if "_aws" in content:
        return f"{clock} [magenta]metrics[/] {_metrics(content)}"
    level = str(content.get("level", "INFO"))
    text = f"{clock} [{_LEVEL_STYLES.get(level, 'default')}]{level:7}[/] {shown(str(content.get('message', '')))}"
    fields = {key: value for key, value in content.items() if key not in _UNINTERESTING and value is not None}
    text += "".join(
        f" [cyan]{shown(key)}[/]={shown(_value(value))}" for key, value in fields.items() if key != "exception"
    )
    if exception := content.get("exception"):
        text += "".join(f"\n    [red]{shown(row)}[/]" for row in str(exception).expandtabs(4).splitlines())
    return text


def _own_instant(content: Any) -> datetime | None:
    """Returns when the line says that it was written; the log's own time may be that of the invocation's end."""
    if not isinstance(content, dict):
        return None
    try:
        if "_aws" in content:
            return datetime.fromtimestamp(content["_aws"]["Timestamp"] / 1000, UTC)
        return datetime.strptime(str(content["timestamp"]), "%Y-%m-%d %H:%M:%S,%f%z").astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _metrics(content: Mapping[str, Any]) -> str:
    names = [
        metric["Name"]
        for directive in content["_aws"].get("CloudWatchMetrics", [])
        for metric in directive.get("Metrics", [])
    ]
    return " ".join(f"{shown(name)}={shown(_number(content.get(name)))}" for name in names)


def _number(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    if len(values) > 3:
        return f"{len(values)} values, {min(values):g} to {max(values):g}"
    return ",".join(f"{item:g}" if isinstance(item, int | float) else str(item) for item in values)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
