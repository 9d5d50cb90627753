"""The edge of a function: what every handler gets without doing anything for it."""

import json
import logging
import os
from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg
import pytest

from control_plane.model.errors import ConfigurationError, DatabaseUnavailable
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.session import SESSION_LOST
from control_plane.platform.settings import DatabaseSettings
from control_plane.platform.telemetry import Telemetry


@dataclass
class Context:
    aws_request_id: str = "request-1"
    function_name: str = "TestFunction"
    log_stream_name: str = "stream"

    def get_remaining_time_in_millis(self) -> int:
        return 1000


_numbers = count(1)


def new_telemetry() -> Telemetry:
    """Makes a new logger in the test, because Powertools keeps the standard output that a logger first had."""
    return Telemetry(f"test-{next(_numbers)}")


def lines(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the log lines and the metrics written so far."""
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in written if "_aws" not in line], [line for line in written if "_aws" in line]


def test_a_handlers_answer_passes_through() -> None:
    telemetry = new_telemetry()

    @function(telemetry)
    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        """A handler with a docstring of its own."""
        return {"event": event, "function": context.function_name}

    assert handler({"a": 1}, Context()) == {"event": {"a": 1}, "function": "TestFunction"}
    assert handler.__doc__ == "A handler with a docstring of its own."


def test_log_lines_carry_only_their_own_request_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = new_telemetry()

    @function(telemetry)
    def handler(event: dict[str, Any], _context: LambdaContext) -> None:
        telemetry.logger.info("begun")
        telemetry.logger.append_keys(trace_id=event["trace_id"])
        telemetry.logger.info("ended")

    handler({"trace_id": "t-1"}, Context("r-1"))
    handler({"trace_id": "t-2"}, Context("r-2"))

    logs, _ = lines(capsys)
    assert [(log["message"], log["function_request_id"], log.get("trace_id")) for log in logs] == [
        ("begun", "r-1", None),
        ("ended", "r-1", "t-1"),
        ("begun", "r-2", None),
        ("ended", "r-2", "t-2"),
    ]
    assert {log["service"] for log in logs} == {telemetry.logger.service}


def test_expected_error_is_logged_without_traceback_and_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = new_telemetry()

    @function(telemetry)
    def handler(_event: dict[str, Any], _context: LambdaContext) -> None:
        raise DatabaseUnavailable("Postgres at db:5432 cannot be used: refused")

    with pytest.raises(DatabaseUnavailable, match="refused"):
        handler({}, Context())
    (log,), _ = lines(capsys)
    assert log["level"] == "ERROR"
    assert log["message"] == "DatabaseUnavailable"
    assert log["error"] == "Postgres at db:5432 cannot be used: refused"
    assert log["function_request_id"] == "request-1"
    assert "exception" not in log


def test_a_database_that_turned_read_only_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    @function(new_telemetry())
    def handler(_event: dict[str, Any], _context: LambdaContext) -> None:
        raise psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction")

    with pytest.raises(DatabaseUnavailable, match=r"cannot execute INSERT .* Has it become a replica"):
        handler({}, Context())
    (log,), _ = lines(capsys)
    assert log["message"] == "DatabaseUnavailable"


@pytest.mark.parametrize("error", SESSION_LOST)
def test_a_session_lost_in_the_middle_is_an_unavailable_database(error: type[psycopg.Error]) -> None:
    @function(new_telemetry())
    def handler(_event: dict[str, Any], _context: LambdaContext) -> None:
        raise error("terminating connection")

    with pytest.raises(DatabaseUnavailable, match=r"terminating connection.*comes again with the next run"):
        handler({}, Context())


def test_package_logs_have_the_format_of_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = new_telemetry()

    @function(telemetry)
    def handler(_event: dict[str, Any], _context: LambdaContext) -> None:
        logging.getLogger("control_plane.platform.database").warning("sslmode=%s", "require")

    handler({}, Context("r-1"))
    (log,), _ = lines(capsys)
    assert (log["level"], log["message"], log["function_request_id"]) == ("WARNING", "sslmode=require", "r-1")
    assert log["service"] == telemetry.logger.service


def test_unexpected_error_is_logged_with_traceback_and_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = new_telemetry()

    @function(telemetry)
    def handler(_event: dict[str, Any], _context: LambdaContext) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        handler({}, Context())
    (log,), _ = lines(capsys)
    assert (log["level"], log["message"], log["error"]) == ("ERROR", "ZeroDivisionError", "by zero")
    assert "test_function.py" in log["exception"]


@pytest.mark.parametrize("fails", [False, True])
def test_metrics_are_flushed_however_the_handler_ends(fails: bool, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = new_telemetry()

    @function(telemetry)
    def handler(_event: dict[str, Any], _context: LambdaContext) -> None:
        telemetry.count("EventsIngested", 3)
        if fails:
            raise ConfigurationError(["SYMBOLS is empty"])

    try:
        handler({}, Context())
    except ConfigurationError:
        assert fails
    _, (metrics,) = lines(capsys)
    assert metrics["EventsIngested"] == [3.0]


def test_empty_aws_variables_are_removed_before_botocore_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("NOT_AWS", "")
    seen = environ()
    assert "AWS_ENDPOINT_URL" not in os.environ
    assert "AWS_ENDPOINT_URL" not in seen
    assert "AWS_ENDPOINT_URL_SQS" not in seen
    assert seen["AWS_REGION"] == "eu-central-1"
    assert seen["NOT_AWS"] == ""


def test_a_database_is_not_reached_for_before_its_first_use() -> None:
    nowhere = DatabaseSettings(url="this is no URL, and nobody has looked yet", secret_arn=None)
    database = open_database(nowhere, endpoint_url=None, application_name="test", role=None)
    database.close()
    with pytest.raises(ConfigurationError) as refusal:
        database.connection()
    assert "nobody has looked" not in str(refusal.value)
