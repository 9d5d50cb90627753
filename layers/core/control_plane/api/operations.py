"""Operations as the API shows them: what was asked for, its plan, and how far it is."""

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, Literal
from uuid import UUID

from psycopg import Connection
from pydantic import Field

from control_plane.api.http import Refused, Response
from control_plane.api.pages import Page, page, position
from control_plane.api.routes import Call
from control_plane.api.rows import parse_id, rows
from control_plane.operations.kind import Operation, State
from control_plane.operations.rows import read_operation
from control_plane.operations.service import list_operations as read_operations
from control_plane.platform.database import Database

type KindName = Literal["redrive", "replay", "backfill", "rebuild", "retention", "erasure"]

MOST_SHOWN: Final = 100
"""Of a longer list in a filter or a plan, this many are shown."""
MOST_DELIVERIES: Final = 100_000
"""Of an operation's messages that wait or were given up on, so many are counted."""
SENDING: Final = frozenset({"redrive", "replay"})
"""The kinds whose items are messages that a relay delivers."""


class OperationsQuery(Page):
    """Which operations; a filter that is left out fits all."""

    kind: KindName | Literal["discard"] | None = None
    subscription: str | None = Field(None, max_length=200, description="Such as signal_lab.")
    state: State | None = None


def list_operations(database: Database, call: Call) -> Response:
    """Returns a page of operations, newest first."""
    query: OperationsQuery = call.query
    requested_at, operation_id = position(query, datetime, str)
    with database.bounded() as connection:
        found = read_operations(
            connection,
            kind=query.kind,
            subscription=query.subscription,
            states=None if query.state is None else [query.state],
            after=None if operation_id is None else (requested_at, parse_id(operation_id, "after")),
            limit=query.limit + 1,
        )
    return page(
        [operation.to_dict() for operation in found],
        lambda one: [one["requested_at"], one["operation_id"]],
        query=query,
    )


def show_operation(database: Database, call: Call) -> Response:
    """Returns one operation, with its plan, its progress and what has become of its messages; of long lists their
    beginning. Raises Refused.
    """
    operation_id = operation_of(call)
    with database.bounded() as connection:
        operation = read_operation(connection, operation_id)
        if operation is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no operation {operation_id}.")
        return Response(HTTPStatus.OK, shown(operation) | {"deliveries": _deliveries(connection, operation)})


def shown(operation: Operation) -> dict[str, Any]:
    """Returns an operation as the API shows it by itself: in place of a long list, such as ids, its length and its
    beginning.
    """
    return {name: _shortened(value) for name, value in operation.to_dict().items()}


def _deliveries(connection: Connection[Any], operation: Operation) -> Mapping[str, int | None] | None:
    """Returns how many of its messages wait for a relay, were given up on again, and are in their queues.

    None for a kind that sends none, and before its start; a number is None where it is more than MOST_DELIVERIES, or
    follows from such a one.
    """
    if operation.kind not in SENDING or operation.started_at is None:
        return None
    [counted] = rows(connection, "deliveries_of_operation", operation_id=operation.operation_id, most=MOST_DELIVERIES)
    waiting, given_up = (
        None if counted[name] > MOST_DELIVERIES else int(counted[name]) for name in ("waiting", "dead_lettered")
    )
    delivered = None if waiting is None or given_up is None else max((counted["done"] or 0) - waiting - given_up, 0)
    return {"waiting": waiting, "delivered": delivered, "dead_lettered": given_up}


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(one) for name, one in value.items()}
    if isinstance(value, list):
        first = [_shortened(one) for one in value[:MOST_SHOWN]]
        return {"count": len(value), "first": first} if len(value) > MOST_SHOWN else first
    return value


def operation_of(call: Call) -> UUID:
    """Returns the id that the path holds. Raises Refused."""
    return parse_id(call.parameters["operation_id"], "operation_id")
