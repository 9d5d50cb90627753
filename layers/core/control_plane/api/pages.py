"""Pages of a list: by keyset with an opaque cursor, bounded in rows and in bytes."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

from pydantic import Field

from control_plane.api.http import Refused, Response, as_json
from control_plane.api.routes import QueryNumber, Strict
from control_plane.model.ids import is_storable_text

DEFAULT_LIMIT: Final = 50
MOST_ROWS: Final = 200
MOST_BYTES: Final = 1 << 20
"""The size of a page, as JSON, beyond which the next item begins another one; an item alone may be larger."""

_MOST_CURSOR: Final = 1024
_LARGEST_NUMBER: Final = (1 << 63) - 1


class Page(Strict):
    """The query of a list."""

    limit: QueryNumber = Field(DEFAULT_LIMIT, ge=1, le=MOST_ROWS, description="Most items of the page.")
    after: str | None = Field(
        None, max_length=_MOST_CURSOR, description="The next of the page before; leave it out for the first page."
    )


def page(
    items: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Sequence[Any]], *, query: Page
) -> Response:
    """Returns one page of a list.

    ``items`` are read with one more than the query's limit, which tells whether there is a further page; ``key`` names
    the item that a page ended with, as ``position`` gives it back.
    """
    shown: list[Mapping[str, Any]] = []
    size = 0
    for item in items[: query.limit]:
        size += len(json.dumps(item, ensure_ascii=False, default=as_json).encode(errors="surrogatepass"))
        if shown and size > MOST_BYTES:
            break
        shown.append(item)
    is_last = len(shown) == len(items)
    return Response(HTTPStatus.OK, {"items": shown, "next": None if is_last else cursor(key(shown[-1]))})


def check_window(since: datetime | None, until: datetime | None) -> None:
    """Raises Refused for a window that holds no instant."""
    if since is not None and until is not None and since >= until:
        raise Refused(HTTPStatus.BAD_REQUEST, "since is not before until: nothing could be between them.")


def cursor(values: Sequence[Any]) -> str:
    """Returns the values as a text that a client hands back."""
    return urlsafe_b64encode(json.dumps(list(values), default=as_json).encode()).decode().rstrip("=")


def position(query: Page, *types: type[int] | type[str] | type[datetime]) -> Sequence[Any]:
    """Returns the values that the cursor stands for, a null for each of ``types`` without one.

    Raises Refused for a text that is no cursor of such a list.
    """
    if query.after is None:
        return [None] * len(types)
    try:
        values = list(json.loads(urlsafe_b64decode(query.after + "=" * (-len(query.after) % 4))))
        return [_value(value, wanted) for value, wanted in zip(values, types, strict=True)]
    except (ValueError, TypeError, RecursionError):  # Base64's and JSON's errors are ValueErrors.
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "after is no cursor of this list: send the next of the page before, or leave it out.",
        ) from None


def _value(value: object, wanted: type[int] | type[str] | type[datetime]) -> int | str | datetime:
    if wanted is datetime and isinstance(value, str):
        instant = datetime.fromisoformat(value)
        if instant.tzinfo is None:
            raise ValueError
        return instant
    if wanted is int and type(value) is int and abs(value) <= _LARGEST_NUMBER:
        return value
    if wanted is str and isinstance(value, str) and is_storable_text(value):
        return value
    raise TypeError
