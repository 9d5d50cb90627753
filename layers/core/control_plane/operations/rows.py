"""Reads rows of the table ``operations``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final
from uuid import UUID

from psycopg import Connection, Cursor

from control_plane.operations.kind import Operation, State
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
_FIELDS: Final = {field.name for field in fields(Operation)}


def operation_row(cursor: Cursor[Any]) -> Callable[[Sequence[Any]], Operation]:
    """Makes operations of the rows of a query that selects all their columns, and perhaps others of the table."""
    names = [column.name for column in cursor.description or ()]

    def make(values: Sequence[Any]) -> Operation:
        columns = {name: value for name, value in zip(names, values, strict=True) if name in _FIELDS}
        return Operation(**(columns | {"state": State(columns["state"])}))

    return make


def fetch_operation(connection: Connection[Any], query: str, parameters: Mapping[str, Any]) -> Operation | None:
    """Returns the one operation that a named query selects, or None."""
    with connection.cursor(row_factory=operation_row) as cursor:
        return cursor.execute(QUERIES[query].sql, parameters).fetchone()


def read_operation(connection: Connection[Any], operation_id: UUID) -> Operation | None:
    """Returns an operation, or None if there is none of this id."""
    return fetch_operation(connection, "operation", {"operation_id": operation_id})


def as_text(value: Mapping[str, Any]) -> str:
    """Returns JSON as a query takes it for jsonb."""
    return json.dumps(value, allow_nan=False)
