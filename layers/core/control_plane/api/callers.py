"""Who calls the API: the secret's token, which is called root, and the tokens that the database knows."""

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from control_plane.api.http import Request
from control_plane.api.routes import Caller
from control_plane.api.scopes import TOKEN_SCOPES, Scope
from control_plane.api.tokens import BearerToken, digest, invalid_token, presented_token
from control_plane.model.text import readable
from control_plane.platform.database import Database
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

ROOT: Final = "root"
"""The name of the secret's token. It has every scope: approve, too, because no token makes another with a scope that it
lacks, and so nobody could ever approve."""

MADE: Final = re.compile(r"acp_[A-Za-z0-9_-]{43}")
"""What the API makes. The database is asked about nothing else, so that guesses do not reach it."""


def new_token() -> str:
    """Returns a token of 32 random bytes."""
    return f"acp_{secrets.token_urlsafe(32)}"


class Callers:
    """The API's guard: tells who sent a request.

    Nothing is kept between requests: a token that is revoked is refused from then on.
    """

    def __init__(self, root: Callable[[], BearerToken], database: Callable[[], Database]) -> None:
        self._root = root
        self._database = database

    def __call__(self, request: Request) -> Caller:
        """Returns the caller. Raises Refused, and whatever reading the secret or the database raises."""
        presented = presented_token(request)
        if MADE.fullmatch(presented) and (found := self._look_up(presented)) is not None:
            name, scopes, state = found
            if state != "valid":
                raise invalid_token(f"The token {name} is {state}.")
            return _caller(request, name, scopes)
        self._root().require(request)
        return _caller(request, ROOT, list(TOKEN_SCOPES))

    def _look_up(self, presented: str) -> tuple[str, Sequence[str], str] | None:
        with self._database().bounded() as connection:
            row = connection.execute(QUERIES["use_token"].sql, {"sha256": digest(presented)}).fetchone()
        return None if row is None else (row[0], row[1], row[2])


def _caller(request: Request, name: str, scopes: Sequence[str]) -> Caller:
    agents = request.headers.get("user-agent", [])
    return Caller(
        token=name,
        scopes=frozenset(map(Scope, scopes)),
        address=request.caller or "",
        agent=readable(" ".join(agents))[:200],
    )
