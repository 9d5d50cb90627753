"""Makes operations as the engine hands them to a kind."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from control_plane.operations.kind import Operation, State

REQUESTED_AT = datetime(2026, 1, 5, 14, 32, tzinfo=UTC)


def operation_of(
    kind: str, chosen: Mapping[str, Any], *, plan: Mapping[str, Any] | None = None, rate: float | None = None
) -> Operation:
    """Returns a running operation of this filter and plan."""
    return Operation(
        operation_id=UUID(int=7),
        kind=kind,
        subscription="",
        filter=chosen,
        plan=plan or {},
        plan_hash=None,
        state=State.RUNNING,
        progress={} if plan is None else {"total": plan["total"]},
        rate=rate,
        requested_by="Ada",
        reason="",
        requested_at=REQUESTED_AT,
        planned_at=None,
        started_by=None,
        started_at=None,
        finished_at=None,
        next_step_at=REQUESTED_AT,
        last_step_at=None,
        failures=0,
        error=None,
        is_stalled=False,
    )
