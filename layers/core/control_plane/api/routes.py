"""Routes: what each is called, what it asks of its caller, and the shape of what it takes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict

from control_plane.api.http import NotAProxyRequest, Request, Response
from control_plane.api.scopes import Scope

JSON: Final = "application/json"
METHODS: Final = ("GET", "POST", "PUT", "DELETE")

_PATH: Final = re.compile(r"(/[a-z][a-z0-9_.-]*|/\{[a-z][a-z0-9_]*\})+")


def _spelled(pattern: str, said: str) -> BeforeValidator:
    """Returns a check of a query's text, which pydantic would read in more spellings than the document allows."""

    def check(value: object) -> object:
        if isinstance(value, str) and re.fullmatch(pattern, value) is None:
            raise ValueError(f"it must be {said}")
        return value

    return BeforeValidator(check)


_INSTANT: Final = r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)"
_UUID: Final = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

QueryNumber = Annotated[int, _spelled(r"[0-9]{1,9}", "a whole number")]
QueryFlag = Annotated[bool, _spelled("true|false", "true or false")]
QueryInstant = Annotated[AwareDatetime, _spelled(_INSTANT, "an instant such as 2026-01-05T14:33:20Z")]
QueryId = Annotated[UUID, _spelled(_UUID, "a UUID")]


class Strict(BaseModel):
    """A query or a body: a field that it does not declare is refused, and so is a value of another type."""

    has_lines: ClassVar[bool] = False
    """Whether texts of this body may have line ends and tabs; other control characters never pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a route; all of it is text of bounded length."""

    token: str = ""
    """The token's name; empty for a route that asks for none."""
    scopes: frozenset[Scope] = frozenset()
    address: str = ""
    agent: str = ""
    """The client's User-Agent, as it calls itself."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that its route may answer: whoever calls may do so, and what they sent has the right shape."""

    parameters: Mapping[str, str]
    """The path's parameters, by name."""
    query: Any
    """An instance of the route's ``query``; None where it has none."""
    body: Any
    """An instance of the route's ``body``; None where it has none."""
    caller: Caller
    route: str = ""
    """The route's method and path, such as ``POST /tokens``."""
    key: str = ""
    """The Idempotency-Key; empty for a route that changes nothing."""
    fingerprint: bytes = b""
    """A digest over everything that the client asks for; two calls under one key must agree in it."""
    accept: str = ""
    """The content types that the client wants, as its Accept header says; empty for a route that changes something."""
    path: str = ""
    """The path as the client wrote it; empty for a route that changes something."""


@dataclass(frozen=True, slots=True)
class Example:
    """A call that the OpenAPI document shows, and that a test sends."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    status: HTTPStatus = HTTPStatus.OK


@dataclass(frozen=True, slots=True)
class Route:
    """A path of literal parts and ``{parameters}``, with the function that answers it.

    A GET route also answers HEAD; a route of any other method changes something, and takes an Idempotency-Key, unless
    it says that it ``only_reads``. Raises TypeError for a route without a scope, and ValueError for one that cannot be
    right.
    """

    method: str
    path: str
    scope: Scope
    answer: Callable[[Call], Response]
    """The function that answers. It may raise Refused."""
    summary: str
    """One sentence, for the OpenAPI document and for `acp`."""
    query: type[Strict] | None = None
    body: type[Strict] | None = None
    examples: Sequence[Example] = (Example(),)
    status: HTTPStatus = HTTPStatus.OK
    """The status of an answer that is no problem."""
    content_types: Sequence[str] = (JSON,)
    """The content types of an answer that is no problem, for the OpenAPI document."""
    only_reads: bool = False
    """Whether a POST changes nothing: what it asks is too long for a query, or so costly that no cache or crawler may
    ask it by following a link. It takes no Idempotency-Key, and is no change on record."""

    def __post_init__(self) -> None:
        """Raises TypeError without a scope, and ValueError for a route that cannot be right."""
        if not isinstance(self.scope, Scope):
            raise TypeError(f"{self.name} has no scope: it must say who may call it")
        if self.method not in METHODS or _PATH.fullmatch(self.path) is None:
            raise ValueError(f"{self.name} is no route: a method of {', '.join(METHODS)}, and a path such as /a/{{b}}")
        if self.only_reads and self.method != "POST":
            raise ValueError(f"{self.name} only reads: that is said of a POST alone")
        if self.changes and self.scope is Scope.PUBLIC:
            raise ValueError(f"{self.name} changes something, so it cannot be public")
        if self.body is not None and self.method == "GET":
            raise ValueError(f"{self.name} takes a body, which GET has none of")

    @property
    def name(self) -> str:
        """The method and the path."""
        return f"{self.method} {self.path}"

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that this route answers."""
        return (self.method, "HEAD") if self.method == "GET" else (self.method,)

    @property
    def changes(self) -> bool:
        """Whether the route changes something."""
        return self.method != "GET" and not self.only_reads

    @property
    def names(self) -> Sequence[str]:
        """The path's parameters."""
        return re.findall(r"\{(\w+)\}", self.path)

    def parameters(self, request: Request) -> Mapping[str, str] | None:
        """Returns the path's parameters if the request is for this route, otherwise None.

        API Gateway names the route that it found, as ``resource``; an event without ``resource`` is matched by its
        path. A path may start with a prefix, behind a custom domain with a base path.
        """
        if request.resource is not None:
            if request.resource != self.path:
                return None
            if missing := set(self.names) - request.path_parameters.keys():
                raise NotAProxyRequest(f"its pathParameters lack {min(missing)}")
            return request.path_parameters
        found = re.fullmatch(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path)), request.path)
        return None if found is None else found.groupdict()


def overlap(one: Route, other: Route) -> bool:
    """Tells whether a request could be for either route."""
    parts = list(zip(one.path.split("/"), other.path.split("/"), strict=False))
    return (
        bool(set(one.methods) & set(other.methods))
        and one.path.count("/") == other.path.count("/")
        and all(a == b or "{" in a + b for a, b in parts)
    )
