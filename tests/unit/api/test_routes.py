"""Routes that cannot be right are not made, and what a route takes is checked."""

import json
import re
from http import HTTPStatus
from typing import Any

import pytest
from pydantic import Field

from control_plane.api import pages
from control_plane.api.http import Refused, Request, Response
from control_plane.api.inputs import read_call
from control_plane.api.pages import Page, cursor, page, position
from control_plane.api.routes import Call, Caller, Route, Strict
from control_plane.api.scopes import TOKEN_SCOPES, Scope, with_implied


class Body(Strict):
    """A body of these tests."""

    count: int = Field(ge=1)


def never(_call: Call) -> Response:
    raise AssertionError


def test_a_route_without_a_scope_cannot_be_made() -> None:
    with pytest.raises(TypeError):
        Route("GET", "/a", answer=never, summary="Nothing.")  # type: ignore[call-arg]
    for scope in (None, "read", ""):
        with pytest.raises(TypeError, match="has no scope"):
            Route("GET", "/a", scope, never, "Nothing.")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "scope", "body"),
    [
        ("PATCH", "/a", Scope.READ, None),
        ("get", "/a", Scope.READ, None),
        ("GET", "a", Scope.READ, None),
        ("GET", "/a/", Scope.READ, None),
        ("GET", "/{proxy+}", Scope.READ, None),
        ("POST", "/a", Scope.PUBLIC, None),
        ("GET", "/a", Scope.READ, Body),
    ],
)
def test_a_route_that_cannot_be_right_is_refused(method: str, path: str, scope: Scope, body: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(path)):
        Route(method, path, scope, never, "Nothing.", body=body)


def test_admin_implies_everything_but_approve() -> None:
    assert with_implied([Scope.ADMIN]) == TOKEN_SCOPES - {Scope.APPROVE}
    for scope in TOKEN_SCOPES - {Scope.APPROVE}:
        assert Scope.APPROVE not in with_implied([scope])


def sent(body: bytes, **headers: str) -> Request:
    given = {"content-type": "application/json", "idempotency-key": "a-key-of-mine"} | headers
    return Request("POST", "/a", "/a", {}, {name: [value] for name, value in given.items()}, body=body)


ROUTE = Route("POST", "/a", Scope.OPERATE, never, "Changes.", body=Body)


def test_a_call_has_what_was_sent() -> None:
    call = read_call(ROUTE, sent(b'{"count": 2}'), {}, Caller("kim"))
    assert (call.body, call.key, call.route) == (Body(count=2), "a-key-of-mine", "POST /a")


def test_the_same_request_has_the_same_fingerprint() -> None:
    one, same, other = (
        read_call(ROUTE, sent(body), {}, Caller()).fingerprint
        for body in (b'{"count": 2}', b'{ "count" :2 }', b'{"count": 3}')
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"count": 0}', 422),
        (b'{"count": "2"}', 422),
        (b'{"count": 2.5}', 422),
        (b'{"count": true}', 422),
        (b'{"count": 2, "also": 1}', 422),
        (b'{"count": 2, "count": 3}', 400),
        (b'{"count": 1e999}', 400),
        (b"\xff", 400),
        (b" " * (1 << 20) + b"{}", 413),
    ],
)
def test_a_wrong_body_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(Refused) as refused:
        read_call(ROUTE, sent(body), {}, Caller())
    assert refused.value.response.status == HTTPStatus(status)


def test_what_was_sent_is_not_repeated() -> None:
    with pytest.raises(Refused) as refused:
        read_call(ROUTE, sent(json.dumps({"count": "a secret"}).encode()), {}, Caller())
    assert "secret" not in str(refused.value)


def after(text: str) -> Page:
    return Page.model_validate({"after": text})


def first_page() -> Page:
    return Page.model_validate({})


def test_a_page_ends_before_it_grows_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_BYTES", 30)
    items = [{"id": number, "text": "x" * 10} for number in range(3)]
    first = page(items, lambda item: [item["id"]], query=first_page()).body
    assert first is not None
    assert [item["id"] for item in first["items"]] == [0]
    assert position(after(first["next"]), int) == [0]


def test_a_cursor_is_given_back_as_it_was() -> None:
    assert position(after(cursor(["a", 7])), str, int) == ["a", 7]
    assert position(first_page(), str, int) == [None, None]
    for types in ((int, int), (str,), (str, int, int)):
        with pytest.raises(Refused, match="no cursor of this list"):
            position(after(cursor(["a", 7])), *types)
