"""Routes, answers and problem documents, without a database."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest

from control_plane.api.http import Api, Refused, Request, Response, Route
from control_plane.model.errors import (
    ConfigurationError,
    ControlPlaneError,
    DatabaseUnavailable,
    SchemaVersionMismatch,
)
from control_plane.platform.aws import SecretUnavailable
from control_plane.platform.telemetry import Telemetry

SECRET = "postgres at db.internal:5432"


@dataclass
class FakeContext:
    aws_request_id: str = "6a4d5f0e-0f5c-4f0c-9d1b-3f1c2d7e8a01"
    function_name: str = "function"
    log_stream_name: str = "stream"

    def get_remaining_time_in_millis(self) -> int:
        return 1000


def echo(parameters: Mapping[str, str]) -> Response:
    return Response(HTTPStatus.OK, parameters)


def refuse(_request: Request) -> None:
    raise Refused(HTTPStatus.UNAUTHORIZED, "no")


def let_in(_request: Request) -> None:
    pass


def ask(telemetry: Telemetry, routes: list[Route], path: str, method: str = "GET", **event: Any) -> dict[str, Any]:
    answer = Api(routes, telemetry=telemetry).answer({"httpMethod": method, "path": path, **event}, FakeContext())
    return {**answer, "body": json.loads(answer["body"])}


def test_a_parameter_is_one_part_of_the_path(telemetry: Telemetry) -> None:
    routes = [Route("GET", "/a/{first}/b/{second}", echo)]
    assert ask(telemetry, routes, "/a/1/b/2")["body"] == {"first": "1", "second": "2"}
    for path in ("/a//b/2", "/a/1/b/2/", "/a/1/x/b/2", "/a/1/b", "x/a/1/b/2"):
        assert ask(telemetry, routes, path)["statusCode"] == 404


def test_a_route_that_is_named_needs_no_path(telemetry: Telemetry) -> None:
    answer = ask(telemetry, [Route("GET", "/a/{b}", echo)], "/prefix/a/1", resource="/a/{b}", pathParameters={"b": "1"})
    assert answer["body"] == {"b": "1"}


def test_another_method_learns_which_ones_there_are(telemetry: Telemetry) -> None:
    routes = [Route("GET", "/a", echo), Route("PUT", "/a", echo), Route("POST", "/b", echo)]
    answer = ask(telemetry, routes, "/a", "DELETE")
    assert (answer["statusCode"], answer["headers"]["Allow"]) == (405, "GET, PUT")


def test_a_guard_is_asked_before_its_route(telemetry: Telemetry) -> None:
    def never(_parameters: Mapping[str, str]) -> Response:
        raise AssertionError

    answer = ask(telemetry, [Route("GET", "/a", never, guard=refuse)], "/a")
    assert (answer["statusCode"], answer["body"]["detail"]) == (401, "no")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DatabaseUnavailable(SECRET), 503),
        (SecretUnavailable(SECRET), 503),
        (SchemaVersionMismatch(SECRET), 503),
        (ConfigurationError([SECRET]), 500),
        (ControlPlaneError(SECRET), 500),
        (KeyError(SECRET), 500),
    ],
)
def test_an_error_is_a_problem_that_tells_nothing_and_a_line_in_the_log_that_tells_all(
    error: Exception, status: int
) -> None:
    def failing(_parameters: Mapping[str, str]) -> Response:
        raise error

    telemetry, log = Telemetry("failing"), io.StringIO()
    telemetry.logger.registered_handler.setStream(log)  # type: ignore[attr-defined]  # a StreamHandler
    answer = ask(telemetry, [Route("GET", "/a", failing)], "/a")
    assert answer["statusCode"] == status
    assert answer["headers"]["Content-Type"] == "application/problem+json"
    assert ("Retry-After" in answer["headers"]) == (status == 503)
    assert answer["body"]["status"] == status
    assert answer["body"]["title"] == HTTPStatus(status).phrase
    assert answer["body"]["instance"] == f"urn:uuid:{FakeContext.aws_request_id}"
    assert SECRET not in json.dumps(answer)
    failure, answered = [json.loads(line) for line in log.getvalue().splitlines()]
    assert (failure["level"], SECRET in failure["error"]) == ("ERROR", True)
    assert ("exception" in failure) == (not isinstance(error, ControlPlaneError))
    assert (answered["message"], answered["status"]) == ("answered", status)


def test_what_to_run_on_a_schema_that_is_behind_is_told_to_whom_the_guard_let_in(telemetry: Telemetry) -> None:
    def failing(_parameters: Mapping[str, str]) -> Response:
        raise SchemaVersionMismatch("version 2: run this")

    for guard, told in ((None, False), (let_in, True)):
        answer = ask(telemetry, [Route("GET", "/a", failing, guard=guard)], "/a")
        assert ("run this" in answer["body"]["detail"]) == told


@pytest.mark.parametrize(
    "event",
    [
        {"headers": {"X-Name": "1"}},
        {"headers": {"X-Name": "2"}, "multiValueHeaders": {"x-name": ["1"]}},
        {"headers": None, "multiValueHeaders": {"X-NAME": ["1"]}},
    ],
)
def test_headers_are_found_whatever_their_case_and_shape(event: dict[str, Any]) -> None:
    assert Request.from_event({"httpMethod": "GET", "path": "/", **event}).headers["x-name"] == ["1"]


@pytest.mark.parametrize("event", [{}, {"headers": None, "multiValueHeaders": None}])
def test_a_request_may_have_no_headers(event: dict[str, Any]) -> None:
    assert Request.from_event({"httpMethod": "GET", "path": "/", **event}).headers == {}
