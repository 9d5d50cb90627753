from __future__ import annotations

import json
from typing import Any

import pytest
from rich.text import Text

from acp_cli.logs import render_line, since_seconds
from local_cloud.errors import UsageError
from local_cloud.logs import Line


def shown(message: str | dict[str, Any]) -> str:
    text = message if isinstance(message, str) else json.dumps(message)
    return Text.from_markup(render_line(Line("1", 1_700_000_000_123, text))).plain


def test_a_span_of_time_is_read() -> None:
    assert [since_seconds(text) for text in ("30s", "10m", "2h", "1d")] == [30, 600, 7200, 86400]


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "10 m", "1w"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="try 30s"):
        since_seconds(text)


def test_a_json_line_shows_its_message_and_relevant_fields() -> None:
    line = shown(
        {
            "level": "INFO",
            "message": "published",
            "service": "relay",
            "cold_start": True,
            "topic": "market.ticks",
            "attempt": 2,
            "error": None,
        }
    )
    assert line == "22:13:20.123 INFO    published topic=market.ticks attempt=2"


def test_a_line_shows_its_own_time_not_its_invocations_end() -> None:
    line = shown({"level": "INFO", "message": "published", "timestamp": "2023-11-14 22:12:19,456+0000"})
    assert line == "22:12:19.456 INFO    published"
    metrics = {"_aws": {"Timestamp": 1_700_000_000_000, "CloudWatchMetrics": []}}
    assert shown(metrics).startswith("22:13:20.000 metrics")


@pytest.mark.parametrize("timestamp", ["soon", 7, None, "2023-11-14"])
def test_a_timestamp_that_makes_no_sense_leaves_the_logs_own(timestamp: object) -> None:
    assert shown({"message": "x", "timestamp": timestamp}).startswith("22:13:20.123")


def test_a_report_line_has_no_escapes_between_its_parts() -> None:
    line = shown("REPORT RequestId: 1a\tDuration: 3.1 ms\tBilled Duration: 4 ms\t")
    assert " ".join(line.split()[1:]) == "REPORT RequestId: 1a Duration: 3.1 ms Billed Duration: 4 ms"


@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
def test_a_plain_traceback_has_a_row_for_each_line(newline: str) -> None:
    line = shown(newline.join(["Traceback (most recent call last):", "  File x", "ValueError: [x]"]))
    assert line.splitlines() == [
        "22:13:20.123 Traceback (most recent call last):",
        "      File x",
        "    ValueError: [x]",
    ]


def test_an_exception_is_shown_below_its_line() -> None:
    line = shown({"level": "ERROR", "message": "failed", "exception": "Traceback\n  ValueError: [x]"})
    assert line.splitlines() == ["22:13:20.123 ERROR   failed", "    Traceback", "      ValueError: [x]"]


def test_metrics_are_shown_as_names_and_values() -> None:
    emf = {
        "_aws": {"CloudWatchMetrics": [{"Metrics": [{"Name": "EventsPublished"}, {"Name": "PublishLatency"}]}]},
        "EventsPublished": [4],
        "PublishLatency": [1.5, 9, 3, 2],
    }
    assert shown(emf) == "22:13:20.123 metrics EventsPublished=4 PublishLatency=4 values, 1.5 to 9"


@pytest.mark.parametrize("line", ["REPORT RequestId: 1", "plain [bracketed] text", "[1, 2]", "{broken"])
def test_other_lines_are_shown_unchanged(line: str) -> None:
    assert shown(line) == f"22:13:20.123 {line}"
