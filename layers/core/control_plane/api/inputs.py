"""What a client sends: its query, its body and its Idempotency-Key, checked against what the route declares."""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from control_plane.api.http import Refused, Request
from control_plane.api.routes import Call, Caller, Route
from control_plane.api.scopes import Scope
from control_plane.decisions.strict_json import NotStrictJson, parse_object
from control_plane.model.text import readable

MOST_BODY_BYTES: Final = 1 << 20
MOST_QUERY_CHARACTERS: Final = 2048
"""The longest value of a query."""
MOST_PROBLEMS: Final = 10
"""How many wrong fields a problem document names."""

KEY: Final = re.compile(r"[\x21-\x7e]{8,100}")
"""What an Idempotency-Key looks like."""


def read_call(route: Route, request: Request, parameters: Mapping[str, str], caller: Caller) -> Call:
    """Returns the call that a request makes. Raises Refused for one that the route does not take as it is."""
    for name, value in parameters.items():
        # A path's parameter is looked up, and Postgres takes neither NUL nor a lone surrogate.
        if not value.isprintable():
            raise Refused(HTTPStatus.BAD_REQUEST, f"{name} holds a character that cannot be printed: send it without.")
    query, body = _read_query(route, request), _read_body(route, request)
    if not route.changes:
        accept = ", ".join(request.headers.get("accept", []))
        return Call(parameters, query, body, caller, route.name, accept=accept, path=request.path)
    asked = [route.name, dict(parameters), _plain(query), _plain(body)]
    fingerprint = sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).digest()
    return Call(parameters, query, body, caller, route.name, _read_key(request), fingerprint)


def _read_query(route: Route, request: Request) -> BaseModel | None:
    if route.query is None:
        if request.query and route.scope is not Scope.PUBLIC:
            raise Refused(HTTPStatus.BAD_REQUEST, f"This route takes no query: leave out {_name(min(request.query))}.")
        return None
    values: dict[str, str] = {}
    for name, given in request.query.items():
        if len(given) != 1:
            raise Refused(HTTPStatus.BAD_REQUEST, f"The query gives {_name(name)} {len(given)} times: give it once.")
        if len(given[0]) > MOST_QUERY_CHARACTERS:
            detail = f"{_name(name)} has {len(given[0])} characters: {MOST_QUERY_CHARACTERS} is the most."
            raise Refused(HTTPStatus.BAD_REQUEST, detail)
        if not given[0].isprintable():
            detail = f"{_name(name)} holds a character that cannot be printed: send it without."
            raise Refused(HTTPStatus.BAD_REQUEST, detail)
        values[name] = given[0]
    try:
        # As JSON's strings are read: a query has text alone, so "50" is a number where one is wanted.
        return route.query.model_validate_strings(values)
    except ValidationError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, _explain(error, "the query")) from None


def _read_body(route: Route, request: Request) -> BaseModel | None:
    if len(request.body) > MOST_BODY_BYTES:
        detail = f"The body has {len(request.body)} bytes: {MOST_BODY_BYTES} is the most. Send it in several pieces."
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    if route.body is None:
        if request.body:
            raise Refused(HTTPStatus.BAD_REQUEST, "This route takes no body: send none.")
        return None
    if not _is_json(request):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "This route takes JSON: send the header Content-Type: application/json."
        )
    try:
        value = parse_object(request.body, most_bytes=MOST_BODY_BYTES, has_lines=route.body.has_lines)
    except NotStrictJson as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"The body: {readable(str(error))}.") from None
    try:
        # Strict, and of JSON: "1" is no number, and an instant is text.
        return route.body.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, _explain(error, "the body")) from None


def _read_key(request: Request) -> str:
    keys = request.headers.get("idempotency-key", [])
    if len(keys) != 1 or KEY.fullmatch(keys[0]) is None:
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "This route changes something: send one header Idempotency-Key of 8 to 100 printable ASCII characters "
            "without spaces, such as a new UUID, and the same one when you send the request again.",
        )
    return keys[0]


def _is_json(request: Request) -> bool:
    types = request.headers.get("content-type", [])
    return len(types) == 1 and types[0].partition(";")[0].strip().lower() == "application/json"


def _explain(error: ValidationError, where: str) -> str:
    """Returns what is wrong, field by field; the value itself is not repeated."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{_name('.'.join(map(str, one['loc'])))}: {one['msg'][:200]}" for one in found[:MOST_PROBLEMS]]
    more = len(found) - len(told)
    return f"In {where}: {'; '.join(told)}{f'; and {more} more' if more else ''}."


def _name(name: str) -> str:
    return readable(name)[:100] or "a field"


def _plain(model: BaseModel | None) -> Any:
    return None if model is None else model.model_dump(mode="json")
