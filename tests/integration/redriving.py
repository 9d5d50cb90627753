"""Redrives dead letters by the operation, planned and done within one call."""

from psycopg import Connection

from control_plane.operations.engine import Engine
from control_plane.operations.kind import Operation, State
from control_plane.operations.redrive import Redrive
from control_plane.operations.rows import read_operation
from control_plane.operations.service import request_operation, start_operation
from control_plane.ops.dead_letters import DeadLetterFilter
from control_plane.platform.telemetry import Telemetry


def redrive(owner: Connection[tuple[object, ...]], chosen: DeadLetterFilter, *, by: str = "kim") -> Operation:
    """Redrives what the filter selects, everything where it has no condition; returns the operation, which is done."""
    kinds = [Redrive()]
    wanted = {"everything": True} if chosen.is_empty else chosen.to_dict()
    asked = request_operation(owner, kinds, kind="redrive", wanted=wanted, requested_by=by, reason="mended").after
    planned = _worked(owner, asked)
    start_operation(owner, asked.operation_id, plan_hash=str(planned.plan_hash), started_by=by, reason="it is mended")
    done = _worked(owner, asked)
    assert done.state is State.DONE, done
    return done


def _worked(owner: Connection[tuple[object, ...]], operation: Operation) -> Operation:
    engine = Engine(owner, [Redrive()], Telemetry("operations"))
    while engine.work(only=operation.operation_id):
        pass
    found = read_operation(owner, operation.operation_id)
    assert found is not None
    return found
