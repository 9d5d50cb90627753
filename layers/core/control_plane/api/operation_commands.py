"""What people do with operations: plan one, start it by its plan's hash, pause, resume, change its rate, cancel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from pydantic import Field

from control_plane.api.access_commands import Reason
from control_plane.api.changes import Changed, Changes
from control_plane.api.http import Refused, Response
from control_plane.api.operations import KindName, operation_of
from control_plane.api.routes import Call, Strict
from control_plane.api.scopes import Scope
from control_plane.operations import service
from control_plane.operations.history.rebuild import accept
from control_plane.operations.kind import Kind, Operation, OperationConflict, OperationNotFound, OperationRefused
from control_plane.operations.rows import read_operation
from control_plane.operations.service import HIGHEST_RATE, Change
from control_plane.platform.aws import RunNotStarted

FOR_ADMINS: Final = frozenset({"retention", "erasure"})
"""The kinds that delete what cannot be had again: they ask for the scope admin."""


class WantedOperation(Strict):
    """An operation that is to be planned."""

    kind: KindName
    filter: dict[str, Any] = Field(description="What it is about; each kind has its own fields (docs/operations.md).")
    rate: float | None = Field(None, gt=0, le=HIGHEST_RATE, description="Items per second; without it, the kind's own.")
    reason: Reason


class Start(Strict):
    """The plan that is to be carried out, by its hash."""

    plan_hash: str = Field(pattern=r"^[0-9a-f]{64}$", description="The plan's hash, as the operation shows it.")
    rate: float | None = Field(None, gt=0, le=HIGHEST_RATE, description="Items per second; without it, the plan's.")
    reason: Reason


class NewRate(Strict):
    """Another rate."""

    rate: float = Field(gt=0, le=HIGHEST_RATE, description="Items per second.")
    reason: Reason


@dataclass(frozen=True, slots=True)
class Operations:
    """What the commands need: the way to change something, the kinds there are, and how to wake OperationsFunction."""

    changes: Changes
    kinds: Callable[[], Sequence[Kind]]
    wake: Callable[[], None]

    def plan(self, call: Call) -> Response:
        """Asks for a plan: what would be done, how many, how long. Nothing is done until it is started."""
        wanted: WantedOperation = call.body
        _check_scope(call, wanted.kind)
        return self._woken(
            self._make(
                call,
                lambda connection: service.request_operation(
                    connection,
                    self.kinds(),
                    kind=wanted.kind,
                    wanted=wanted.filter,
                    requested_by=call.caller.token,
                    reason=wanted.reason,
                    rate=wanted.rate,
                ),
                wanted.reason,
                status=HTTPStatus.ACCEPTED,
            )
        )

    def start(self, call: Call) -> Response:
        """Starts what was planned, if the plan is still the one that the hash names."""
        wanted: Start = call.body

        def act(connection: Connection[Any]) -> Change:
            _check_scope_of(connection, call)
            return service.start_operation(
                connection,
                operation_of(call),
                plan_hash=wanted.plan_hash,
                started_by=call.caller.token,
                reason=wanted.reason,
                rate=wanted.rate,
            )

        return self._woken(self._make(call, act, wanted.reason, status=HTTPStatus.ACCEPTED))

    def pause(self, call: Call) -> Response:
        """Pauses an operation after the step that is under way."""
        return self._change(call, call.body.reason, service.pause_operation)

    def resume(self, call: Call) -> Response:
        """Lets a paused or failed operation go on where it was."""
        return self._woken(self._change(call, call.body.reason, service.resume_operation))

    def set_rate(self, call: Call) -> Response:
        """Changes how many items a second are done."""
        wanted: NewRate = call.body
        return self._change(call, wanted.reason, lambda connection, it: service.set_rate(connection, it, wanted.rate))

    def cancel(self, call: Call) -> Response:
        """Ends an operation: what is done stays done, what is promised and not under way is taken back."""
        return self._change(
            call,
            call.body.reason,
            lambda connection, it: service.cancel_operation(connection, self.kinds(), it),
        )

    def accept(self, call: Call) -> Response:
        """Accepts that a rebuild's tables differ from those in use, which they replace then."""

        def act(connection: Connection[Any], operation_id: UUID) -> Change:
            before = _found(connection, operation_id)
            accept(connection, operation_id, accepted_by=call.caller.token)
            return Change(before, _found(connection, operation_id))

        return self._woken(self._change(call, call.body.reason, act))

    def _change(self, call: Call, reason: str, command: Callable[[Connection[Any], Any], Change]) -> Response:
        def act(connection: Connection[Any]) -> Change:
            _check_scope_of(connection, call)
            return command(connection, operation_of(call))

        return self._make(call, act, reason)

    def _make(
        self,
        call: Call,
        command: Callable[[Connection[Any]], Change],
        reason: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> Response:
        def act(connection: Connection[Any]) -> Changed:
            try:
                change = command(connection)
            except OperationNotFound as error:
                raise Refused(HTTPStatus.NOT_FOUND, _sentence(error)) from error
            except OperationConflict as error:
                raise Refused(HTTPStatus.CONFLICT, _sentence(error)) from error
            except OperationRefused as error:
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(error)) from error
            before = None if change.before is None else _brief(change.before)
            return Changed(change.after.to_dict(), before, _brief(change.after), status)

        return self.changes.make(call, act, reason=reason)

    def _woken(self, response: Response) -> Response:
        """Wakes OperationsFunction, which comes each minute anyway: where it cannot be woken, the log says why."""
        try:
            self.wake()
        except RunNotStarted as error:
            return replace(response, cause=error)
        return response


def _check_scope(call: Call, kind: str) -> None:
    if kind in FOR_ADMINS and Scope.ADMIN not in call.caller.scopes:
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"An operation of the kind {kind} asks for the scope admin, which the token {call.caller.token} does not "
            "have.",
        )


def _check_scope_of(connection: Connection[Any], call: Call) -> None:
    operation = read_operation(connection, operation_of(call))
    if operation is not None:
        _check_scope(call, operation.kind)


def _found(connection: Connection[Any], operation_id: UUID) -> Operation:
    operation = read_operation(connection, operation_id)
    if operation is None:
        raise OperationNotFound(f"there is no operation {operation_id}")
    return operation


def _brief(operation: Operation) -> Mapping[str, Any]:
    """Returns what the audit keeps: the row itself keeps the filter and the plan, which may be large."""
    return {
        "operation_id": operation.operation_id,
        "kind": operation.kind,
        "subscription": operation.subscription,
        "state": operation.state,
        "plan_hash": operation.plan_hash,
        "rate": operation.rate,
        "done": operation.done,
        "skipped": operation.skipped,
    }


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
