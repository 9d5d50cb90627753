"""Plans, starts and runs one operation of a kind under the roles of its functions, as the engine does."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import dict_row

from control_plane.operations.kind import Kind, Operation, State, Stepped, hash_of


def read(connection: Connection[Any], operation_id: UUID) -> Operation:
    """Returns an operation as it is stored."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM operations WHERE operation_id = %s", [operation_id]).fetchone()
    assert row is not None
    values = {name: row[name] for name in Operation.__slots__ if name in row}
    return Operation(**values | {"state": State(row["state"]), "is_stalled": False})


def plan(owner: Connection[Any], maintain: Connection[Any], kind: Kind, wanted: Mapping[str, Any]) -> Operation:
    """Requests an operation and plans it to the end."""
    operation_id = uuid4()
    chosen = kind.parse(wanted)
    owner.execute(
        "INSERT INTO operations (operation_id, kind, subscription, filter, requested_by)"
        " VALUES (%s, %s, %s, %s, 'kim')",
        [operation_id, kind.name, chosen.get("subscription", ""), json.dumps(chosen)],
    )
    is_complete = False
    while not is_complete:
        with maintain.transaction():
            planned = kind.plan(maintain, read(owner, operation_id))
        is_complete = planned.is_complete
        owner.execute(
            "UPDATE operations SET plan = %s WHERE operation_id = %s", [json.dumps(dict(planned.plan)), operation_id]
        )
    owner.execute(
        "UPDATE operations SET state = 'planned', plan_hash = %s, planned_at = now(), progress = %s"
        " WHERE operation_id = %s",
        [
            hash_of(kind.name, chosen, planned.plan),
            json.dumps({"total": planned.plan["total"], "done": 0, "skipped": 0, "cursor": {}}),
            operation_id,
        ],
    )
    return read(owner, operation_id)


def start(owner: Connection[Any], operation: Operation) -> None:
    owner.execute(
        "UPDATE operations SET state = 'running', started_at = now(), started_by = 'kim' WHERE operation_id = %s",
        [operation.operation_id],
    )


def step(maintain: Connection[Any], kind: Kind, operation_id: UUID, *, most: int = 1000) -> Stepped:
    """Makes one step in one transaction with its progress, as acp_maintain."""
    with maintain.transaction():
        maintain.execute("SELECT FROM operations WHERE operation_id = %s FOR UPDATE", [operation_id])
        operation = read(maintain, operation_id)
        if operation.state is not State.RUNNING:
            return Stepped(0, 0, is_finished=True)
        stepped = kind.step(maintain, operation, most=most, seconds=5)
        maintain.execute(
            "UPDATE operations SET progress = %s, state = %s, finished_at = %s WHERE operation_id = %s",
            [
                json.dumps(
                    {
                        "total": operation.total,
                        "done": operation.done + stepped.done,
                        "skipped": operation.skipped + stepped.skipped,
                        "cursor": dict(stepped.cursor),
                    }
                ),
                "done" if stepped.is_finished else "running",
                datetime.now(UTC) if stepped.is_finished else None,
                operation_id,
            ],
        )
    return stepped


def run(
    owner: Connection[Any],
    maintain: Connection[Any],
    kind: Kind,
    wanted: Mapping[str, Any],
    *,
    most: int = 1000,
) -> Operation:
    """Plans, starts and steps to the end; returns the operation as it ended."""
    operation = plan(owner, maintain, kind, wanted)
    start(owner, operation)
    finish(maintain, kind, operation.operation_id, most=most)
    return read(owner, operation.operation_id)


def finish(maintain: Connection[Any], kind: Kind, operation_id: UUID, *, most: int = 1000) -> None:
    for _ in range(10_000):
        if step(maintain, kind, operation_id, most=most).is_finished:
            return
    raise AssertionError("it never ends")
