"""The OpenAPI document, generated from the routes."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from control_plane.api.http import Response
from control_plane.api.pages import Page
from control_plane.api.reads import read_routes
from control_plane.api.routes import JSON, Route, Strict
from control_plane.api.scopes import Scope
from control_plane.decisions.switches import SCOPE

_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_REFUSALS: Final = {
    400: "The query, the path or the body is not as it must be.",
    401: "No token, or one that is unknown, expired or revoked.",
    403: "The token does not have the route's scope.",
    404: "There is no such thing.",
    409: "What it is about does not allow it now.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A field of the body is wrong, or the Idempotency-Key was used for another request.",
    429: "Too many requests.",
    500: "Something went wrong; the log says what.",
    503: "The database or a secret cannot be used right now.",
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "A new UUID for each change; the same one when the request is sent again. Kept for 24 hours.",
    "schema": {"type": "string", "minLength": 8, "maxLength": 100, "pattern": "^[!-~]{8,100}$"},
    "example": "6a4d5f0e-0f5c-4f0c-9d1b-3f1c2d7e8a01",
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Returns the document that describes the routes."""
    schemas: dict[str, Any] = {"Problem": _problem()}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AI Control Plane",
            "version": "1",
            "description": "What the control plane is doing, and what people do about it. Errors are problem documents "
            "(RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def document() -> Response:
    """Answers /openapi.json with the routes of both functions."""
    # Slow to import, and needed here alone: OpsApiFunction runs none of these routes.
    from control_plane.api.commands import command_routes  # noqa: PLC0415

    def nowhere() -> Any:
        raise AssertionError("a route is described, and not called")

    routes = [*read_routes(nowhere, nowhere, nowhere, nowhere), *command_routes(nowhere, {}, nowhere)]
    return Response(HTTPStatus.OK, describe(routes))


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "x-scope": str(route.scope),
        "parameters": [*_path_parameters(route), *_query_parameters(route), *([_KEY] if route.changes else [])],
        "responses": _responses(route),
    }
    if route.scope is not Scope.PUBLIC:
        operation["security"] = [{"token": []}]
        operation["description"] = f"Asks for the scope {route.scope}."
    if route.body is not None:
        schema = route.body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[route.body.__name__] = schema
        operation["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{route.body.__name__}"},
                    "examples": _named([example.body for example in route.examples]),
                }
            },
        }
    return operation


def _operation_id(route: Route) -> str:
    parts = [part.strip("{}").replace(".", "_").replace("-", "_") for part in route.path.split("/") if part]
    return "_".join([route.method.lower(), *parts])


def _path_parameters(route: Route) -> Sequence[Mapping[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _text_of_path(name),
            "examples": _named([example.parameters.get(name) for example in route.examples]),
        }
        for name in route.names
    ]


_PATTERNS: Final = {
    "letter_id": "[0-9]{1,18}",
    "sha256": "[0-9a-f]{64}",
    "file": "[0-9a-f]{64}",
    "number": "[1-9][0-9]{0,2}",
    "scope": SCOPE.pattern,
    "asset": "[a-z]+[.][0-9a-f]{12}[.](js|mjs|css)",
}
"""What the path's parameters look like that are neither ids nor names."""


def _text_of_path(name: str) -> Mapping[str, Any]:
    if name in _PATTERNS:
        return {"type": "string", "pattern": f"^({_PATTERNS[name]})$"}
    return {"type": "string", "format": "uuid"} if name.endswith("_id") else {"type": "string"}


def _query_parameters(route: Route) -> Sequence[Mapping[str, Any]]:
    if route.query is None:
        return []
    schema = route.query.model_json_schema()
    found = []
    for name, field in schema["properties"].items():
        parameter = {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", []),
            "schema": _of_text(field),
        }
        if description := field.get("description"):
            parameter["description"] = description
        if examples := _named([example.query.get(name) for example in route.examples]):
            parameter["examples"] = examples
        found.append(parameter)
    return found


def _of_text(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a field's schema as a query has it: what may be null is left out instead."""
    plain = {name: value for name, value in field.items() if name not in {"anyOf", "default", "title", "description"}}
    for one in field.get("anyOf", ()):
        if one.get("type") != "null":
            plain |= one
    if field.get("default") is not None:
        plain["default"] = field["default"]
    return plain


def _responses(route: Route) -> Mapping[str, Any]:
    refusals = {400, 429, 500, 503}
    if route.scope is not Scope.PUBLIC:
        refusals |= {401, 403}
    if route.names:
        refusals.add(404)
    if route.changes:
        refusals |= {409, 422}
    if route.body is not None:
        refusals |= {413, 415}
    schema: dict[str, Any] = {"type": "object"}
    if _is_page(route.query):
        schema = {
            "type": "object",
            "required": ["items", "next"],
            "properties": {
                "items": {"type": "array", "items": {"type": "object"}},
                "next": {"type": ["string", "null"], "description": "Send it as after; null on the last page."},
            },
        }
    content = {
        content_type: {"schema": schema if content_type == JSON else {"type": "string"}}
        for content_type in route.content_types
    }
    done = {"description": route.summary, "content": content}
    responses = {str(int(route.status)): done}
    responses |= {str(status): {"description": _REFUSALS[status], "content": _PROBLEM} for status in sorted(refusals)}
    if route.path == "/health":
        # A 503 of /health is its usual answer: it names what is failing.
        responses["503"] = {"description": "Something is failing.", "content": {"application/json": {"schema": schema}}}
    return responses


def _is_page(query: type[Strict] | None) -> bool:
    return query is not None and issubclass(query, Page)


def _named(values: Sequence[Any]) -> dict[str, Any]:
    return {f"example {number}": {"value": value} for number, value in enumerate(values, 1) if value is not None}


def _problem() -> Mapping[str, Any]:
    return {
        "type": "object",
        "description": "An error (RFC 9457): detail names the cause and the remedy.",
        "required": ["type", "title", "status", "detail", "instance"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string", "description": "Names the request in the log."},
        },
    }
