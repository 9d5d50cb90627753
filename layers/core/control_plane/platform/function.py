"""The edge of a Lambda function: its environment, its database, and the one log line for an error."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import psycopg

from control_plane.model.errors import ControlPlaneError, DatabaseUnavailable, MalformedInvocation
from control_plane.platform.aws import read_secret
from control_plane.platform.conninfo import database_url
from control_plane.platform.database import Database
from control_plane.platform.session import SESSION_LOST
from control_plane.platform.settings import DatabaseSettings
from control_plane.platform.telemetry import Telemetry


class LambdaContext(Protocol):
    """What a handler uses of the context Lambda gives it."""

    aws_request_id: str
    function_name: str
    log_stream_name: str

    def get_remaining_time_in_millis(self) -> int:
        """Returns the milliseconds until the invocation is cut off."""


type Handler[R] = Callable[[dict[str, Any], LambdaContext], R]


def environ() -> Mapping[str, str]:
    """Returns the process's environment; only this function reads it.

    Empty AWS_* variables are removed from it first, because botocore would take an empty AWS_ENDPOINT_URL for the real
    AWS.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]
    return os.environ


def open_database(
    settings: DatabaseSettings,
    *,
    endpoint_url: str | None,
    application_name: str,
    role: str | None,
    check_schema: bool = True,
    patience_seconds: int | None = None,
    prepares: bool = False,
) -> Database:
    """The function's database; nothing is opened or read before its first use.

    ``role`` is the database role whose work the function does: the session must be that one's or a member's. It is
    None for the owner, who may have any name.
    """
    return Database(
        lambda: database_url(settings, functools.partial(read_secret, endpoint_url=endpoint_url)),
        application_name=application_name,
        origin=origin_of(settings),
        check_schema=check_schema,
        role=role,
        patience_seconds=patience_seconds,
        prepares=prepares,
    )


def origin_of(settings: DatabaseSettings) -> str:
    """Returns what the database's URL is read from, for use in errors."""
    return "DATABASE_URL" if settings.secret_arn is None else f"the secret {settings.secret_arn}"


@contextmanager
def database_failures() -> Iterator[None]:
    """Turns the loss of the database in the middle of the work into DatabaseUnavailable."""
    try:
        yield
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise DatabaseUnavailable(
            f"Postgres takes no writes any more: {error}. Has it become a replica, or is its disk full? What was "
            "committed stays; the rest comes again with the next run"
        ) from error
    except SESSION_LOST as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DatabaseUnavailable(
            f"Postgres failed in the middle of the work: {reason}. What was committed stays; the rest comes again with "
            "the next run. Look at the database server's log"
        ) from error


def log_failure(telemetry: Telemetry, error: Exception) -> None:
    """Logs the one line for an error, at the boundary of the function."""
    if isinstance(error, ControlPlaneError):
        # The text of such an error names the cause and the remedy; a stack trace adds nothing.
        telemetry.logger.error(type(error).__name__, error=str(error))
    else:
        telemetry.logger.error(type(error).__name__, error=str(error), exc_info=error)


def _check_is_object(event: object, sample: str) -> None:
    """Raises MalformedInvocation for a JSON value that is no object; the error names its kind, and not its content."""
    if not isinstance(event, dict):
        names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list"}
        kind = names.get(type(event), "a number")
        raise MalformedInvocation(f"the event is {kind}: it must be a JSON object; {sample} shows one")


def function[R](telemetry: Telemetry, *, sample: str = "a file in events/") -> Callable[[Handler[R]], Handler[R]]:
    """Wraps a handler: log lines carry the request id, an error is logged once and raised on, metrics are flushed.

    ``sample`` is the file that shows an event of this function. The wrapped handler raises MalformedInvocation for an
    event that is no JSON object.
    """

    def wrap(handler: Handler[R]) -> Handler[R]:
        @functools.wraps(handler)
        def invoke(event: dict[str, Any], context: LambdaContext) -> R:
            telemetry.logger.clear_state()  # This removes the trace_id of an earlier invocation.
            telemetry.logger.append_keys(function_request_id=context.aws_request_id)
            telemetry.is_of(context.function_name)
            try:
                telemetry.check_environment()
                _check_is_object(event, sample)
                with database_failures():
                    return handler(event, context)
            except Exception as error:
                log_failure(telemetry, error)
                raise
            finally:
                telemetry.flush()

        return invoke

    return wrap
