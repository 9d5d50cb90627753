"""Scopes: what a token may do, and what a route asks of whoever calls it."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """What a route asks for; a token has any of these but PUBLIC."""

    PUBLIC = "public"
    """Anybody may call the route, without a token."""
    READ = "read"
    OPERATE = "operate"
    """Change the flow: hold, resume, switch, start runs."""
    APPROVE = "approve"
    """Answer what a decision asks a person. No other scope implies this one."""
    METRICS = "metrics"
    ADMIN = "admin"
    """Make and revoke tokens, read the audit."""


TOKEN_SCOPES: Final = frozenset(Scope) - {Scope.PUBLIC}
"""What a token may have."""

IMPLIED: Final[Mapping[Scope, frozenset[Scope]]] = {
    Scope.OPERATE: frozenset({Scope.READ}),
    Scope.APPROVE: frozenset({Scope.READ}),
    Scope.ADMIN: frozenset({Scope.READ, Scope.OPERATE, Scope.METRICS}),
}
"""What a scope brings with it. A token is stored with all of its scopes, so that the database compares plain sets."""


def with_implied(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Returns the scopes together with those that they imply."""
    given = frozenset(scopes)
    return given.union(*(IMPLIED.get(scope, frozenset()) for scope in given))
