from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from acp_client.profiles import Profile, ProfileError, Profiles, chosen_profile, profile_of, profiles_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

URL = "https://abc.execute-api.eu-west-1.amazonaws.com/v1"


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def profiles(environ: Mapping[str, str]) -> Profiles:
    return Profiles(profiles_path(environ))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:4566/v1", "http://localhost:80", "http://[::1]:8080/x", "https://api.example.com/v1/"]
)
def test_https_and_this_machine_are_fine(url: str) -> None:
    assert profile_of("x", url, "t").url == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["http://example.com", "http://10.0.0.1/v1", "http://localhost.example.com", "http://127.0.0.1.nip.io"]
)
def test_a_token_is_not_sent_in_the_clear(url: str) -> None:
    with pytest.raises(ProfileError, match="unencrypted"):
        profile_of("x", url, "t")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/v1",
        "ftp://x",
        "https://",
        "https://u:p@x/v1",
        "https://x/v1?a=1",
        "https://x:99999/",
        "https://x/#f",
    ],
)
def test_what_is_no_api_is_refused(url: str) -> None:
    with pytest.raises(ProfileError, match="no URL of an API"):
        profile_of("x", url, "t")


def test_without_any_word_it_is_the_local_cloud(environ: Mapping[str, str]) -> None:
    assert chosen_profile(environ) is None


def test_a_kept_profile_is_the_current_one_for_its_owner_alone(environ: Mapping[str, str]) -> None:
    kept = Profile("prod", URL, "secret")
    profiles(environ).keep(kept)
    assert chosen_profile(environ) == kept
    assert stat.S_IMODE(profiles_path(environ).stat().st_mode) == 0o600
    assert stat.S_IMODE(profiles_path(environ).parent.stat().st_mode) == 0o700
    assert "secret" not in repr(kept)


def test_options_come_before_the_environment_and_that_before_the_file(environ: Mapping[str, str]) -> None:
    profiles(environ).keep(Profile("prod", URL, "secret"))
    profiles(environ).keep(Profile("test", "https://test/v1", "other"))
    told = {**environ, "ACP_URL": "https://env/v1", "ACP_TOKEN": "env"}
    assert chosen_profile(environ, name="prod") == Profile("prod", URL, "secret")
    assert chosen_profile({**environ, "ACP_PROFILE": "prod"}) == Profile("prod", URL, "secret")
    assert chosen_profile(environ, name="prod", token="mine") == Profile("prod", URL, "mine")
    assert chosen_profile(told) == Profile("", "https://env/v1", "env")
    assert chosen_profile(told, url="https://option/v1") == Profile("", "https://option/v1", "env")


def test_a_token_of_one_deployment_is_not_sent_to_another(environ: Mapping[str, str]) -> None:
    profiles(environ).keep(Profile("prod", URL, "secret"))
    assert chosen_profile(environ, url="https://elsewhere/v1") == Profile("", "https://elsewhere/v1", None)


def test_an_unknown_profile_is_named_with_those_there_are(environ: Mapping[str, str]) -> None:
    profiles(environ).keep(Profile("prod", URL, "secret"))
    with pytest.raises(ProfileError, match="no profile 'prd'; there are: prod"):
        chosen_profile(environ, name="prd")


def test_a_forgotten_profile_is_current_no_more(environ: Mapping[str, str]) -> None:
    profiles(environ).keep(Profile("prod", URL, "secret"))
    assert profiles(environ).forget("prod")
    assert not profiles(environ).forget("prod")
    assert chosen_profile(environ) is None


def test_a_file_that_others_may_read_is_refused(environ: Mapping[str, str]) -> None:
    profiles(environ).keep(Profile("prod", URL, "secret"))
    profiles_path(environ).chmod(0o640)
    with pytest.raises(ProfileError, match="chmod 600"):
        chosen_profile(environ)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"current": 1, "profiles": {}}', '{"current": null, "profiles": {"x": 1}}', "\xff"]
)
def test_a_damaged_file_says_what_to_do(environ: Mapping[str, str], text: str) -> None:
    path = profiles_path(environ)
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError, match="acp login"):
        chosen_profile(environ)


def test_a_failed_write_leaves_the_old_file(environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    profiles(environ).keep(Profile("prod", URL, "secret"))

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        profiles(environ).keep(Profile("test", URL, "other"))
    assert chosen_profile(environ) == Profile("prod", URL, "secret")
    assert [path.name for path in profiles_path(environ).parent.iterdir()] == ["profiles.json"]
