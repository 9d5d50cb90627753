"""Dead letters of every kind: listing them, discarding them. The operation ``redrive`` sends them again."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.model.errors import ControlPlaneError
from control_plane.model.text import readable
from control_plane.ops.timeline import QUERIES


class DiscardError(ControlPlaneError):
    """Raised when a discard does not say what to discard, why, or who asks for it."""


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Selects the open dead letters that meet every condition; a filter without conditions selects all."""

    ids: Sequence[int] | None = None
    subscription: str | None = None
    reason: str | None = None
    """A part of the reason; upper and lower case are equal."""
    kind: str | None = None
    """``relay``, ``consumer`` or ``invocation``."""
    since: datetime | None = None
    """Selects what was dead-lettered at this instant or later."""
    until: datetime | None = None
    """Selects what was dead-lettered before this instant."""
    event_id: UUID | None = None
    trace_id: UUID | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the filter has no condition, and so selects every dead letter."""
        return all(value is None for value in self.to_parameters().values())

    def to_dict(self) -> dict[str, Any]:
        """Returns the conditions as JSON; one that is not set is left out."""
        return {name: _as_json(value) for name, value in self.to_parameters().items() if value is not None}

    def to_parameters(self) -> dict[str, Any]:
        """Returns the conditions as parameters of a query; one that is not set is null."""
        return asdict(self) | {"ids": None if self.ids is None else list(self.ids)}


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up on: by the relay, by a consumer, or by Lambda for a scheduled invocation."""

    id: int
    subscription: str | None
    """None for a failed invocation."""
    topic: str | None
    event_id: UUID | None
    """None where the message does not say; a letter that cannot be redriven may say what is not so."""
    event_type: str | None
    trace_id: UUID | None
    operation_id: UUID | None
    """The operation whose delivery failed; None for the live flow."""
    delivery_attempts: int
    """How often it was tried; for a consumer's letter how often its queue gave it out, as far as SQS says."""
    reason: str
    dead_lettered_at: datetime
    age_seconds: float
    """For how long the message has been a dead letter."""
    resolution: str | None
    """``redriven`` or ``discarded``; None while it is open."""
    resolved_at: datetime | None
    resolved_by: str | None
    kind: str = "relay"
    """Who gave up: ``relay``, ``consumer`` or ``invocation``."""
    queue: str | None = None
    """The dead-letter queue that it was taken out of; None for the relay's."""
    message_id: str | None = None
    sent_at: datetime | None = None
    body_bytes: int | None = None
    body_start: bytes | None = None
    """The first 200 bytes of the body; :func:`read_content` has all of it."""
    is_redrivable: bool = True
    """Whether the outbox holds its message; what it does not hold cannot be sent again."""
    resolved_because: str | None = None
    redriven_by: UUID | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the letter as JSON values, except ids and instants, which are UUIDs and datetimes."""
        start = self.body_start
        return asdict(self) | {"body_start": None if start is None else start.decode("utf-8", "replace")}


@dataclass(frozen=True, slots=True)
class LetterContent:
    """What a dead letter's message held; all is None for one of the relay's, whose message the outbox has."""

    body: bytes | None
    """As it came, readable or not."""
    attributes: Mapping[str, Any] | None
    failures: Sequence[Mapping[str, Any]]
    """What its consumer recorded of each failure: ``attempt``, ``failed_at``, ``error``; the newest ten."""


@dataclass(frozen=True, slots=True)
class DiscardReport:
    """What a discard did, or would do."""

    dry_run: bool
    operation_id: UUID | None
    """The operation that is on record for it; None where nothing was discarded."""
    discarded: Mapping[str, int] = field(default_factory=dict)
    """How many dead letters of each subscription are discarded; of failed invocations by their queue."""
    not_open: Sequence[int] = ()
    """Requested ids that belong to no open dead letter, or to one that the filter excludes."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values, except ``operation_id``, which is a UUID."""
        return asdict(self)


def read_dead_letters(
    connection: Connection[Any],
    chosen: DeadLetterFilter | None = None,
    *,
    limit: int,
    with_resolved: bool = False,
    below: int | None = None,
) -> Sequence[DeadLetter]:
    """Returns a page of the dead letters that the filter selects, newest first; resolved ones only ``with_resolved``.

    ``below`` is the id of the last letter of the page before.
    """
    parameters = (chosen or DeadLetterFilter()).to_parameters()
    with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(
            QUERIES["dead_letters"].sql, parameters | {"limit": limit, "with_resolved": with_resolved, "below": below}
        ).fetchall()


def count_dead_letters(
    connection: Connection[Any], chosen: DeadLetterFilter | None = None, *, most: int, with_resolved: bool = False
) -> int:
    """Returns how many dead letters the filter selects, counted up to ``most``."""
    parameters = (chosen or DeadLetterFilter()).to_parameters()
    row = connection.execute(
        QUERIES["count_dead_letters"].sql, parameters | {"limit": most, "with_resolved": with_resolved}
    ).fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0])


def read_content(connection: Connection[Any], letter_id: int) -> LetterContent | None:
    """Returns what a dead letter's message held, or None if there is no such letter."""
    with connection.cursor(row_factory=class_row(LetterContent)) as cursor:
        return cursor.execute(QUERIES["dead_letter_content"].sql, {"id": letter_id}).fetchone()


def discard(
    connection: Connection[Any],
    chosen: DeadLetterFilter,
    *,
    requested_by: str,
    reason: str,
    everything: bool = False,
    dry_run: bool = False,
) -> DiscardReport:
    """Discards the open dead letters that the filter selects, as one operation; they stay on record.

    ``connection`` may be acp_command's. Raises DiscardError for an empty filter without ``everything``, and for an
    empty ``requested_by`` or ``reason``.
    """
    if chosen.is_empty and not everything:
        raise DiscardError("it is not said what to discard: name ids, a subscription, a reason, or ask for everything")
    if not requested_by.strip():
        raise DiscardError("it is not said who asks for the discard: requested_by is empty")
    if not reason.strip():
        raise DiscardError("it is not said why they are discarded: reason is empty")
    with connection.transaction():
        found = connection.execute(QUERIES["select_dead_letters"].sql, chosen.to_parameters()).fetchall()
        open_ids = {number for _, _, ids in found for number in ids}
        operation_id, gone = None, open_ids
        if open_ids and not dry_run:
            row = connection.execute(
                QUERIES["discard_dead_letters"].sql,
                {
                    "ids": sorted(open_ids),
                    "reason": readable(reason),
                    "requested_by": readable(requested_by),
                    "filter": json.dumps(chosen.to_dict()),
                },
            ).fetchone()
            assert row is not None, "the function has a row"
            operation_id, gone = row[0], set(row[1])  # Somebody else may have been first with some.
    discarded: Counter[str] = Counter()
    for _, name, ids in found:
        discarded[name] += len(gone.intersection(ids))
    return DiscardReport(
        dry_run,
        operation_id,
        discarded=dict(+discarded),
        not_open=[number for number in dict.fromkeys(chosen.ids or ()) if number not in gone],
    )
