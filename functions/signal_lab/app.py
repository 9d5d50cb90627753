"""SignalLabFunction: keeps the latest prices and bars, from the market.ticks queue."""

from collections.abc import Callable
from functools import cache
from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from control_plane.consumers.messages import consume_record
from control_plane.model.contract import Event
from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES
from domains.finance import signal_lab

telemetry = Telemetry("signal_lab")
# A batch in which every message fails is answered like any other: each returns to its queue by its own id.
processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


@cache
def database() -> Database:
    """One connection per environment."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(settings.database, endpoint_url=settings.cloud_endpoint_url, application_name="acp-signal-lab")


def batch_consumer() -> Callable[[SQSRecord], None]:
    """Consumes the messages of one batch. What it raises sends that message back to its queue, in the end to its DLQ.

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
        record.raw_event, consume, subscription=signal_lab.CONSUMER, event_types=EVENT_TYPES, telemetry=telemetry
    )


@function(telemetry)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    database().connection()  # without Postgres the batch fails as one, visibly
    response = process_partial_response(
        event=event,
        record_handler=batch_consumer(),
        processor=processor,
        context=context,  # type: ignore[arg-type]  # Powertools names its own class; the protocol covers what is used
    )
    return dict(response)
