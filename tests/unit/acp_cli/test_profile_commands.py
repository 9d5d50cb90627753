from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.unit.acp_client.conftest import Server, server
from typer.testing import CliRunner, Result

from acp_cli.cli import app
from acp_client.profiles import Profiles, profiles_path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["server"]


@pytest.fixture(autouse=True)
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in ("ACP_URL", "ACP_TOKEN", "ACP_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def acp(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=typed, obj=object())


def test_login_checks_the_token_before_it_is_stored(server: Server, environ: dict[str, str]) -> None:
    server.will_answer(401, {"detail": "This is not the token."})
    refused = acp("login", "prod", "--url", server.url, typed="wrong\n")
    assert refused.exit_code == 1
    assert "This is not the token." in refused.stderr
    assert Profiles(profiles_path(environ)).read()["profiles"] == {}
    server.will_answer(200, {})
    assert acp("login", "prod", "--url", server.url, typed="right\n").exit_code == 0
    assert Profiles(profiles_path(environ)).read() == {
        "current": "prod",
        "profiles": {"prod": {"url": server.url, "token": "right"}},
    }
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer wrong", "Bearer right"]


def test_a_token_that_may_not_read_is_stored_too(server: Server, environ: dict[str, str]) -> None:
    server.will_answer(403, {"detail": "This needs the scope read."})
    assert acp("login", "prod", "--url", server.url, typed="approver\n").exit_code == 0
    assert Profiles(profiles_path(environ)).read()["current"] == "prod"


@pytest.mark.parametrize(
    ("arguments", "typed", "says"),
    [
        (("login", "local", "--url", "https://x/v1"), "t\n", "cannot be a profile's name"),
        (("login", "prod", "--url", "http://example.com"), "t\n", "unencrypted"),
        (("login", "prod", "--url", "https://x/v1"), "\n", "no token"),
        (("logout", "nothing"), "", "no profile 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], typed: str, says: str) -> None:
    refused = acp(*arguments, typed=typed)
    assert (refused.exit_code, says in refused.stderr) == (2, True), refused.stderr


def test_nobody_there_has_an_exit_code_of_its_own(environ: dict[str, str]) -> None:
    refused = acp("login", "prod", "--url", "http://127.0.0.1:1/v1", typed="t\n")
    assert (refused.exit_code, "Nothing was stored" in refused.stderr) == (5, True), refused.stderr


def test_the_profiles_are_listed_without_tokens(server: Server) -> None:
    server.will_answer(200, {})
    acp("login", "prod", "--url", server.url, typed="a-secret\n")
    listed = acp("profiles")
    assert listed.stdout.splitlines() == ["  local  the local cloud", f"* prod  {server.url}"]
    assert json.loads(acp("profiles", "--json").stdout) == [
        {"name": "local", "url": None, "is_current": False},
        {"name": "prod", "url": server.url, "is_current": True},
    ]
    assert "a-secret" not in listed.stdout
    assert acp("logout", "prod").exit_code == 0
    assert acp("profiles").stdout.splitlines() == ["* local  the local cloud"]
