"""TickCountFunction: a second consumer of market.ticks, which counts each tick once and keeps nothing else."""

from functools import cache
from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from control_plane.consumers.messages import consume_record
from control_plane.consumers.once import once
from control_plane.model.contract import Event
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES

CONSUMER = "tick_count"

telemetry = Telemetry(CONSUMER)
processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


@cache
def database() -> Database:
    """One connection per environment."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database,
        endpoint_url=settings.cloud_endpoint_url,
        application_name="acp-tick-count",
        role="acp_consume",
    )


def count(event: Event) -> bool:
    """Counts an event, and returns whether it had not been counted."""
    with once(database().connection(), consumer=CONSUMER, event_id=event.event_id) as is_first:
        return is_first


def consume(record: SQSRecord) -> None:
    """Consumes one message; if it raises, this message alone goes back to the queue."""
    consume_record(record.raw_event, count, subscription=CONSUMER, event_types=EVENT_TYPES, telemetry=telemetry)


@function(telemetry)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    response = process_partial_response(
        event=event,
        record_handler=consume,
        processor=processor,
        context=context,  # type: ignore[arg-type]  # Powertools names its own class; the protocol covers what is used
    )
    return dict(response)
