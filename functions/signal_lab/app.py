"""SignalLabFunction: keeps the latest prices and bars, from the market.ticks queue."""

from functools import cache
from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from control_plane.consumers import signal_lab
from control_plane.consumers.messages import received_event
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry

telemetry = Telemetry("signal_lab")
# A batch in which every message fails is answered like any other: each returns to its queue by its own id.
processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


@cache
def database() -> Database:
    """One connection per environment."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(settings.database, endpoint_url=settings.cloud_endpoint_url, application_name="acp-signal-lab")


def consume(record: SQSRecord) -> None:
    """One message. What it raises sends the message, alone, back to its queue and in the end to the dead letters."""
    with received_event(record.raw_event, telemetry) as event:
        signal_lab.consume(database().connection(), event)


@function(telemetry)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    database().connection()  # without Postgres the batch fails as one, visibly
    response = process_partial_response(
        event=event,
        record_handler=consume,
        processor=processor,
        context=context,  # type: ignore[arg-type]  # Powertools names its own class; the protocol covers what is used
    )
    return dict(response)
