"""The bearer token: who is let in, and how often the secret is read."""

import hmac
from collections.abc import Callable

import pytest

from control_plane.api.http import Refused, Request
from control_plane.api.tokens import MAX_AGE_SECONDS, REREAD_SECONDS, BearerToken, token_text
from control_plane.model.errors import ConfigurationError, ControlPlaneError
from control_plane.platform.aws import SecretUnavailable
from control_plane.platform.settings import ApiTokenSettings


class Vault:
    """A secret, a clock, and how often the secret was read."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.reads = 0
        self.fails = False
        self.error: ControlPlaneError | None = None
        self.now = 1000.0
        self.bearer = BearerToken(self.read, monotonic=lambda: self.now)

    def read(self) -> str:
        self.reads += 1
        if self.fails:
            raise SecretUnavailable("the secret arn:… cannot be read")
        if self.error is not None:
            raise self.error
        return self.token

    def lets_in(self, token: str) -> bool:
        try:
            self.bearer.require(Request("GET", None, "/", {}, {"authorization": [f"Bearer {token}"]}))
        except Refused:
            return False
        return True


def test_tokens_are_compared_in_constant_time_and_at_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def recording(presented: bytes, kept: bytes) -> bool:
        compared.append((presented, kept))
        return compare(presented, kept)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    vault = Vault("right")
    assert vault.lets_in("right")
    assert not vault.lets_in("r")
    assert not vault.lets_in("right" * 1000)
    assert len(compared) == 3
    assert {len(digest) for pair in compared for digest in pair} == {32}
    assert len({kept for _, kept in compared}) == 1


def test_the_secret_is_read_once_a_token_is_presented() -> None:
    vault = Vault("right")
    with pytest.raises(Refused):
        vault.bearer.require(Request("GET", None, "/", {}, {}))
    assert vault.reads == 0
    for _ in range(10):
        assert vault.lets_in("right")
    assert vault.reads == 1


def test_guesses_reread_the_secret_only_every_few_seconds() -> None:
    vault = Vault("right")
    for _ in range(100):
        assert not vault.lets_in("wrong")
        vault.now += REREAD_SECONDS / 50
    # Once to begin with, then once for each REREAD_SECONDS that passed.
    assert vault.reads == 2


def test_a_new_token_replaces_the_old_one_within_seconds() -> None:
    vault = Vault("old")
    assert vault.lets_in("old")
    vault.token = "new"
    assert vault.lets_in("old")  # Nobody has asked for it meanwhile.
    vault.now += REREAD_SECONDS
    assert vault.lets_in("new")
    assert not vault.lets_in("old")


def test_an_old_token_expires_even_if_nobody_uses_the_new() -> None:
    vault = Vault("old")
    assert vault.lets_in("old")
    vault.token = "new"
    vault.now += MAX_AGE_SECONDS - 1
    assert vault.lets_in("old")
    vault.now += 1
    assert not vault.lets_in("old")


def test_an_unreadable_secret_lets_nobody_in_and_is_not_hammered() -> None:
    vault = Vault("right")
    vault.fails = True
    for _ in range(5):
        with pytest.raises(SecretUnavailable):
            vault.lets_in("right")
    assert vault.reads == 1
    vault.now += REREAD_SECONDS
    vault.fails = False
    assert vault.lets_in("right")


def test_a_wrong_token_locks_nobody_out_without_the_secret() -> None:
    vault = Vault("right")
    assert vault.lets_in("right")
    vault.fails = True
    for _ in range(10):
        vault.now += REREAD_SECONDS
        with pytest.raises(SecretUnavailable):  # It may be a new token.
            vault.lets_in("wrong")
        assert vault.lets_in("right")
    assert vault.reads == 11
    vault.fails = False
    vault.now += REREAD_SECONDS
    assert not vault.lets_in("wrong")
    assert vault.lets_in("right")


def test_a_secret_that_lost_its_token_locks_nobody_out() -> None:
    vault = Vault("right")
    assert vault.lets_in("right")
    vault.error = ConfigurationError(["the secret arn:… is neither a token as plain text nor a JSON object"])
    vault.now += REREAD_SECONDS
    with pytest.raises(ConfigurationError):
        vault.lets_in("wrong")
    assert vault.lets_in("right")


def test_a_token_too_old_is_refused_without_the_secret() -> None:
    vault = Vault("right")
    assert vault.lets_in("right")
    vault.fails = True
    vault.now += MAX_AGE_SECONDS - 1
    assert vault.lets_in("right")
    vault.now += 1
    with pytest.raises(SecretUnavailable):
        vault.lets_in("right")


def never(arn: str) -> str:
    raise AssertionError(arn)


LONG = "right" * 7


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        (ApiTokenSettings(LONG, None), never),
        (ApiTokenSettings(None, "arn"), {"arn": LONG}.__getitem__),
        (ApiTokenSettings(None, "arn"), {"arn": f'{{"token": " {LONG} "}}'}.__getitem__),
    ],
)
def test_the_token_is_the_settings_or_the_secrets(settings: ApiTokenSettings, read: Callable[[str], str]) -> None:
    assert token_text(settings, read) == LONG


@pytest.mark.parametrize(
    ("settings", "origin"),
    [(ApiTokenSettings("x" * 31, None), "API_TOKEN"), (ApiTokenSettings(None, "arn"), "the secret arn")],
)
def test_a_short_token_is_refused_and_not_shown(settings: ApiTokenSettings, origin: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the token of {origin} has fewer than 32 characters") as refused:
        token_text(settings, lambda _arn: "x" * 31)
    assert "x" * 31 not in str(refused.value)
