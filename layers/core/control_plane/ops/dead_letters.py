"""Dead letters: listing them, and redriving them, which makes them pending deliveries again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.model.errors import ControlPlaneError
from control_plane.model.text import readable
from control_plane.ops.timeline import QUERIES


class RedriveError(ControlPlaneError):
    """Raised when a redrive does not say what to redrive, or who asks for it."""


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Selects the open dead letters that meet every condition; a filter without conditions selects all."""

    ids: Sequence[int] | None = None
    subscription: str | None = None
    reason: str | None = None
    """A part of the reason; upper and lower case are equal."""

    @property
    def is_empty(self) -> bool:
        """Whether the filter has no condition, and so selects every dead letter."""
        return self.ids is None and self.subscription is None and self.reason is None

    def to_dict(self) -> dict[str, Any]:
        """Returns the conditions as JSON; one that is not set is left out."""
        conditions = {
            "ids": None if self.ids is None else list(self.ids),
            "subscription": self.subscription,
            "reason": self.reason,
        }
        return {name: value for name, value in conditions.items() if value is not None}

    def to_parameters(self) -> dict[str, Any]:
        """Returns the conditions as parameters of a query; one that is not set is null."""
        return {"ids": None, "subscription": None, "reason": None} | self.to_dict()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up on, for one subscription."""

    id: int
    subscription: str
    topic: str
    event_id: UUID
    event_type: str
    trace_id: UUID
    operation_id: UUID | None
    """The operation whose delivery failed; None for the live flow."""
    delivery_attempts: int
    reason: str
    dead_lettered_at: datetime
    age_seconds: float
    """For how long the message has been a dead letter."""
    resolution: str | None
    """``redriven`` or ``discarded``; None while it is open."""
    resolved_at: datetime | None
    resolved_by: str | None


@dataclass(frozen=True, slots=True)
class RedriveReport:
    """What a redrive did, or would do."""

    dry_run: bool
    operation_id: UUID | None
    """The operation that the new deliveries belong to; None where there are none."""
    redriven: Mapping[str, int] = field(default_factory=dict)
    """How many dead letters of each subscription are pending again."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """How many dead letters of each subscription stay as they are because the subscription is not active."""
    not_open: Sequence[int] = ()
    """Requested ids that belong to no open dead letter, or to one that the filter excludes."""

    @property
    def complaints(self) -> Sequence[str]:
        """One sentence for each thing that was not redriven, with the remedy."""
        inactive = [
            f"{count} dead {'letter' if count == 1 else 'letters'} of subscription {name} "
            f"{'stays' if count == 1 else 'stay'}: it is not active. Deploy a template that has it, run "
            "MigrationFunction, and redrive again"
            for name, count in self.refused.items()
        ]
        unknown = [f"no open dead letter {number} fits: was it redriven already?" for number in self.not_open]
        return [*inactive, *unknown]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values, except ``operation_id``, which is a UUID."""
        return asdict(self)


def read_dead_letters(
    connection: Connection[Any], chosen: DeadLetterFilter | None = None, *, limit: int, with_resolved: bool = False
) -> Sequence[DeadLetter]:
    """Returns the dead letters that the filter selects, newest first; resolved ones only ``with_resolved``."""
    parameters = (chosen or DeadLetterFilter()).to_parameters()
    with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(
            QUERIES["dead_letters"].sql, parameters | {"limit": limit, "with_resolved": with_resolved}
        ).fetchall()


def redrive(
    connection: Connection[Any],
    chosen: DeadLetterFilter,
    *,
    requested_by: str,
    reason: str = "",
    everything: bool = False,
    dry_run: bool = False,
) -> RedriveReport:
    """Makes the open dead letters that the filter selects pending again, as one operation in one transaction.

    Each becomes a pending delivery of that operation, without earlier attempts; its failures stay on record. If two
    redrives at once select the same letter, it is redriven once. ``connection`` is the owner's, in autocommit mode.
    Raises RedriveError for an empty filter without ``everything``, and for an empty ``requested_by``.
    """
    if chosen.is_empty and not everything:
        raise RedriveError("it is not said what to redrive: name ids, a subscription, a reason, or ask for everything")
    if not requested_by.strip():
        raise RedriveError("it is not said who asks for the redrive: requested_by is empty")
    with connection.transaction():
        found = connection.execute(QUERIES["lock_dead_letters"].sql, chosen.to_parameters()).fetchall()
        letters = {subscription: ids for subscription, is_active, ids in found if is_active}
        redriven = {subscription: len(ids) for subscription, ids in letters.items()}
        operation_id = None
        if letters and not dry_run:
            operation_id = uuid4()
            _redrive(connection, operation_id, letters, chosen, requested_by=readable(requested_by), reason=reason)
    open_ids = {number for _, _, ids in found for number in ids}
    return RedriveReport(
        dry_run,
        operation_id,
        redriven=redriven,
        refused={subscription: len(ids) for subscription, is_active, ids in found if not is_active},
        not_open=[number for number in dict.fromkeys(chosen.ids or ()) if number not in open_ids],
    )


def _redrive(
    connection: Connection[Any],
    operation_id: UUID,
    letters: Mapping[str, Sequence[int]],
    chosen: DeadLetterFilter,
    *,
    requested_by: str,
    reason: str,
) -> None:
    deliveries = connection.execute(
        QUERIES["redrive_dead_letters"].sql,
        {
            "operation_id": operation_id,
            "ids": [number for ids in letters.values() for number in ids],
            "requested_by": requested_by,
        },
    ).fetchone()
    assert deliveries is not None, "an aggregate has a row"
    progress = {
        "dead_letters": {subscription: len(ids) for subscription, ids in letters.items()},
        "deliveries": deliveries[0],
    }
    connection.execute(
        QUERIES["record_redrive"].sql,
        {
            "operation_id": operation_id,
            "filter": json.dumps(chosen.to_dict()),
            "progress": json.dumps(progress),
            "requested_by": requested_by,
            "reason": readable(reason),
        },
    )
