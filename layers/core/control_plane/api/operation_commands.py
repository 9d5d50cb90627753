"""What people do with operations: plan one, start it by its plan's hash, pause, resume, change its rate, cancel."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from pydantic import Field

from control_plane.api.access_commands import Reason
from control_plane.api.changes import Changed, Changes
from control_plane.api.http import Refused, Response
from control_plane.api.operations import KindName, operation_of, shown
from control_plane.api.routes import Call, Strict
from control_plane.api.scopes import Scope
from control_plane.model.backfill import MOST_OBSERVATIONS
from control_plane.operations import service
from control_plane.operations.backfill import pieces
from control_plane.operations.history import rebuild
from control_plane.operations.kind import Kind, Operation, OperationConflict, OperationNotFound, OperationRefused
from control_plane.operations.rows import read_operation
from control_plane.operations.service import HIGHEST_RATE, Change
from control_plane.platform.aws import RunNotStarted

FOR_ADMINS: Final = frozenset({"retention", "erasure"})
"""The kinds that delete what cannot be had again: they ask for the scope admin."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,5}")


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


class Piece(Strict):
    """A piece of a file that a backfill is to take: ``acp backfill`` cuts files into pieces."""

    observations: list[dict[str, Any]] = Field(
        min_length=1, max_length=MOST_OBSERVATIONS, description="Rows of the file, as its domain shapes them."
    )
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
        return self._change(call, call.body.reason, partial(service.pause_operation, by=call.caller.token))

    def resume(self, call: Call) -> Response:
        """Lets a paused or failed operation go on where it was."""
        return self._woken(
            self._change(call, call.body.reason, partial(service.resume_operation, by=call.caller.token))
        )

    def set_rate(self, call: Call) -> Response:
        """Changes how many items a second are done."""
        wanted: NewRate = call.body
        return self._change(
            call,
            wanted.reason,
            lambda connection, it: service.set_rate(connection, it, wanted.rate, by=call.caller.token),
        )

    def accept(self, call: Call) -> Response:
        """Accepts that a rebuild's tables differ from those in use: they are swapped in."""

        def act(connection: Connection[Any], operation_id: UUID) -> Change:
            before = read_operation(connection, operation_id)
            if before is None:
                raise OperationNotFound(f"there is no operation {operation_id}")
            rebuild.accept(connection, operation_id, accepted_by=call.caller.token)
            after = read_operation(connection, operation_id)
            assert after is not None, "it was there just now"
            return Change(before, after)

        return self._woken(self._change(call, call.body.reason, act))

    def cancel(self, call: Call) -> Response:
        """Ends an operation: what is done stays done, what is promised and not under way is taken back."""
        return self._change(
            call,
            call.body.reason,
            lambda connection, it: service.cancel_operation(connection, self.kinds(), it, by=call.caller.token),
        )

    def keep_piece(self, call: Call) -> Response:
        """Keeps a piece of a file for a backfill; the same piece once more changes nothing."""
        wanted: Piece = call.body
        file, number = call.parameters["file"], call.parameters["number"]
        if _SHA256.fullmatch(file) is None or _NUMBER.fullmatch(number) is None:
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                "A piece's path is the file's name, 64 hexadecimal digits, and a number from 1 on.",
            )
        body = json.dumps(wanted.observations, ensure_ascii=False, separators=(",", ":"))

        def act(connection: Connection[Any]) -> Changed:
            try:
                is_new = pieces.keep_piece(connection, file=file, number=int(number), body=body)
            except OperationConflict as error:
                raise Refused(HTTPStatus.CONFLICT, _sentence(error)) from error
            except OperationRefused as error:
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(error)) from error
            kept = {"file": file, "piece": int(number), "is_new": is_new}
            return Changed(kept, None, kept)

        return self.changes.make(call, act, reason=wanted.reason)

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
            before, after = None if change.before is None else _brief(change.before), _brief(change.after)
            # What is kept to answer a repeated request must be small, and must not keep whom an erasure is about.
            return Changed(shown(change.after), before, after, status, kept=after)

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
