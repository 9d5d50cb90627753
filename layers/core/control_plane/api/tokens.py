"""The secret's bearer token (RFC 6750), which is called root.

The function checks tokens itself, because local gateways check nothing; ``callers`` knows the other tokens.
"""

import hmac
import json
import time
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from typing import Final

from control_plane.api.http import Refused, Request
from control_plane.model.errors import ConfigurationError, ControlPlaneError
from control_plane.platform.settings import ApiTokenSettings

MAX_AGE_SECONDS: Final = 300.0
"""A replaced token is accepted for at most so many seconds, whether or not the secret can be read."""
REREAD_SECONDS: Final = 5.0
"""The secret is read again at most this often (in seconds) for a token that does not match, since that token may be
new. Without this limit, guessed tokens would cause a flood of requests to Secrets Manager."""

FEWEST_CHARACTERS: Final = 32
"""The length below which the secret's token could be guessed."""

CHALLENGE: Final = 'Bearer realm="ai-control-plane"'


class BearerToken:
    """The secret's token.

    It is read when first needed, and again from time to time, so that a rotated token is noticed.
    """

    def __init__(self, read: Callable[[], str], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._monotonic = monotonic
        self._digest: bytes | None = None
        self._failure: ControlPlaneError | None = None
        self._read_at = float("-inf")
        """When reading was last tried."""
        self._known_at = float("-inf")
        """When the token that is known was read."""

    def require(self, request: Request) -> None:
        """Raises Refused for a request without the token, and whatever ``read`` raises if the token cannot be read."""
        if not self._matches(presented_token(request)):
            raise invalid_token("This is not the token.")

    def _matches(self, presented: str) -> bool:
        if self._is_known(presented):
            return True
        if self._monotonic() - self._read_at >= REREAD_SECONDS:
            self._refresh()
            if self._is_known(presented):
                return True
        if self._failure is not None:  # The presented token may be the new one, but the secret cannot be read now.
            raise self._failure
        return False

    def _is_known(self, presented: str) -> bool:
        if self._digest is None or self._monotonic() - self._known_at >= MAX_AGE_SECONDS:
            return False
        # Digests have one length, so the comparison reveals not even the token's length.
        return hmac.compare_digest(digest(presented), self._digest)

    def _refresh(self) -> None:
        self._read_at = self._monotonic()
        self._failure = None
        try:
            self._digest, self._known_at = digest(self._read()), self._read_at
        except ControlPlaneError as error:
            # The known token is kept: a stranger's wrong token, which causes a new read, must not lock anybody out.
            self._failure = error


def token_text(settings: ApiTokenSettings, read_secret: Callable[[str], str]) -> str:
    """Returns the token, given directly or by a secret: as plain text, or as JSON with a ``token``.

    Raises ConfigurationError.
    """
    if settings.token is not None:
        return _long_enough(settings.token, "API_TOKEN")
    assert settings.secret_arn is not None
    secret = read_secret(settings.secret_arn).strip()
    token: object = secret
    if secret.startswith("{"):
        try:
            token = json.loads(secret).get("token")
        except ValueError:
            token = None
    if not isinstance(token, str) or not token.strip():
        raise ConfigurationError(
            [f"the secret {settings.secret_arn} is neither a token as plain text nor a JSON object with a token"]
        )
    return _long_enough(token.strip(), f"the secret {settings.secret_arn}")


def _long_enough(token: str, origin: str) -> str:
    if len(token) < FEWEST_CHARACTERS:
        raise ConfigurationError(
            [f"the token of {origin} has fewer than {FEWEST_CHARACTERS} characters: store one of openssl rand -hex 32"]
        )
    return token


def presented_token(request: Request) -> str:
    """Returns the token that the request presents. Raises Refused; two Authorization headers present none."""
    values = request.headers.get("authorization", [])
    scheme, _, token = values[0].strip().partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refused(
            HTTPStatus.UNAUTHORIZED,
            "This route needs a token: send the header Authorization: Bearer TOKEN.",
            headers={"WWW-Authenticate": CHALLENGE},
        )
    return token.strip()


def invalid_token(detail: str) -> Refused:
    """Returns the refusal of a token that is not valid."""
    return Refused(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'})


def digest(token: str) -> bytes:
    """Returns what is stored of a token, and compared."""
    return sha256(token.encode(errors="surrogatepass")).digest()
