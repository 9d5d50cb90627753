"""The API: a set of routes, and an answer to every request."""

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from itertools import combinations
from types import MappingProxyType
from typing import Any, Final

from control_plane.api.http import MOST_BYTES, NotAProxyRequest, Refused, Request, Response, failure, problem
from control_plane.api.inputs import read_call
from control_plane.api.routes import Caller, Route, overlap
from control_plane.api.scopes import Scope
from control_plane.api.tokens import CHALLENGE
from control_plane.model.text import readable
from control_plane.platform.function import LambdaContext, database_failures, log_failure
from control_plane.platform.telemetry import Telemetry

_LOGGED: Final = ("event_id", "decision_id")

type Guard = Callable[[Request], Caller]
"""Tells who sent a request. Raises Refused where no token, or none that is valid, says so."""


class Api:
    """An HTTP API: a set of routes, and an answer to every request.

    ``guard`` is called before every route that is not public, and the caller must have the route's scope. ``headers``
    are sent with every answer. Raises ValueError for two routes that could answer the same request.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        guard: Guard,
        telemetry: Telemetry,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        for one, other in combinations(routes, 2):
            if overlap(one, other):
                raise ValueError(f"{one.method} {one.path} and {other.method} {other.path} answer the same requests")
        self.routes = routes
        self._guard = guard
        self._telemetry = telemetry
        self._headers = headers

    def answer(self, event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:
        """Returns the answer to an event of API Gateway's REST proxy.

        Raises only NotAProxyRequest; every other error is logged and becomes an answer.
        """
        request = Request.from_event(event)
        instance = f"urn:uuid:{context.aws_request_id}"
        answering = _Answering(self.routes, self._guard)
        response = answering.respond(request)
        with_body = request.method != "HEAD"
        answer = response.to_proxy(instance=instance, with_body=with_body)
        if len(json.dumps(answer)) > MOST_BYTES:
            response = problem(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "The answer is larger than Lambda can return: read the database itself.",
            )
            answer = response.to_proxy(instance=instance, with_body=with_body)
        answer["headers"].update(self._headers)
        if response.cause is not None:
            log_failure(self._telemetry, response.cause)
        if response.status == HTTPStatus.UNAUTHORIZED:
            self._telemetry.count("UnauthorizedRequests", 1)
        self._telemetry.logger.info(
            "answered",
            method=readable(request.method)[:20],
            route=answering.route.path if answering.route else None,
            status=int(response.status),
            caller=request.caller,
            token=answering.caller.token or None,
            **answering.ids,
        )
        return answer


class _Answering:
    """One request on its way to an answer: which route it is for, and who sent it."""

    def __init__(self, routes: Sequence[Route], guard: Guard) -> None:
        self._routes = routes
        self._guard = guard
        self.route: Route | None = None
        self.caller = Caller()
        self.ids: Mapping[str, Any] = {}
        """What the request is about, for the log: an event or a decision, as the path names it."""

    def respond(self, request: Request) -> Response:
        """Returns the answer. Raises only NotAProxyRequest."""
        try:
            there = self._at(request)
            if request.method == "OPTIONS":
                return Response(HTTPStatus.NO_CONTENT, None, {"Allow": _allowed(there)})
            found = next(((route, found) for route, found in there if request.method in route.methods), None)
            if found is None:
                return _not_allowed(_allowed(there))
            self.route, parameters = found
            self.ids = {name: readable(parameters[name])[:36] for name in _LOGGED if name in parameters}
            with database_failures():
                if self.route.scope is not Scope.PUBLIC:
                    self.caller = self._let_in(self.route, request)
                return self.route.answer(read_call(self.route, request, parameters, self.caller))
        except Refused as refusal:
            return refusal.response
        except NotAProxyRequest:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: whoever asked gets an answer, the log the reason
            return failure(error, with_details=bool(self.caller.scopes))

    def _let_in(self, route: Route, request: Request) -> Caller:
        caller = self._guard(request)
        if route.scope not in caller.scopes:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"{route.name} asks for the scope {route.scope}, which the token {caller.token} does not have.",
                headers={"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{route.scope}"'},
            )
        return caller

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
