"""What people do with operations. Each command is a transaction, or part of the caller's; it tells before and after.

Whoever commands is named: by the login acp_command as the token that asks, which must have the scope for it; by the
owner as they please. A person's login is on record as itself, whatever name is given.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg import Connection, errors

from control_plane.model.ids import canonical_json
from control_plane.model.text import readable
from control_plane.operations.kind import (
    Kind,
    Operation,
    OperationConflict,
    OperationNotFound,
    OperationRefused,
    State,
    find_kind,
)
from control_plane.operations.rows import QUERIES, as_text, operation_row, read_operation

LARGEST_FILTER: Final = 1 << 20
"""In bytes, as canonical JSON: more than 100,000 ids."""
HIGHEST_RATE: Final = 100_000.0


@dataclass(frozen=True, slots=True)
class Change:
    """What a command did to an operation: how it was, and how it is."""

    before: Operation | None
    """None where the command made the operation."""
    after: Operation


def request_operation(
    connection: Connection[Any],
    kinds: Iterable[Kind],
    *,
    kind: str,
    wanted: Mapping[str, Any],
    requested_by: str,
    reason: str = "",
    rate: float | None = None,
) -> Change:
    """Records an operation that is to be planned; ``wanted`` is its filter as somebody wrote it.

    Raises OperationRefused.
    """
    chosen = find_kind(kinds, kind).parse(wanted)
    if len(canonical_json(chosen, field="filter")) > LARGEST_FILTER:
        raise OperationRefused(f"the filter is larger than {LARGEST_FILTER} bytes: ask for less at a time")
    operation_id = uuid4()
    with connection.transaction():
        connection.execute(
            QUERIES["request_operation"].sql,
            {
                "operation_id": operation_id,
                "kind": kind,
                "subscription": chosen.get("subscription", ""),
                "filter": as_text(chosen),
                "rate": _checked_rate(rate),
                "requested_by": _named(requested_by),
                "reason": readable(reason),
            },
        )
        return Change(None, _found(read_operation(connection, operation_id), operation_id))


def start_operation(
    connection: Connection[Any],
    operation_id: UUID,
    *,
    plan_hash: str,
    started_by: str,
    reason: str,
    rate: float | None = None,
) -> Change:
    """Starts what was planned, if the plan is still the one that its hash names, and no older than an hour.

    Raises OperationConflict, OperationNotFound, and OperationRefused without a reason.
    """
    if not reason.strip():
        raise OperationRefused("it is not said why the operation is started: reason is empty")
    with connection.transaction():
        before = _lock(connection, operation_id)
        if before.state is State.PLANNING:
            raise OperationConflict(f"operation {operation_id} is still being planned: look at its plan, then start it")
        _check_state(before, State.PLANNED, to="started")
        if plan_hash != before.plan_hash:
            raise OperationConflict(
                f"the plan of operation {operation_id} is another one: its hash is {before.plan_hash}. Look at it again"
            )
        started = _change(
            connection,
            "start_operation",
            before,
            by=_named(started_by),
            plan_hash=plan_hash,
            reason=readable(reason),
            rate=_checked_rate(rate),
        )
        if not started:
            raise OperationConflict(
                f"the plan of operation {operation_id} is older than an hour: cancel it, and plan it again"
            )
        return Change(before, _read(connection, operation_id))


def pause_operation(connection: Connection[Any], operation_id: UUID, *, by: str) -> Change:
    """Pauses a running operation after the step that is under way. Raises OperationConflict, OperationNotFound."""
    with connection.transaction():
        before = _lock(connection, operation_id)
        _check_state(before, State.RUNNING, to="paused")
        _change(connection, "pause_operation", before, by=by)
        return Change(before, _read(connection, operation_id))


def resume_operation(connection: Connection[Any], operation_id: UUID, *, by: str) -> Change:
    """Lets a paused or failed operation go on where it was; a failed rebuild begins anew.

    Raises OperationConflict, OperationNotFound.
    """
    with connection.transaction():
        before = _lock(connection, operation_id)
        _check_state(before, State.PAUSED, State.FAILED, to="resumed")
        if before.started_at is None:
            raise OperationConflict(f"operation {operation_id} failed while it was planned: plan it again")
        _change(connection, "resume_operation", before, by=by)
        return Change(before, _read(connection, operation_id))


def set_rate(connection: Connection[Any], operation_id: UUID, rate: float, *, by: str) -> Change:
    """Changes how many items per second an operation does.

    Raises OperationConflict, OperationNotFound, OperationRefused.
    """
    checked = _checked_rate(rate)
    with connection.transaction():
        before = _lock(connection, operation_id)
        _check_state(before, State.PLANNED, State.RUNNING, State.PAUSED, to="given another rate")
        _change(connection, "set_operation_rate", before, by=by, rate=checked)
        return Change(before, _read(connection, operation_id))


def cancel_operation(connection: Connection[Any], kinds: Iterable[Kind], operation_id: UUID, *, by: str) -> Change:
    """Ends an operation: what is promised and not yet under way is taken back, what is done stays done.

    Raises OperationConflict, OperationNotFound.
    """
    with connection.transaction():
        before = _lock(connection, operation_id)
        _check_state(before, State.PLANNING, State.PLANNED, State.RUNNING, State.PAUSED, State.FAILED, to="cancelled")
        taken_back = 0
        if before.started_at is not None:
            taken_back = find_kind(kinds, before.kind).cancel(connection, before) or 0
        _change(connection, "cancel_operation", before, by=by, taken_back=taken_back)
        return Change(before, _read(connection, operation_id))


def list_operations(
    connection: Connection[Any],
    *,
    kind: str | None = None,
    subscription: str | None = None,
    states: Sequence[State] | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int = 50,
) -> Sequence[Operation]:
    """Returns operations, newest first; ``after`` is the requested_at and the id of the last one of the page before.

    A large filter or plan is ``{"left_out_bytes": its size}``: ``read_operation`` returns it.
    """
    with connection.cursor(row_factory=operation_row) as cursor:
        return cursor.execute(
            QUERIES["operations"].sql,
            {
                "kind": kind,
                "subscription": subscription,
                "states": None if states is None else [str(state) for state in states],
                "after_at": after and after[0],
                "after_id": after and after[1],
                "limit": limit,
            },
        ).fetchall()


def _lock(connection: Connection[Any], operation_id: UUID) -> Operation:
    connection.execute(QUERIES["queue_for_operation"].sql, {"operation_id": operation_id})
    connection.execute(QUERIES["lock_operation"].sql, {"operation_id": operation_id})
    return _read(connection, operation_id)


def _read(connection: Connection[Any], operation_id: UUID) -> Operation:
    return _found(read_operation(connection, operation_id), operation_id)


def _found(operation: Operation | None, operation_id: UUID) -> Operation:
    if operation is None:
        raise OperationNotFound(f"there is no operation {operation_id}")
    return operation


def _check_state(operation: Operation, *states: State, to: str) -> None:
    if operation.state not in states:
        raise OperationConflict(
            f"operation {operation.operation_id} is {operation.state}: to be {to} it must be {' or '.join(states)}"
        )


def _change(connection: Connection[Any], query: str, operation: Operation, **parameters: Any) -> bool:
    """Executes a change by the owner's function, and returns false where that does."""
    try:
        with connection.transaction():
            row = connection.execute(
                QUERIES[query].sql, {"operation_id": operation.operation_id, **parameters}
            ).fetchone()
            return row is None or row[0] is not False
    except errors.ExclusionViolation as error:
        others = connection.execute(QUERIES["active_operations"].sql).fetchall()
        raise OperationConflict(
            f"operation {operation.operation_id} must not run beside "
            + (_described(others) or "another one that was active a moment ago")
            + ": one of a kind runs for a subscription at a time, and none beside retention or an erasure. Wait for "
            "it, or cancel it"
        ) from error


def _described(others: Sequence[Sequence[Any]]) -> str:
    return ", ".join(
        f"{kind} {other}{f' of {subscription}' if subscription else ''}, which is {state}"
        for other, kind, subscription, state in others
    )


def _named(person: str) -> str:
    if not person.strip():
        raise OperationRefused("it is not said who asks for the operation")
    return readable(person)


def _checked_rate(rate: float | None) -> float | None:
    if rate is not None and not 0 < rate <= HIGHEST_RATE:
        raise OperationRefused(f"the rate is {rate:g}: it must be more than 0 and at most {HIGHEST_RATE:g} per second")
    return rate
