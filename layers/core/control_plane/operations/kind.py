"""What an operation is, and what each kind of operation brings: its filter, plan, steps and cancelling."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

from psycopg import Connection

from control_plane.model.errors import ControlPlaneError
from control_plane.model.ids import canonical_json

MOST_SAMPLED: Final = 5
"""How many examples a plan shows."""


class State(StrEnum):
    """Where an operation stands; docs/architecture.md draws the machine, and the database refuses any other change."""

    PLANNING = "planning"
    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class OperationRefused(ControlPlaneError):
    """Raised when what is asked for cannot be done at all: a bad filter, an unknown kind, a plan that must not be."""


class OperationNotFound(ControlPlaneError):
    """Raised when there is no operation of this id."""


class OperationConflict(ControlPlaneError):
    """Raised when an operation is not in a state for this, its plan is another one or too old, or another one is
    active that it must not run beside.
    """


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of ``operations``."""

    operation_id: UUID
    kind: str
    subscription: str
    """The subscription, or consumer, that it is about; empty for all. One operation per kind and subscription runs."""
    filter: Mapping[str, Any]
    plan: Mapping[str, Any]
    """While the state is ``planning``, what the kind's last call of ``plan`` returned; its notes to itself included."""
    plan_hash: str | None
    state: State
    progress: Mapping[str, Any]
    """``total``, ``done``, ``skipped`` and the kind's own ``cursor``; empty until it is planned."""
    rate: float | None
    """Items per second; None where it is not paced."""
    requested_by: str
    reason: str
    requested_at: datetime
    planned_at: datetime | None
    started_by: str | None
    started_at: datetime | None
    finished_at: datetime | None
    next_step_at: datetime
    last_step_at: datetime | None
    failures: int
    """How many attempts at a step have failed since the last one that did not."""
    error: str | None
    """Why the last attempt at a step failed; it stays with an operation that has failed."""
    is_stalled: bool
    """Whether it should be at work, and nothing has been done for five minutes."""

    @property
    def total(self) -> int:
        """How many items the plan has."""
        return int(self.progress.get("total", 0))

    @property
    def done(self) -> int:
        """How many items are done."""
        return int(self.progress.get("done", 0))

    @property
    def skipped(self) -> int:
        """How many items were in the plan, and were gone or settled otherwise when their turn came."""
        return int(self.progress.get("skipped", 0))

    @property
    def cursor(self) -> Mapping[str, Any]:
        """Where the next step goes on, as the kind's last step left it; empty before the first."""
        return dict(self.progress.get("cursor") or {})

    def to_dict(self) -> dict[str, Any]:
        """Returns the operation as JSON values, except instants and its id, which are datetimes and a UUID."""
        return asdict(self) | {"total": self.total, "done": self.done, "skipped": self.skipped}


@dataclass(frozen=True, slots=True)
class Planned:
    """What a step of planning has come to."""

    plan: Mapping[str, Any]
    """JSON that tells a person what will be done; ``total`` is required of a complete plan: how many items there are.
    By convention ``sample`` holds at most MOST_SAMPLED examples, ``estimated_seconds`` says how long it takes at the
    rate, and ``effect`` in a sentence what it does to the live flow. Until it is complete it may hold the kind's notes.
    """
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step has done; the engine adds it to the progress in the same transaction."""

    done: int
    skipped: int
    cursor: Mapping[str, Any] = field(default_factory=dict)
    """JSON that replaces the cursor."""
    is_finished: bool = False
    next_at: datetime | None = None
    """When the next step is due, for a paced kind; None for at once."""


class Kind(Protocol):
    """One kind of operation. The service uses ``parse`` and ``cancel`` of it, the engine ``plan`` and ``step``.

    ``plan`` and ``step`` run as acp_maintain, ``cancel`` as acp_command: what these roles may not do themselves, the
    owner's functions do. None of them begins or ends a transaction, and none writes to ``operations``.
    """

    @property
    def name(self) -> str:
        """The kind as the table ``operations`` names it."""

    def parse(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the filter in its canonical JSON form, with absolute times. Raises OperationRefused.

        A filter that holds ``subscription`` makes the operation that subscription's.
        """

    def plan(self, connection: Connection[Any], operation: Operation) -> Planned:
        """Does one bounded step of planning, in the caller's transaction, under the operation's row lock.

        ``operation.plan`` is what the call before returned; empty at first. Raises OperationRefused.
        """

    def step(self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float) -> Stepped:
        """Does at most ``most`` items in about ``seconds``, in the caller's transaction, under the row lock.

        The engine writes the progress in the same transaction, so that a kill loses nothing and doubles nothing. Raises
        OperationRefused where it must not go on; any other error is tried again, a few times.
        """

    def cancel(self, connection: Connection[Any], operation: Operation) -> int | None:
        """Takes back what is promised and not yet under way, in the caller's transaction, under the row lock.

        Returns how many items that were done are so no longer; None is none.
        """


@runtime_checkable
class PreparingKind(Kind, Protocol):
    """A kind whose steps wait for others, such as another function: they do so outside the transaction."""

    def prepare(self, operation: Operation, *, most: int, seconds: float) -> Any:
        """Does what must be waited for, at most ``most`` items in about ``seconds``, and returns what became of it.

        It runs under the operation's lease and holds no lock: the operation may be paused or cancelled meanwhile, or
        the process killed. The result is lost then, so what is done must be such that it can be done again. Raises as
        ``step`` does.
        """

    def step(
        self, connection: Connection[Any], operation: Operation, *, most: int, seconds: float, prepared: Any = None
    ) -> Stepped:
        """Records what was ``prepared`` for the operation as it stands."""


def hash_of(kind: str, chosen: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Returns the SHA-256 over the canonical JSON of kind, filter and plan: ``start`` asks for it."""
    return hashlib.sha256(canonical_json({"kind": kind, "filter": chosen, "plan": plan}, field="plan")).hexdigest()


def find_kind(kinds: Iterable[Kind], name: str) -> Kind:
    """Returns the kind of this name. Raises OperationRefused where there is none."""
    known = {kind.name: kind for kind in kinds}
    if name not in known:
        raise OperationRefused(f"there is no kind of operation {name!r}: it must be one of {', '.join(sorted(known))}")
    return known[name]
