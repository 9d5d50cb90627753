"""Routes, answers and problem documents, without a database."""

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest

from control_plane.api.dispatch import Api
from control_plane.api.http import Refused, Request, Response
from control_plane.api.routes import Call, Caller, Route
from control_plane.api.scopes import Scope
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


def echo(call: Call) -> Response:
    return Response(HTTPStatus.OK, call.parameters)


def made(method: str, path: str, answer: Callable[[Call], Response] = echo, *, is_open: bool = False) -> Route:
    return Route(method, path, Scope.PUBLIC if is_open else Scope.READ, answer, "A route of these tests.")


def refuse(_request: Request) -> Caller:
    raise Refused(HTTPStatus.UNAUTHORIZED, "no")


def let_in(_request: Request) -> Caller:
    return Caller(token="kim", scopes=frozenset({Scope.READ}))


def ask(telemetry: Telemetry, routes: list[Route], path: str, method: str = "GET", **event: Any) -> dict[str, Any]:
    answer = Api(routes, guard=event.pop("guard", let_in), telemetry=telemetry).answer(
        {"httpMethod": method, "path": path, **event}, FakeContext()
    )
    return {**answer, "body": json.loads(answer["body"]) if answer["body"] else None}


def test_a_parameter_is_one_part_of_the_path(telemetry: Telemetry) -> None:
    routes = [made("GET", "/a/{first}/b/{second}", echo)]
    assert ask(telemetry, routes, "/a/1/b/2")["body"] == {"first": "1", "second": "2"}
    for path in ("/a//b/2", "/a/1/b/2/", "/a/1/x/b/2", "/a/1/b", "x/a/1/b/2"):
        assert ask(telemetry, routes, path)["statusCode"] == 404


def test_a_route_that_is_named_needs_no_path(telemetry: Telemetry) -> None:
    answer = ask(telemetry, [made("GET", "/a/{b}", echo)], "/prefix/a/1", resource="/a/{b}", pathParameters={"b": "1"})
    assert answer["body"] == {"b": "1"}


def test_another_method_learns_which_ones_there_are(telemetry: Telemetry) -> None:
    routes = [made("GET", "/a", echo), made("PUT", "/a", echo), made("POST", "/b", echo)]
    answer = ask(telemetry, routes, "/a", "DELETE")
    assert (answer["statusCode"], answer["headers"]["Allow"]) == (405, "GET, HEAD, PUT, OPTIONS")


def test_a_route_is_closed_unless_declared_open(telemetry: Telemetry) -> None:
    routes = [made("GET", "/closed", echo), made("GET", "/open", echo, is_open=True)]
    for path, status in (("/closed", 401), ("/open", 200)):
        for method in ("GET", "HEAD"):
            assert ask(telemetry, routes, path, method, guard=refuse)["statusCode"] == status


def test_a_named_route_counts_and_its_path_does_not(telemetry: Telemetry) -> None:
    routes = [made("GET", "/closed", echo), made("GET", "/open", echo, is_open=True)]
    assert ask(telemetry, routes, "/open", resource="/closed", guard=refuse)["statusCode"] == 401
    assert ask(telemetry, routes, "/open", resource="/elsewhere", guard=refuse)["statusCode"] == 404


@pytest.mark.parametrize(
    ("one", "other", "is_refused"),
    [
        (("GET", "/a/{b}"), ("GET", "/a/c"), True),
        (("GET", "/a/{b}"), ("GET", "/a/{c}"), True),
        (("GET", "/a"), ("GET", "/a"), True),
        (("GET", "/a/{b}"), ("PUT", "/a/c"), False),
        (("GET", "/a/b"), ("GET", "/a/c"), False),
        (("GET", "/a/{b}"), ("GET", "/a/{b}/c"), False),
    ],
)
def test_two_routes_for_one_request_are_refused(
    telemetry: Telemetry, one: tuple[str, str], other: tuple[str, str], is_refused: bool
) -> None:
    routes = [made(*one), made(*other)]
    with pytest.raises(ValueError, match="answer the same requests") if is_refused else nullcontext():
        Api(routes, guard=let_in, telemetry=telemetry)


def test_head_is_get_without_a_body(telemetry: Telemetry) -> None:
    routes = [made("GET", "/a", echo), made("POST", "/b", echo)]
    get, head = (ask(telemetry, routes, "/a", method) for method in ("GET", "HEAD"))
    assert head == {**get, "body": None}
    assert ask(telemetry, routes, "/b", "HEAD")["statusCode"] == 405


def test_an_answer_may_be_text_of_its_own_content_type() -> None:
    page = Response(HTTPStatus.OK, None, {"Cache-Control": "no-cache"}, "text/html; charset=utf-8", text="<p>ä</p>")
    answer = page.to_proxy(instance="urn:uuid:1")
    assert answer["body"] == "<p>ä</p>"
    assert answer["headers"]["Content-Type"] == "text/html; charset=utf-8"
    assert answer["headers"]["Cache-Control"] == "no-cache"
    assert page.to_proxy(instance="urn:uuid:1", with_body=False)["body"] == ""


def test_a_route_reads_what_its_client_accepts(telemetry: Telemetry) -> None:
    route = made("GET", "/a", lambda call: Response(HTTPStatus.OK, {"accept": call.accept}))
    answer = ask(telemetry, [route], "/a", headers={"ACCEPT": "text/plain;q=0.5"})
    assert answer["body"] == {"accept": "text/plain;q=0.5"}


def test_an_answer_has_one_body() -> None:
    with pytest.raises(ValueError, match="one body"):
        Response(HTTPStatus.OK, {}, text="text")


def test_options_names_the_methods(telemetry: Telemetry) -> None:
    routes = [made("GET", "/a", echo), made("PUT", "/a", echo)]
    answer = ask(telemetry, routes, "/a", "OPTIONS", guard=refuse)
    assert (answer["statusCode"], answer["headers"]["Allow"]) == (204, "GET, HEAD, PUT, OPTIONS")
    assert ask(telemetry, routes, "/b", "OPTIONS")["statusCode"] == 404


def test_the_log_line_names_the_caller_by_the_gateway_alone() -> None:
    telemetry, log = Telemetry("caller"), io.StringIO()
    telemetry.logger.registered_handler.setStream(log)  # type: ignore[attr-defined]  # a StreamHandler
    identity: dict[str, Any] = {"requestContext": {"identity": {"sourceIp": "203.0.113.7\nforged"}}}
    ask(telemetry, [made("GET", "/a", echo)], "/a", headers={"X-Forwarded-For": "192.0.2.1"}, **identity)
    ask(telemetry, [made("GET", "/a", echo)], "/a", headers={"X-Forwarded-For": "192.0.2.1"})
    callers = [json.loads(line).get("caller") for line in log.getvalue().splitlines()]
    assert callers == ["203.0.113.7 forged", None]


def test_a_guard_is_asked_before_its_route(telemetry: Telemetry) -> None:
    def never(_call: Call) -> Response:
        raise AssertionError

    answer = ask(telemetry, [made("GET", "/a", never)], "/a", guard=refuse)
    assert (answer["statusCode"], answer["body"]["detail"]) == (401, "no")


def test_a_request_refused_with_401_is_counted(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    routes = [made("GET", "/closed", echo), made("GET", "/open", echo, is_open=True)]
    for path, counted in (("/closed", [1.0]), ("/open", None), ("/nowhere", None)):
        ask(telemetry, routes, path, guard=refuse)
        capsys.readouterr()
        telemetry.flush()
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["UnauthorizedRequests"] for line in lines] == ([counted] if counted else []), path


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
def test_an_errors_details_are_logged_and_not_answered(error: Exception, status: int) -> None:
    def failing(_call: Call) -> Response:
        raise error

    telemetry, log = Telemetry("failing"), io.StringIO()
    telemetry.logger.registered_handler.setStream(log)  # type: ignore[attr-defined]  # a StreamHandler
    answer = ask(telemetry, [made("GET", "/a", failing, is_open=True)], "/a")
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


def test_only_authorized_callers_see_the_remedy_for_an_old_schema(telemetry: Telemetry) -> None:
    def failing(_call: Call) -> Response:
        raise SchemaVersionMismatch("version 2: run this")

    for is_open, told in ((True, False), (False, True)):
        answer = ask(telemetry, [made("GET", "/a", failing, is_open=is_open)], "/a")
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
