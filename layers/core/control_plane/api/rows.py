"""Rows of the API's own queries, as JSON objects, and the ids that paths hold."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row

from control_plane.api.callers import QUERIES
from control_plane.api.http import Refused
from control_plane.platform.database import Database

ID_PREFIX: Final = r"^[0-9a-fA-F-]{1,36}$"
AN_ID: Final = "d0459ed7-a792-5533-b958-aaf36e185583"
_DIGITS: Final = 32
"""Hexadecimal digits of a UUID."""


def read_rows(database: Database, query: str, **values: Any) -> Sequence[dict[str, Any]]:
    """Returns the rows of a query, within the database's patience."""
    with database.bounded() as connection:
        return rows(connection, query, **values)


def rows(connection: Connection[Any], query: str, **values: Any) -> Sequence[dict[str, Any]]:
    """Returns the rows of a query on this connection."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(QUERIES[query].sql, values).fetchall()


def read_one(database: Database, query: str, missing: str, **values: Any) -> Mapping[str, Any]:
    """Returns a query's one row. Raises Refused, with the sentence ``missing``, where there is none."""
    found = read_rows(database, query, **values)
    if not found:
        raise Refused(HTTPStatus.NOT_FOUND, missing)
    return found[0]


def by_prefix(
    database: Database, query: str, prefix: str, *, after: str | None, limit: int
) -> Sequence[dict[str, Any]]:
    """Returns the rows of a query whose ids begin with these digits, by id. Raises Refused for too many of them."""
    digits = prefix.replace("-", "").lower()
    if not 0 < len(digits) <= _DIGITS:
        raise Refused(HTTPStatus.BAD_REQUEST, f"id_prefix is the beginning of a UUID: 1 to {_DIGITS} digits.")
    return read_rows(
        database,
        query,
        lowest=UUID(digits.ljust(_DIGITS, "0")),
        highest=UUID(digits.ljust(_DIGITS, "f")),
        after_id=None if after is None else parse_id(after, "after"),
        limit=limit,
    )


def parse_id(text: str, name: str) -> UUID:
    """Returns the id that a path holds. Raises Refused."""
    try:
        parsed = UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text.lower():  # UUID() also takes braces, urn:, no hyphens
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is {text[:100]!r}: it must be a UUID, such as {AN_ID}.")
    return parsed
