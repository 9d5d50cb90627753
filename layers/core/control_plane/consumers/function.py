"""What every consumer's function does with a batch: a connection, each message's effect, and which ones failed."""

from collections.abc import Mapping
from typing import Any

import psycopg

from control_plane.consumers.messages import consume_batch, consume_record
from control_plane.model.contract import Event, EventTypes
from control_plane.model.domain import Effect
from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform.database import Database
from control_plane.platform.telemetry import Telemetry


def consume_messages(
    event: Mapping[str, Any],
    effect: Effect,
    *,
    database: Database,
    subscription: str,
    event_types: EventTypes,
    telemetry: Telemetry,
) -> dict[str, Any]:
    """Applies each message of a batch of SQS messages. Returns ``{"batchItemFailures": […]}``: those to deliver again.

    What an effect raises sends that message back to its queue, in the end to its DLQ. Once Postgres cannot be reached,
    the batch's other messages fail without waiting for it again; where it cannot be from the start, that is raised.
    """
    database.connection()  # without Postgres the batch fails as one, visibly
    unavailable: DatabaseUnavailable | None = None

    def consume(message: Event) -> bool:
        nonlocal unavailable
        if unavailable is not None:
            raise unavailable
        try:
            connection = database.same_connection()
        except DatabaseUnavailable as error:
            unavailable = error
            raise
        try:
            return effect(connection, message)
        except psycopg.errors.FeatureNotSupported:
            database.close()  # A migration may have changed what a prepared statement returns; a new session asks anew.
            raise

    def take(record: Mapping[str, Any]) -> None:
        consume_record(record, consume, subscription=subscription, event_types=event_types, telemetry=telemetry)

    return consume_batch(event, take, subscription=subscription, telemetry=telemetry)
