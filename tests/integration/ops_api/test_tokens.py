"""Tokens: who may make which, what each may call, and when one is refused."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration.ops_api.client import TOKEN, Client

from control_plane.api.callers import MADE
from control_plane.api.scopes import Scope
from control_plane.model.ids import canonical_instant
from control_plane.platform.database import connect

WHY = "because of a test"


def make(commands: Client, name: str, *scopes: str, by: str = TOKEN, **more: Any) -> str:
    """Makes a token and returns it."""
    body = {"name": name, "scopes": list(scopes), "reason": WHY} | more
    answer = commands.ask("POST", "/tokens", body, token=by)
    assert answer.status == 201, answer.body
    assert answer.body["name"] == name
    token: str = answer.body["token"]
    assert MADE.fullmatch(token)
    return token


def revoke(commands: Client, name: str) -> None:
    assert commands.ask("DELETE", f"/tokens/{name}", query={"reason": WHY}).status == 200


def test_a_token_is_shown_once_and_stored_nowhere(commands: Client, api: Client, owner: Connection[Any]) -> None:
    token = make(commands, "kim", "read")
    assert api.ask("GET", "/events", token=token).status == 200
    stored = owner.execute("SELECT to_jsonb(t)::text FROM api_tokens AS t").fetchall()
    stored += owner.execute("SELECT to_jsonb(t)::text FROM api_audit AS t").fetchall()
    stored += owner.execute("SELECT to_jsonb(t)::text FROM idempotency_keys AS t").fetchall()
    assert len(stored) == 3
    assert token not in json.dumps(stored)
    assert token not in api.function.output + commands.function.output
    [listed] = api.ask("GET", "/tokens").body["items"]
    assert listed.keys() == {
        "name", "scopes", "created_at", "created_by", "expires_at", "revoked_at", "revoked_by", "last_used_at",
    }  # fmt: skip
    assert (listed["name"], listed["scopes"], listed["created_by"]) == ("kim", ["read"], "root")


def test_whoami_says_whose_token_this_is(commands: Client, api: Client) -> None:
    end = canonical_instant(datetime.now(UTC) + timedelta(hours=12))
    token = make(commands, "kim", "operate", expires_at=end)
    known = api.ask("GET", "/whoami", token=token)
    assert known.body == {"name": "kim", "scopes": ["operate", "read"], "expires_at": end}
    root = api.ask("GET", "/whoami").body
    assert (root["name"], root["expires_at"]) == ("root", None)
    assert root["scopes"] == ["admin", "approve", "metrics", "operate", "read"]
    assert api.ask("GET", "/whoami", token=make(commands, "prometheus", "metrics")).status == 403


@pytest.mark.parametrize(
    ("given", "has"),
    [
        (["read"], {"read"}),
        (["operate"], {"read", "operate"}),
        (["approve"], {"read", "approve"}),
        (["metrics"], {"metrics"}),
        (["admin"], {"read", "operate", "metrics", "admin"}),
    ],
)
def test_a_token_has_its_scopes_and_those_they_imply(
    commands: Client, api: Client, given: list[str], has: set[str]
) -> None:
    token = make(commands, "kim", *given)
    for client in (api, commands):
        for route in client.function.module.api.routes:
            answer = client.ask(route.method, re.sub(r"\{\w+\}", "x", route.path), token=token)
            let_in = route.scope is Scope.PUBLIC or str(route.scope) in has
            assert (answer.status != 403) == let_in, route.name
            if not let_in:
                assert f"asks for the scope {route.scope}" in answer.detail(403)
                assert f'scope="{route.scope}"' in answer.headers["WWW-Authenticate"]


def test_every_route_but_the_public_ones_asks_for_a_token(commands: Client, api: Client) -> None:
    opened = set()
    for client in (api, commands):
        for route in client.function.module.api.routes:
            answer = client.ask(route.method, re.sub(r"\{\w+\}", "x", route.path), token=None)
            if answer.status != 401:
                opened.add(route.name)
    assert opened == {"GET /health", "GET /openapi.json", "GET /ui", "GET /ui/{asset}"}


def test_no_token_makes_another_with_a_scope_that_it_lacks(commands: Client, owner: Connection[Any]) -> None:
    admin = make(commands, "admin", "admin")
    make(commands, "kim", "operate", by=admin)
    body = {"name": "lee", "scopes": ["approve"], "reason": WHY}
    assert "with a scope that it lacks: approve" in commands.ask("POST", "/tokens", body, token=admin).detail(403)
    operator = make(commands, "operator", "operate")
    assert commands.ask("POST", "/tokens", body | {"scopes": ["read"]}, token=operator).status == 403
    assert owner.execute("SELECT count(*) FROM api_tokens").fetchone() == (3,)


def test_the_database_asks_again_whether_the_maker_may(commands: Client, database: TestDatabase) -> None:
    make(commands, "admin", "admin")
    make(commands, "kim", "read")
    digest = bytes(32)
    with connect(database.url("acp_command"), application_name="test") as connection:
        for maker, scopes, said in (
            ("admin", ["approve"], "lacking"),
            ("kim", ["read"], "lacking"),
            ("nobody", ["read"], "lacking"),
            ("admin", ["read"], "made"),
        ):
            row = connection.execute(
                "SELECT make_api_token(%s, %s, %s, %s, NULL)", [maker, "new", digest, scopes]
            ).fetchone()
            assert row == (said,), maker


def test_no_token_makes_another_that_is_valid_for_longer(commands: Client, owner: Connection[Any]) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    admin = make(commands, "admin", "admin", expires_at=end.isoformat())
    body = {"name": "kim", "scopes": ["read"], "reason": WHY}
    for longer in (None, (end + timedelta(seconds=1)).isoformat()):
        refused = commands.ask("POST", "/tokens", body | {"expires_at": longer}, token=admin)
        assert f"expires_at must be {canonical_instant(end)} or earlier" in refused.detail(403)
    make(commands, "kim", "read", by=admin, expires_at=end.isoformat())
    assert owner.execute("SELECT expires_at FROM api_tokens WHERE name = 'kim'").fetchone() == (end,)


def test_a_revoked_token_is_refused_at_once(commands: Client, api: Client) -> None:
    token = make(commands, "kim", "operate")
    assert api.ask("GET", "/events", token=token).status == 200
    revoke(commands, "kim")
    for client, method, path in ((api, "GET", "/events"), (commands, "POST", "/subscriptions/signal_lab/hold")):
        answer = client.ask(method, path, {"reason": WHY} if method == "POST" else None, token=token)
        assert answer.detail(401) == "The token kim is revoked."
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    [listed] = api.ask("GET", "/tokens").body["items"]
    assert listed["revoked_by"] == "root"


def test_an_expired_token_is_refused(commands: Client, api: Client, owner: Connection[Any]) -> None:
    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    token = make(commands, "kim", "read", expires_at=ends)
    assert api.ask("GET", "/events", token=token).status == 200
    owner.execute("UPDATE api_tokens SET expires_at = now() - interval '1 second'")
    assert api.ask("GET", "/events", token=token).detail(401) == "The token kim is expired."


def test_an_unknown_token_of_the_right_shape_is_refused(api: Client) -> None:
    assert api.ask("GET", "/events", token="acp_" + "x" * 43).detail(401) == "This is not the token."


def test_a_tokens_last_use_is_noted_once_a_minute(commands: Client, api: Client, owner: Connection[Any]) -> None:
    token = make(commands, "kim", "read")

    def last_use() -> Any:
        return owner.execute("SELECT last_used_at FROM api_tokens").fetchone()

    assert last_use() == (None,)
    api.ask("GET", "/events", token=token)
    first = last_use()
    assert first != (None,)
    api.ask("GET", "/events", token=token)
    assert last_use() == first
    owner.execute("UPDATE api_tokens SET last_used_at = last_used_at - interval '2 minutes'")
    api.ask("GET", "/events", token=token)
    assert last_use()[0] >= first[0]


@pytest.mark.parametrize("name", ["root", "kim"])
def test_a_name_is_given_once(commands: Client, name: str) -> None:
    make(commands, "kim", "read")
    revoke(commands, "kim")
    body = {"name": name, "scopes": ["read"], "reason": WHY}
    assert "another name" in commands.ask("POST", "/tokens", body).detail(409)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": "Kim"}, "name"),
        ({"name": "kim'; DROP TABLE api_tokens; --"}, "name"),
        ({"name": "<script>"}, "name"),
        ({"name": 1}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"scopes": "read"}, "scopes"),
        ({"reason": ""}, "reason"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"also": 1}, "also"),
    ],
)
def test_a_wrong_field_is_named(commands: Client, owner: Connection[Any], wrong: dict[str, Any], field: str) -> None:
    body = {"name": "kim", "scopes": ["read"], "reason": WHY} | wrong
    assert f"In the body: {field}: " in commands.ask("POST", "/tokens", body).detail(422)
    assert owner.execute("SELECT count(*) FROM api_tokens").fetchone() == (0,)


def test_the_secrets_token_is_not_revoked_here(commands: Client) -> None:
    answer = commands.ask("DELETE", "/tokens/root", query={"reason": WHY})
    assert "put another one into the secret" in answer.detail(409)
    assert commands.ask("DELETE", "/tokens/nobody", query={"reason": WHY}).detail(404) == "There is no token nobody."


def test_a_persons_login_does_not_speak_for_tokens(database: TestDatabase, postgres: Any) -> None:
    # acp_test is a member of acp_command, as people's logins are.
    with connect(database.app_url, application_name="test") as member:
        for call in (
            "make_api_token('root', 'mine', decode(repeat('00', 32), 'hex'), ARRAY['approve'], NULL)",
            "revoke_api_token('root', 'kim')",
            "begin_api_change('root', 'key', decode(repeat('00', 32), 'hex'))",
            "end_api_change('root', 'key', '', '', 'x', '', NULL, NULL, 200, NULL)",
        ):
            with pytest.raises(errors.InsufficientPrivilege, match="only the login acp_command itself"):
                member.execute(f"SELECT {call}".encode())
