"""Requests and answers in the shape of API Gateway's REST proxy; errors are problem documents (RFC 9457)."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import combinations
from typing import Any, Final

from control_plane.model.errors import DatabaseUnavailable, MalformedInvocation, SchemaVersionMismatch
from control_plane.model.text import readable
from control_plane.platform.aws import SecretUnavailable
from control_plane.platform.function import LambdaContext, database_failures, log_failure
from control_plane.platform.telemetry import Telemetry

RETRY_AFTER_SECONDS: Final = 5
"""How long a client is told to wait after a 503."""
MOST_BYTES: Final = 6_291_556
"""The largest answer that Lambda returns, counted as JSON with its escapes and headers."""

_PROBLEM: Final = "application/problem+json"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class NotAProxyRequest(MalformedInvocation):
    """Raised when the function is invoked with something other than a request."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the event is no request of a REST API, because {reason}: see events/ops_api_health.json")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, as routes and their guards read it."""

    method: str
    resource: str | None
    """The route as API Gateway names it, such as ``/events/{event_id}``."""
    path: str
    path_parameters: Mapping[str, str]
    headers: Mapping[str, Sequence[str]]
    """Header values by lower-case name; a header that was sent twice has two values."""
    caller: str | None = None
    """The client's address as API Gateway saw it. It is not read from a header, because a client can write any
    header."""

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Request":
        """Returns the request that an event describes. Raises NotAProxyRequest for an event of another shape."""
        method, path, resource = event.get("httpMethod"), event.get("path"), event.get("resource")
        if not isinstance(method, str) or not isinstance(path, str):
            raise NotAProxyRequest("it has no httpMethod and path")
        if not isinstance(resource, str | None):
            raise NotAProxyRequest("its resource is no text")
        parameters = _mapping(event, "pathParameters")
        if not all(isinstance(value, str) for value in parameters.values()):
            raise NotAProxyRequest("a value of its pathParameters is no text")
        headers: dict[str, list[str]] = {}
        multiple = _mapping(event, "multiValueHeaders")
        single = {name: [value] for name, value in _mapping(event, "headers").items()}
        for name, values in (multiple or single).items():
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise NotAProxyRequest(f"its header {name[:100]!r} is no text")
            headers.setdefault(name.lower(), []).extend(values)
        identity = _mapping(_mapping(event, "requestContext"), "identity")
        caller = identity.get("sourceIp")
        return cls(
            method=method.upper(),
            resource=resource,
            path=path,
            path_parameters=parameters,
            headers=headers,
            caller=readable(caller)[:100] if isinstance(caller, str) else None,
        )


def _mapping(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the object under ``name`` in an event; an empty one where that is null or absent."""
    value = event.get(name)
    if not isinstance(value, dict | None):
        raise NotAProxyRequest(f"its {name} is no object")
    return value or {}


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer, whose body is JSON."""

    status: HTTPStatus
    body: Mapping[str, Any] | None
    """The body as a JSON object; None for an answer without a body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cause: Exception | None = None
    """The error that led to this answer, for the log."""

    def to_proxy(self, *, instance: str, with_body: bool = True) -> dict[str, Any]:
        """Returns the answer as API Gateway expects it; a problem document names ``instance`` as its own id."""
        body = self.body
        if body is not None and self.content_type == _PROBLEM:
            body = {**body, "instance": instance}
        return {
            "statusCode": int(self.status),
            "headers": {"Content-Type": self.content_type, **_HEADERS, **self.headers},
            "body": json.dumps(body, ensure_ascii=False, separators=(",", ":"))
            if with_body and body is not None
            else "",
            "isBase64Encoded": False,
        }


def problem(
    status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None, cause: Exception | None = None
) -> Response:
    """Returns a problem document without a type of its own: its status names the problem, ``detail`` explains it."""
    body = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
    return Response(status, body, headers or {}, _PROBLEM, cause)


class Refused(Exception):
    """Raised by a route, or by its guard, to answer with a problem document."""

    def __init__(self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.response = problem(status, detail, headers=headers)
        super().__init__(detail)


type Guard = Callable[[Request], None]
"""Checks a request before its route is called. Raises Refused for a client that may not call the route."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path of literal parts and ``{parameters}``, with the function that answers it.

    A GET route also answers HEAD.
    """

    method: str
    path: str
    answer: Callable[[Mapping[str, str]], Response]
    """The function that answers, given the path's parameters. It may raise Refused."""
    is_open: bool = False
    """Whether anybody may call this route; every other route asks the API's guard first."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that this route answers."""
        return (self.method, "HEAD") if self.method == "GET" else (self.method,)

    def parameters(self, request: Request) -> Mapping[str, str] | None:
        """Returns the path's parameters if the request is for this route, otherwise None.

        API Gateway names the route that it found, as ``resource``; an event without ``resource`` is matched by its
        path. A path may start with a prefix, behind a custom domain with a base path.
        """
        if request.resource is not None:
            if request.resource != self.path:
                return None
            if missing := set(re.findall(r"\{(\w+)\}", self.path)) - request.path_parameters.keys():
                raise NotAProxyRequest(f"its pathParameters lack {min(missing)}")
            return request.path_parameters
        found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path), request.path)
        return None if found is None else found.groupdict()


class Api:
    """An HTTP API: a set of routes, and an answer to every request.

    ``guard`` is called before every route that is not marked as open. Raises ValueError for two routes that could
    answer the same request.
    """

    def __init__(self, routes: Sequence[Route], *, guard: Guard, telemetry: Telemetry) -> None:
        for one, other in combinations(routes, 2):
            if _overlap(one, other):
                raise ValueError(f"{one.method} {one.path} and {other.method} {other.path} answer the same requests")
        self._routes = routes
        self._guard = guard
        self._telemetry = telemetry

    def answer(self, event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
        """Returns the answer to an event of API Gateway's REST proxy.

        Raises only NotAProxyRequest; every other error is logged and becomes an answer.
        """
        request = Request.from_event(event)
        instance = f"urn:uuid:{context.aws_request_id}"
        route, response = self._respond(request)
        with_body = request.method != "HEAD"
        answer = response.to_proxy(instance=instance, with_body=with_body)
        if len(json.dumps(answer)) > MOST_BYTES:
            response = problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "The answer is larger than Lambda can return: read the database itself.",
            )
            answer = response.to_proxy(instance=instance, with_body=with_body)
        if response.cause is not None:
            log_failure(self._telemetry, response.cause)
        if response.status == HTTPStatus.UNAUTHORIZED:
            self._telemetry.count("UnauthorizedRequests", 1)
        self._telemetry.logger.info(
            "answered",
            method=readable(request.method)[:20],
            route=route.path if route else None,
            status=int(response.status),
            caller=request.caller,
        )
        return answer

    def _respond(self, request: Request) -> tuple[Route | None, Response]:
        """Returns the route that the request is for (None if there is none) and the answer."""
        route, let_in = None, False
        try:
            there = self._at(request)
            if request.method == "OPTIONS":
                return None, Response(HTTPStatus.NO_CONTENT, None, {"Allow": _allowed(there)})
            found = next(((route, found) for route, found in there if request.method in route.methods), None)
            if found is None:
                return None, _not_allowed(_allowed(there))
            route, parameters = found
            if not route.is_open:
                self._guard(request)
                let_in = True
            with database_failures():
                return route, route.answer(parameters)
        except Refused as refusal:
            return route, refusal.response
        except NotAProxyRequest:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: whoever asked gets an answer, the log the reason
            return route, failure(error, with_details=let_in)

    def _at(self, request: Request) -> Sequence[tuple[Route, Mapping[str, str]]]:
        """Returns the routes that match the request's path, for any method. Raises Refused if there are none."""
        there = [(route, found) for route in self._routes if (found := route.parameters(request)) is not None]
        if not there:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such route.")
        return there


def _not_allowed(allowed: str) -> Response:
    detail = f"This route answers to {allowed} alone."
    return problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed})


def _allowed(there: Sequence[tuple[Route, Mapping[str, str]]]) -> str:
    return ", ".join([*dict.fromkeys(method for route, _ in there for method in route.methods), "OPTIONS"])


def _overlap(one: Route, other: Route) -> bool:
    """Tells whether a request could be for either route."""
    parts = list(zip(one.path.split("/"), other.path.split("/"), strict=False))
    return (
        bool(set(one.methods) & set(other.methods))
        and one.path.count("/") == other.path.count("/")
        and all(a == b or "{" in a + b for a, b in parts)
    )


def failure(error: Exception, *, with_details: bool) -> Response:
    """Returns the answer to an unexpected error.

    The client sees only what is safe; the log has all of it, with the instance's id.
    """
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
