"""SignalLabFunction: keeps the latest prices and bars, from the market.ticks queue."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from control_plane.consumers.messages import consume_batch, consume_record
from control_plane.model.contract import Event
from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES
from domains.finance import signal_lab

telemetry = Telemetry("signal_lab")


@cache
def database() -> Database:
    """Returns the environment's one connection."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database,
        endpoint_url=settings.cloud_endpoint_url,
        application_name="acp-signal-lab",
        role="acp_consume",
    )


def batch_consumer() -> Callable[[Mapping[str, Any]], None]:
    """Consumes the messages of one batch. A message whose processing raises goes back to its queue, in the end to its
    DLQ.

    Once Postgres cannot be reached, the batch's other messages fail without waiting for it again.
    """
    unavailable: DatabaseUnavailable | None = None

    def consume(event: Event) -> bool:
        nonlocal unavailable
        if unavailable is not None:
            raise unavailable
        try:
            connection = database().connection()
        except DatabaseUnavailable as error:
            unavailable = error
            raise
        return signal_lab.consume(connection, event)

    return lambda record: consume_record(
        record, consume, subscription=signal_lab.CONSUMER, event_types=EVENT_TYPES, telemetry=telemetry
    )


@function(telemetry, sample="events/signal_lab.json")
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Consumes a batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    database().connection()  # Without Postgres the whole batch fails, and that is visible.
    return consume_batch(event, batch_consumer(), subscription=signal_lab.CONSUMER, telemetry=telemetry)
