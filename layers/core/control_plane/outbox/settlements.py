"""Settlements record what became of claimed deliveries, as long as their claim still holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from control_plane.model.lifecycle import Outcome, Settlement
from control_plane.outbox.claims import QUERIES
from control_plane.outbox.publisher import Message


@dataclass(frozen=True, slots=True)
class Report:
    """One message's outcome, waiting to be settled."""

    message: Message
    outcome: Outcome
    known_at: float
    """When the outcome was known, by ``time.monotonic()``."""
    send_seconds: float | None = None
    """How long the send took; None if the message was not sent."""
    silence_is_its_own: bool = False
    """Whether the message is charged for the outcome NoVerdict, since other messages got verdicts meanwhile."""


class Measured(NamedTuple):
    """What the relay measured about one message; the database adds it to the flow's durations."""

    send_seconds: float | None
    """How long the send took that carried it; None if it was not sent."""
    waited_seconds: float
    """How long ago its outcome was known."""


class SettledRow(NamedTuple):
    """One delivery whose settlement took effect."""

    outbox_id: int
    subscription: str
    operation_id: UUID | None
    disposition: str
    """The value of a Disposition."""
    age_seconds: float
    """How long the delivery has been pending, by the database's clock."""


def settle(
    connection: Connection[Any],
    *,
    settled_by: str,
    settlements: Sequence[tuple[Message, Settlement]],
    measured: Sequence[Measured] = (),
) -> Sequence[SettledRow]:
    """Records outcomes in one round trip and returns those that took effect.

    A delivery that another claim has taken over is not changed, not counted and not returned. All is committed when
    this returns. ``measured`` has one entry per settlement, or none. Raises psycopg.Error.
    """
    with connection.cursor(row_factory=lambda _: SettledRow._make) as cursor:
        return cursor.execute(
            QUERIES["settle"].sql,
            {
                "settled_by": settled_by,
                "outbox_ids": [message.outbox_id for message, _ in settlements],
                "subscriptions": [message.subscription for message, _ in settlements],
                "operation_ids": [message.operation_id for message, _ in settlements],
                "claim_tokens": [message.claim_token for message, _ in settlements],
                "dispositions": [settlement.disposition.value for _, settlement in settlements],
                "message_ids": [settlement.message_id for _, settlement in settlements],
                "errors": [settlement.error for _, settlement in settlements],
                "delays_seconds": [settlement.delay.total_seconds() for _, settlement in settlements],
                "are_suspect": [settlement.is_suspect for _, settlement in settlements],
                "send_seconds": [one.send_seconds for one in measured],
                "waited_seconds": [one.waited_seconds for one in measured],
            },
        ).fetchall()


def settled_before(
    connection: Connection[Any], settlements: Sequence[tuple[Message, Settlement]]
) -> Sequence[SettledRow]:
    """Returns the messages that an earlier settlement recorded as delivered, found by their queues' message ids."""
    accepted = [(message, settlement.message_id) for message, settlement in settlements if settlement.message_id]
    with connection.cursor(row_factory=lambda _: SettledRow._make) as cursor:
        return cursor.execute(
            QUERIES["settled_before"].sql,
            {
                "outbox_ids": [message.outbox_id for message, _ in accepted],
                "subscriptions": [message.subscription for message, _ in accepted],
                "message_ids": [message_id for _, message_id in accepted],
            },
        ).fetchall()
