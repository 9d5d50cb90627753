"""The engine: takes due operations under a lease, plans them and makes their steps, each in its own transaction."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.model.text import readable
from control_plane.operations.kind import (
    Kind,
    Operation,
    OperationRefused,
    PreparingKind,
    State,
    find_kind,
    hash_of,
)
from control_plane.operations.rows import QUERIES, as_text, fetch_operation
from control_plane.platform.conflicts import retry_conflicts
from control_plane.platform.telemetry import Telemetry

LEASE_SECONDS: Final = 30.0
"""After a kill, how long its operation waits for the next engine."""
PREPARE_SECONDS: Final = 45.0
"""How much longer the lease is while a step is prepared: an answer is waited for no longer."""
STEP_ITEMS: Final = 2000
STEP_SECONDS: Final = 1.0
"""What a step may take: a command waits for the step that is under way, but not for what is prepared for one."""
TURN_SECONDS: Final = 5.0
"""For how long one operation makes steps while others wait."""
RESERVE_SECONDS: Final = 40.0
"""No step starts when less time than this is left: a step may wait for a source."""
POLL_SECONDS: Final = 1.0
"""How often a lingering engine looks for what was started meanwhile."""
MOST_FAILURES: Final = 6
"""How many attempts at a step may fail, one after the other, before the operation is given up."""
DELAY_SECONDS: Final = 2.0
"""Before the second attempt at a step; it doubles with each one."""


@dataclass(frozen=True, slots=True)
class OperationsReport:
    """What one run did, and what it left."""

    steps: int = 0
    finished: int = 0
    """Operations that are done."""
    failed: int = 0
    """Operations that were given up."""
    active: int = 0
    """Operations that are planning, running or paused when the run ends."""
    stalled: int = 0
    """Those of them that should be at work and have not been for five minutes, when the run began."""

    def to_dict(self) -> dict[str, int]:
        """As OperationsFunction returns it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Claim:
    operation_id: UUID
    fence: int
    kind: str


class Engine:
    """Works on operations of the kinds that it is given. Several at once share the work."""

    def __init__(
        self,
        connection: Connection[Any],
        kinds: Sequence[Kind],
        telemetry: Telemetry,
        *,
        lease_seconds: float = LEASE_SECONDS,
        step_items: int = STEP_ITEMS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``connection`` is in autocommit mode, as acp_maintain or the owner."""
        self._connection = connection
        self._kinds = kinds
        self._names = [kind.name for kind in kinds]
        self._telemetry = telemetry
        self._lease_seconds = lease_seconds
        self._step_items = step_items
        self._monotonic = monotonic
        self.steps = 0
        self.finished = 0
        self.failed = 0

    def work(self, *, only: UUID | None = None, until: Callable[[], bool] = lambda: False) -> bool:
        """Takes one due operation and makes its steps, for a turn or until it waits, ends or ``until`` holds.

        Returns whether there was one. Raises psycopg.Error where the session is lost.
        """
        claim = self._claim(only)
        if claim is None:
            return False
        ends_at = self._monotonic() + TURN_SECONDS
        try:
            while self._step(claim):
                if until() or self._monotonic() >= ends_at:
                    break
        except Exception as error:
            if self._connection.closed:
                raise  # Postgres is away, which is not the operation's fault.
            self._failed(claim, error)
        else:
            self._connection.execute(
                QUERIES["release_operation"].sql, {"operation_id": claim.operation_id, "fence": claim.fence}
            )
        return True

    def next_step_in(self) -> float | None:
        """Returns in how many seconds the next step is due; None if nothing is planning or running."""
        row = self._connection.execute(QUERIES["next_step_at"].sql, {"kinds": self._names}).fetchone()
        return None if row is None or row[0] is None else float(row[0])

    def _claim(self, only: UUID | None) -> _Claim | None:
        row = self._connection.execute(
            QUERIES["claim_operation"].sql,
            {"kinds": self._names, "only": only, "lease_seconds": self._lease_seconds},
        ).fetchone()
        return None if row is None else _Claim(*row)

    def _step(self, claim: _Claim) -> bool:
        """Makes one step, with the record of it, in one transaction; returns whether another one is due at once.

        What the step has to wait for is done before, under the lease alone: a pause and a cancel act at once.
        """
        kind, prepared = find_kind(self._kinds, claim.kind), None
        if isinstance(kind, PreparingKind):
            lease = {"lease_seconds": self._lease_seconds + PREPARE_SECONDS}
            operation = fetch_operation(self._connection, "operation_to_prepare", asdict(claim) | lease)
            if operation is None:
                return False
            if operation.state is State.RUNNING:
                prepared = kind.prepare(operation, most=self._step_items, seconds=STEP_SECONDS)
        return retry_conflicts(lambda: self._step_once(claim, kind, prepared))

    def _step_once(self, claim: _Claim, kind: Kind, prepared: Any) -> bool:
        with self._connection.transaction():
            self._connection.execute(QUERIES["queue_for_operation"].sql, {"operation_id": claim.operation_id})
            operation = fetch_operation(self._connection, "claimed_operation", asdict(claim))
            if operation is None:
                return False
            planning = operation.state is State.PLANNING
            goes_on = self._plan(kind, operation) if planning else self._run(kind, operation, prepared)
        self.steps += 1
        return goes_on

    def _plan(self, kind: Kind, operation: Operation) -> bool:
        planned = kind.plan(self._connection, operation)
        plan_hash = hash_of(operation.kind, operation.filter, planned.plan) if planned.is_complete else None
        progress = {"total": planned.plan["total"], "done": 0, "skipped": 0} if planned.is_complete else {}
        self._connection.execute(
            QUERIES["record_plan"].sql,
            {
                "operation_id": operation.operation_id,
                "plan": as_text(planned.plan),
                "plan_hash": plan_hash,
                "progress": as_text(progress),
                "lease_seconds": self._lease_seconds,
            },
        )
        if planned.is_complete:
            self._log(operation, State.PLANNED, progress)
        return not planned.is_complete

    def _run(self, kind: Kind, operation: Operation, prepared: Any) -> bool:
        more = {"prepared": prepared} if isinstance(kind, PreparingKind) else {}
        stepped = kind.step(self._connection, operation, most=self._step_items, seconds=STEP_SECONDS, **more)
        progress = dict(operation.progress) | {
            "done": operation.done + stepped.done,
            "skipped": operation.skipped + stepped.skipped,
            "cursor": dict(stepped.cursor),
        }
        self._connection.execute(
            QUERIES["record_step"].sql,
            {
                "operation_id": operation.operation_id,
                "progress": as_text(progress),
                "is_finished": stepped.is_finished,
                "next_at": stepped.next_at,
                "lease_seconds": self._lease_seconds,
            },
        )
        if stepped.is_finished:
            self.finished += 1
            self._telemetry.count("OperationsFinished", 1)
            self._log(operation, State.DONE, progress)
        return not stepped.is_finished and stepped.next_at is None

    def _failed(self, claim: _Claim, error: Exception) -> None:
        text = str(error).strip() or type(error).__name__
        is_last = isinstance(error, OperationRefused)
        row = self._connection.execute(
            QUERIES["record_failed_step"].sql,
            asdict(claim)
            | {
                "error": readable(text if is_last else f"{type(error).__name__}: {text}"),
                "is_last": is_last,
                "most_failures": MOST_FAILURES,
                "delay_seconds": DELAY_SECONDS,
            },
        ).fetchone()
        state = row[0] if row is not None else "superseded"
        if state == State.FAILED:
            self.failed += 1
            self._telemetry.count("OperationsFailed", 1)
        self._telemetry.logger.error(
            "a step failed",
            operation_id=str(claim.operation_id),
            state=state,
            error=text,
            exc_info=None if is_last else error,
        )

    def _log(self, operation: Operation, state: State, counts: Mapping[str, Any]) -> None:
        self._telemetry.logger.info(
            "operation",
            operation_id=str(operation.operation_id),
            kind=operation.kind,
            state=str(state),
            total=counts["total"],
            done=counts["done"],
            skipped=counts["skipped"],
        )


def run_operations(
    connection: Connection[Any],
    kinds: Sequence[Kind],
    telemetry: Telemetry,
    remaining_seconds: Callable[[], float],
    *,
    sleep: Callable[[float], None] = time.sleep,
    lease_seconds: float = LEASE_SECONDS,
) -> OperationsReport:
    """Works on all operations, and lingers while one is planning or running. Raises psycopg.Error.

    ``connection`` is in autocommit mode.
    """
    engine = Engine(connection, kinds, telemetry, lease_seconds=lease_seconds)
    stalled = _count(connection)[1]
    telemetry.count("OperationsStalled", stalled)
    connection.execute(QUERIES["cancel_old_plans"].sql)
    connection.execute(QUERIES["forget_items"].sql)

    def is_over() -> bool:
        return remaining_seconds() < RESERVE_SECONDS

    while not is_over():
        if engine.work(until=is_over):
            continue
        due_in = engine.next_step_in()
        if due_in is None:
            break
        sleep(min(max(due_in, 0.05), POLL_SECONDS))
    active = _count(connection)[0]
    telemetry.count("OperationsActive", active)
    return OperationsReport(engine.steps, engine.finished, engine.failed, active, stalled)


def _count(connection: Connection[Any]) -> tuple[int, int]:
    row = connection.execute(QUERIES["count_operations"].sql).fetchone()
    assert row is not None, "an aggregate has a row"
    return row[0], row[1]
