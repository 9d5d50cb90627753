"""Claims due deliveries under a token and a lease, as typed rows from which messages are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg import Connection

from control_plane.model.lifecycle import Exhausted, MessageFault
from control_plane.outbox.publisher import MAX_BATCH_BYTES, Message, make_message
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)
BEGINNING: Final = datetime.fromtimestamp(0, UTC)
"""An instant that is earlier than any delivery's due time."""
LEASE_RAN_OUT: Final = "the lease ran out: the relay did not report what became of this attempt"
LEASES_PER_ATTEMPT: Final = 4
"""How many lost leases of a suspect count as one attempt. With this value, ten relays that are killed while they hold a
message cost it two of its five attempts."""


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How much of one subscription to claim, and from which instant on."""

    row_limit: int
    byte_limit: int
    suspect_limit: int
    """Most suspect messages to claim, in addition to ``row_limit``."""
    since: datetime = BEGINNING
    """Deliveries that were due before this instant are left out."""


class ClaimedRow(NamedTuple):
    """What became of one row that a claim took."""

    fate: str
    """``claimed``: to be sent; ``exhausted``: to be dead-lettered; ``lost``: not claimed, but suspect from now on."""
    outbox_id: int
    subscription: str
    operation_id: UUID | None
    due_at: datetime
    delivery_attempts: int
    is_suspect: bool
    last_error: str | None
    event_id: str
    trace_id: str
    topic: str
    event_type: str
    schema_version: int
    body: str | None
    """The message as stored; None unless it is to be sent."""


@dataclass(frozen=True)
class Claim:
    """The rows that were taken under one token."""

    token: UUID
    rows: Sequence[ClaimedRow] = ()
    traces_ratio: float = 0
    """The share of events whose spans are exported."""

    @cached_property
    def deliveries(self) -> Sequence["ClaimedDelivery"]:
        """The deliveries that this claim has to settle.

        They are made on first use, so that the deciding thread makes them instead of the thread that speaks with
        Postgres.
        """
        return [_delivery(row, self.token, self.traces_ratio) for row in self.rows if row.fate != "lost"]


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A claimed message; ``verdict`` is set if it must not be sent, and says why."""

    message: Message
    verdict: MessageFault | Exhausted | None


def open_subscriptions(connection: Connection[Any]) -> tuple[datetime, Sequence[str]]:
    """Returns the database's time, and the subscriptions that have pending deliveries."""
    row = connection.execute(QUERIES["open_subscriptions"].sql).fetchone()
    assert row is not None
    return row[0], row[1]


def claim(
    connection: Connection[Any],
    *,
    token: UUID,
    claimed_by: str,
    lanes: Mapping[str, LaneLimits],
    lease_seconds: float,
    max_attempts: int,
    traces_ratio: float = 0,
) -> Claim:
    """Claims due deliveries of the given subscriptions; the claim is committed when this returns.

    ``connection`` is in autocommit mode. Raises psycopg.Error.
    """
    with connection.cursor(row_factory=lambda _: ClaimedRow._make) as cursor:
        rows = cursor.execute(
            QUERIES["claim"].sql,
            {
                "claim_token": token,
                "claimed_by": claimed_by,
                "subscriptions": list(lanes),
                "since": [lane.since for lane in lanes.values()],
                "row_limits": [lane.row_limit for lane in lanes.values()],
                "suspect_limits": [lane.suspect_limit for lane in lanes.values()],
                "byte_limits": [lane.byte_limit for lane in lanes.values()],
                "lease_seconds": lease_seconds,
                "max_attempts": max_attempts,
                "lost": LEASE_RAN_OUT,
                "leases_per_attempt": LEASES_PER_ATTEMPT,
            },
        ).fetchall()
    return Claim(token, rows, traces_ratio)


def others_were_delivered(connection: Connection[Any], message: Message) -> bool:
    """Whether the queue has accepted another message since this claimed one became suspect."""
    row = connection.execute(
        QUERIES["others_were_delivered"].sql,
        {
            "outbox_id": message.outbox_id,
            "subscription": message.subscription,
            "claim_token": message.claim_token,
        },
    ).fetchone()
    return row is not None and row[0]


def _delivery(row: ClaimedRow, token: UUID, traces_ratio: float) -> ClaimedDelivery:
    verdict: MessageFault | Exhausted | None = None
    if row.fate == "exhausted":
        reason = row.last_error or "the limit is lower than the attempts made"
        verdict = Exhausted(f"gave up after {row.delivery_attempts} attempts: {reason}")
    message, fault = _message(row, token, traces_ratio)
    verdict = verdict or fault
    if verdict is None and message.size > MAX_BATCH_BYTES:
        verdict = MessageFault(
            f"the message is too large: {message.size:,} bytes with its attributes, of {MAX_BATCH_BYTES:,}"
        )
    return ClaimedDelivery(message, verdict)


def _message(row: ClaimedRow, token: UUID, traces_ratio: float) -> tuple[Message, MessageFault | None]:
    """Returns the row's message; if none can be made of the row, a message without a body, and the reason."""
    if row.fate == "claimed" and row.body is None:
        return _bodiless(row, token), MessageFault("its message is not in the outbox")
    try:
        message = make_message(
            outbox_id=row.outbox_id,
            subscription=row.subscription,
            operation_id=row.operation_id,
            claim_token=token,
            event_id=row.event_id,
            trace_id=row.trace_id,
            topic=row.topic,
            event_type=row.event_type,
            schema_version=row.schema_version,
            attempt=row.delivery_attempts,
            is_suspect=row.is_suspect,
            body=row.body or "",
            traces_ratio=traces_ratio,
        )
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one row must not stop the others
        return _bodiless(row, token), MessageFault(f"no message can be made of it: {type(error).__name__}: {error}")
    return message, None


def _bodiless(row: ClaimedRow, token: UUID) -> Message:
    return Message(
        outbox_id=row.outbox_id,
        subscription=row.subscription,
        operation_id=row.operation_id,
        claim_token=token,
        event_id=row.event_id,
        trace_id=row.trace_id,
        topic=row.topic,
        attempt=row.delivery_attempts,
        is_suspect=row.is_suspect,
        body="",
        attributes={},
        size=0,
    )
