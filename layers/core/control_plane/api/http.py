"""Requests and answers in the shape of API Gateway's REST proxy; errors are problem documents (RFC 9457)."""

import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from control_plane.model.errors import DatabaseUnavailable, MalformedInvocation, SchemaVersionMismatch
from control_plane.model.text import readable
from control_plane.platform.aws import RunNotStarted, SecretUnavailable
from control_plane.platform.invocation import FunctionBusy, InvocationFailed

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
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The values of the query string by name; a name that was given twice has two values."""
    body: bytes = b""

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
            query=_query(event),
            body=_body(event),
        )


def _query(event: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    multiple = _mapping(event, "multiValueQueryStringParameters")
    single = {name: [value] for name, value in _mapping(event, "queryStringParameters").items()}
    query = multiple or single
    for values in query.values():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise NotAProxyRequest("a value of its query string is no text")
    return query


def _body(event: Mapping[str, Any]) -> bytes:
    body = event.get("body")
    if not isinstance(body, str | None):
        raise NotAProxyRequest("its body is no text")
    if not body:
        return b""
    if not event.get("isBase64Encoded"):
        return body.encode(errors="surrogatepass")
    try:
        return b64decode(body, validate=True)
    except ValueError:
        raise NotAProxyRequest("its body is not Base64, as isBase64Encoded says") from None


def _mapping(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the object under ``name`` in an event; an empty one where that is null or absent."""
    value = event.get(name)
    if not isinstance(value, dict | None):
        raise NotAProxyRequest(f"its {name} is no object")
    return value or {}


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer, whose body is JSON, or text of another content type."""

    status: HTTPStatus
    body: Mapping[str, Any] | None
    """The body as a JSON object; None for an answer without a body. Instants, ids and bytes become text."""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cause: Exception | None = None
    """The error that led to this answer, for the log."""
    text: str | None = None
    """The body as text of ``content_type``, in the place of ``body``."""

    def __post_init__(self) -> None:
        """Raises ValueError for an answer with two bodies."""
        if self.body is not None and self.text is not None:
            raise ValueError("an answer has one body, JSON or text")

    def to_proxy(self, *, instance: str, with_body: bool = True) -> dict[str, Any]:
        """Returns the answer as API Gateway expects it; a problem document names ``instance`` as its own id."""
        return {
            "statusCode": int(self.status),
            "headers": {"Content-Type": self.content_type, **_HEADERS, **self.headers},
            "body": self._text(instance) if with_body else "",
            "isBase64Encoded": False,
        }

    def _text(self, instance: str) -> str:
        if self.body is None:
            return self.text or ""
        body = {**self.body, "instance": instance} if self.content_type == _PROBLEM else self.body
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=as_json)


def as_json(value: object) -> str:
    """Returns what JSON has no type for as text: an instant in RFC 3339 and UTC, an id, bytes in hexadecimal."""
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case UUID():
            return str(value)
        case bytes():
            return value.hex()
        case _:
            raise TypeError(f"{type(value).__name__} is no JSON value")


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
        case RunNotStarted():
            detail = "The function cannot be started right now; the log says why."
        case FunctionBusy():
            detail = "As much of this is at work already as may be: ask again in a moment."
        case InvocationFailed():
            detail = "The function that answers this failed, or was too slow; its log says why."
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail, cause=error)
        case SchemaVersionMismatch():
            detail = str(error) if with_details else "The database's schema is behind; the log says what to run."
        case _:
            detail = "Something went wrong; the log says what."
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail, cause=error)
    return problem(status, detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}, cause=error)
