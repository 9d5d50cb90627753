"""Requests as API Gateway's REST proxy gives them, answers as it takes them; errors are problem documents, RFC 9457."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from control_plane.model.errors import ControlPlaneError, DatabaseUnavailable, SchemaVersionMismatch
from control_plane.platform.aws import SecretUnavailable
from control_plane.platform.function import LambdaContext, database_failures, log_failure
from control_plane.platform.telemetry import Telemetry

RETRY_AFTER_SECONDS: Final = 5
"""How long a client is told to wait after a 503."""
MOST_BYTES: Final = 6_291_556
"""The largest answer that Lambda returns, counted as JSON with its escapes and headers."""

_PROBLEM: Final = "application/problem+json"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class NotAProxyRequest(ControlPlaneError):
    """Raised when the function is invoked with something other than a request."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as routes and their guards read it."""

    method: str
    resource: str | None
    """The route as API Gateway names it: ``/events/{event_id}``."""
    path: str
    path_parameters: Mapping[str, str]
    headers: Mapping[str, Sequence[str]]
    """By name in lower case; one sent twice has two values."""

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Request":
        """Raises NotAProxyRequest."""
        method, path = event.get("httpMethod"), event.get("path")
        if not isinstance(method, str) or not isinstance(path, str):
            raise NotAProxyRequest(
                "the event has no httpMethod and path, so it is no request of a REST API: "
                "events/ops_api_health.json shows one"
            )
        headers: dict[str, list[str]] = {}
        if multiple := event.get("multiValueHeaders"):
            for name, values in multiple.items():
                headers.setdefault(name.lower(), []).extend(values)
        else:
            for name, value in (event.get("headers") or {}).items():
                headers.setdefault(name.lower(), []).append(value)
        return cls(
            method=method.upper(),
            resource=event.get("resource"),
            path=path,
            path_parameters=event.get("pathParameters") or {},
            headers=headers,
        )


@dataclass(frozen=True, slots=True)
class Response:
    """An answer in JSON."""

    status: HTTPStatus
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cause: Exception | None = None
    """The error that led to this answer, for the log."""

    def to_proxy(self, *, instance: str) -> dict[str, Any]:
        """As API Gateway takes it. A problem document names this ``instance`` of the problem."""
        body = {**self.body, "instance": instance} if self.content_type == _PROBLEM else self.body
        return {
            "statusCode": int(self.status),
            "headers": {"Content-Type": self.content_type, **_HEADERS, **self.headers},
            "body": json.dumps(body, ensure_ascii=False, separators=(",", ":")),
            "isBase64Encoded": False,
        }


def problem(
    status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None, cause: Exception | None = None
) -> Response:
    """A problem document of no type of its own: its status says what it is about, ``detail`` what it means here."""
    body = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
    return Response(status, body, headers or {}, _PROBLEM, cause)


class Refused(Exception):
    """Raised by a route, or by its guard, to answer with a problem document."""

    def __init__(self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.response = problem(status, detail, headers=headers)
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class Route:
    """A path of literal parts and ``{parameters}``, and what answers there."""

    method: str
    path: str
    answer: Callable[[Mapping[str, str]], Response]
    """Given the path's parameters. Raises Refused."""
    guard: Callable[[Request], None] | None = None
    """Raises Refused for whom it does not let in; None: open to all."""

    def parameters(self, request: Request) -> Mapping[str, str] | None:
        """Of a request for this path; None for another."""
        if request.resource == self.path:  # behind a domain of one's own, the path may have a prefix
            return request.path_parameters
        found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path), request.path)
        return None if found is None else found.groupdict()


class Api:
    """Its routes, and an answer to whatever comes."""

    def __init__(self, routes: Sequence[Route], *, telemetry: Telemetry) -> None:
        self._routes = routes
        self._telemetry = telemetry

    def answer(self, event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
        """To an event of API Gateway's REST proxy. Raises NotAProxyRequest alone: all else is answered, and logged."""
        request = Request.from_event(event)
        instance = f"urn:uuid:{context.aws_request_id}"
        route, let_in = None, False
        try:
            route, parameters = self._find(request)
            if route.guard is not None:
                route.guard(request)
                let_in = True
            with database_failures():
                response = route.answer(parameters)
        except Refused as refusal:
            response = refusal.response
        except Exception as error:  # noqa: BLE001 - the boundary: whoever asked gets an answer, the log the reason
            response = _failure(error, with_details=let_in)
        answer = response.to_proxy(instance=instance)
        if len(json.dumps(answer)) > MOST_BYTES:
            response = problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "The answer is larger than Lambda can return: read the database itself.",
            )
            answer = response.to_proxy(instance=instance)
        if response.cause is not None:
            log_failure(self._telemetry, response.cause)
        self._telemetry.logger.info(
            "answered", method=request.method, route=route.path if route else None, status=int(response.status)
        )
        return answer

    def _find(self, request: Request) -> tuple[Route, Mapping[str, str]]:
        there = [(route, parameters) for route in self._routes if (parameters := route.parameters(request)) is not None]
        for route, parameters in there:
            if route.method == request.method:
                return route, parameters
        if there:
            allowed = ", ".join(route.method for route, _ in there)
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED, f"This route answers to {allowed} alone.", headers={"Allow": allowed}
            )
        raise Refused(HTTPStatus.NOT_FOUND, "There is no such route.")


def _failure(error: Exception, *, with_details: bool) -> Response:
    """What may be said of an error; all of it is in the log, under the instance's id."""
    status = HTTPStatus.SERVICE_UNAVAILABLE
    match error:
        case DatabaseUnavailable():
            detail = "Postgres cannot be used right now; the log says why."
        case SecretUnavailable():
            detail = "A secret cannot be read right now; the log says which."
        case SchemaVersionMismatch():
            detail = str(error) if with_details else "The database's schema is behind; the log says what to run."
        case _:
            detail = "Something went wrong; the log says what."
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail, cause=error)
    return problem(status, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}, cause=error)
