"""Approvals and switches by the API: on record is the token's name, and the database asks again whether it may."""

from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import errors
from tests.integration.gatekeeper.world import Proposed, World
from tests.integration.ops_api.client import RUNS, TOKEN, VARIABLES, Client
from tests.judgements import market_wide_case

from control_plane.decisions.approvals import answer, find_requests
from control_plane.decisions.switches import set_switch
from control_plane.platform.database import connect

WHY = "because of a test"


@pytest.fixture
def commands(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    given = {"API_TOKEN": TOKEN, "DATABASE_URL": world.database.url("acp_command"), **RUNS}
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    client = Client("command_api")
    yield client
    client.function.close()


@pytest.fixture
def asked(world: World) -> Proposed:
    """A decision that waits for a person."""
    proposed = world.propose(market_wide_case())
    assert proposed.judge().verdict == "needs_approval"
    proposed.move("awaiting_approval")
    return proposed


def make(commands: Client, name: str, scope: str) -> str:
    body = {"name": name, "scopes": [scope], "reason": WHY}
    token: str = commands.ask("POST", "/tokens", body).body["token"]
    return token


def about(asked: Proposed, **changes: Any) -> tuple[str, dict[str, Any]]:
    approval_id, action_sha256, _ = asked.approval()
    body = {"gives": True, "action_sha256": action_sha256.hex(), "reason": WHY} | changes
    return f"/approvals/{approval_id}", body


def test_an_approval_names_the_token_and_is_released(world: World, asked: Proposed, commands: Client) -> None:
    kim = make(commands, "kim", "approve")
    path, body = about(asked)
    answered = commands.ask("POST", path, body, token=kim)
    assert (answered.status, answered.body["outcome"], answered.body["by"]) == (200, "given", "token:kim")
    asked.move("approved")
    assert asked.judge(nth=1).is_released
    assert asked.rows("SELECT decided_by, reason FROM approvals WHERE decision_id = %(id)s") == [("token:kim", WHY)]
    assert asked.messages()["APPROVAL_GIVEN"] == {"decisions.events", "decisions.work"}
    again = commands.ask("POST", path, body, token=kim)
    assert "an answer stands" in again.detail(409)


def test_admin_does_not_approve(asked: Proposed, commands: Client) -> None:
    path, body = about(asked)
    for scope in ("admin", "operate", "read", "metrics"):
        assert commands.ask("POST", path, body, token=make(commands, f"with_{scope}", scope)).status == 403
    assert asked.rows("SELECT FROM approvals WHERE decision_id = %(id)s") == []


def test_another_action_than_was_shown_is_not_approved(asked: Proposed, commands: Client) -> None:
    path, body = about(asked, action_sha256="0" * 64)
    assert "not the one that was shown" in commands.ask("POST", path, body).detail(409)
    assert asked.rows("SELECT FROM approvals WHERE decision_id = %(id)s") == []
    path, body = about(asked, gives=False)
    assert commands.ask("POST", path, body).body["outcome"] == "denied"


def test_a_token_that_may_not_is_refused_by_the_database(world: World, asked: Proposed, commands: Client) -> None:
    make(commands, "operator", "operate")
    approval_id, action_sha256, _ = asked.approval()
    with connect(world.database.url("acp_command"), application_name="test") as command:
        [request] = find_requests(command, str(approval_id))
        for name in ("operator", "nobody"):
            with pytest.raises(errors.InsufficientPrivilege, match=f"token {name} may not approve"):
                answer(command, request, action_sha256=action_sha256, gives=True, token=name)
    with connect(world.database.app_url, application_name="test") as member:
        with pytest.raises(errors.InsufficientPrivilege, match="only the login acp_command itself"):
            answer(member, request, action_sha256=action_sha256, gives=True, token="root")
        with pytest.raises(errors.InsufficientPrivilege, match="only the login acp_command itself"):
            set_switch(member, "all", off=True, token="root")


def test_a_switch_names_the_token(world: World, commands: Client) -> None:
    kim = make(commands, "kim", "operate")
    body = {"is_off": True, "reason": WHY}
    for path, scope in (("/switches/all", "all"), ("/switches/model%3Aa%2Fb", "model:a/b")):
        switched = commands.ask("PUT", path, body, token=kim)
        assert (switched.status, switched.body["scope"]) == (200, scope)
        assert (switched.body["is_off"], switched.body["set_by"]) == (True, "token:kim")
    for wrong in ("nothing", "domain:", "all;"):
        assert "is no scope" in commands.ask("PUT", f"/switches/{wrong}", body, token=kim).detail(400)
    assert world.owner.execute("SELECT count(*) FROM switch_changes").fetchone() == (2,)


def test_a_switch_that_cannot_be_set_soon_is_not_set(world: World, commands: Client) -> None:
    with world.owner.transaction():
        world.owner.execute("LOCK TABLE switch_lock IN ROW SHARE MODE")
        body = {"is_off": True, "reason": WHY}
        answered = commands.ask("PUT", "/switches/all", body)
        assert "nothing was changed" in answered.detail(503)
        assert answered.headers["Retry-After"] == "5"
    assert world.owner.execute("SELECT count(*) FROM switches").fetchone() == (0,)
    assert world.owner.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (0,)
