"""Requests as API Gateway's REST proxy gives them, answers as it takes them; errors are problem documents, RFC 9457."""

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
        super().__init__(f"the event is no request of a REST API, for {reason}: events/ops_api_health.json shows one")


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
    caller: str | None = None
    """The address that API Gateway was asked from. No header says it: whoever asks could write that."""

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Request":
        """Raises NotAProxyRequest."""
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
    """Returns an object of the event's, empty where it is null or absent."""
    value = event.get(name)
    if not isinstance(value, dict | None):
        raise NotAProxyRequest(f"its {name} is no object")
    return value or {}


@dataclass(frozen=True, slots=True)
class Response:
    """An answer in JSON."""

    status: HTTPStatus
    body: Mapping[str, Any] | None
    """None: an answer without one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cause: Exception | None = None
    """The error that led to this answer, for the log."""

    def to_proxy(self, *, instance: str, with_body: bool = True) -> dict[str, Any]:
        """As API Gateway takes it. A problem document names this ``instance`` of the problem."""
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
    """A problem document of no type of its own: its status says what it is about, ``detail`` what it means here."""
    body = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
    return Response(status, body, headers or {}, _PROBLEM, cause)


class Refused(Exception):
    """Raised by a route, or by its guard, to answer with a problem document."""

    def __init__(self, status: HTTPStatus, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.response = problem(status, detail, headers=headers)
        super().__init__(detail)


type Guard = Callable[[Request], None]
"""Raises Refused for whom it does not let in."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path of literal parts and ``{parameters}``, and what answers there. A GET route answers HEAD, too."""

    method: str
    path: str
    answer: Callable[[Mapping[str, str]], Response]
    """Given the path's parameters. Raises Refused."""
    is_open: bool = False
    """Whether it answers anybody; otherwise the API's guard comes first."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it answers."""
        return (self.method, "HEAD") if self.method == "GET" else (self.method,)

    def parameters(self, request: Request) -> Mapping[str, str] | None:
        """Returns the path's parameters of a request for this route; None for another.

        API Gateway names the route that it found, as ``resource``; an event without it is matched by its path. A
        path may have a prefix, behind a domain of one's own.
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
    """Its routes, and an answer to whatever comes.

    ``guard`` is asked before every route that does not say that it is open. Raises ValueError for two routes that could
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
        """To an event of API Gateway's REST proxy. Raises NotAProxyRequest alone: all else is answered, and logged."""
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
        """Returns the route, where there is one, and the answer."""
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
        """Returns the routes at the request's place, whatever their method. Raises Refused where there is none."""
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
