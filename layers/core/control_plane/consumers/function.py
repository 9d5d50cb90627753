"""What every consumer's function does with a batch: a connection, each message's effect, and which ones failed."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg

from control_plane.consumers.failures import FailureRecorder
from control_plane.consumers.messages import consume_batch, consume_record, operation_of
from control_plane.model.contract import Event, EventTypes
from control_plane.model.domain import Effect, ReplayableEffect
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

    What an effect raises sends that message back to its queue, in the end to its DLQ, and is recorded in
    ``consume_failures``. Once Postgres cannot be reached,
    the batch's other messages fail without waiting for it again; where it cannot be from the start, that is raised.
    """

    def live(connection: Any, message: Event, _operation_id: UUID | None) -> bool:
        return effect(connection, message)

    return consume_replayable(
        event, live, database=database, subscription=subscription, event_types=event_types, telemetry=telemetry
    )


def consume_replayable(
    event: Mapping[str, Any],
    effect: ReplayableEffect,
    *,
    database: Database,
    subscription: str,
    event_types: EventTypes,
    telemetry: Telemetry,
) -> dict[str, Any]:
    """Does the same for a consumer for which a replay is safe: its effect also gets each delivery's operation."""
    database.connection()  # without Postgres the batch fails as one, visibly
    recorder = FailureRecorder(database)
    unavailable: DatabaseUnavailable | None = None

    def consume(message: Event, operation_id: UUID | None) -> bool:
        nonlocal unavailable
        if unavailable is not None:
            raise unavailable
        try:
            connection = database.same_connection()
        except DatabaseUnavailable as error:
            unavailable = error
            recorder.stop()
            raise
        try:
            return effect(connection, message, operation_id)
        except psycopg.errors.FeatureNotSupported:
            database.close()  # A migration may have changed what a prepared statement returns; a new session asks anew.
            raise

    def take(record: Mapping[str, Any]) -> None:
        operation_id = operation_of(record)
        consume_record(
            record,
            lambda message: consume(message, operation_id),
            subscription=subscription,
            event_types=event_types,
            telemetry=telemetry,
            remember=recorder,
        )

    return consume_batch(event, take, subscription=subscription, telemetry=telemetry)
