"""DetectorFunction: turns unusual bars into ANOMALY_DETECTED, from the market.ticks queue."""

from functools import cache
from typing import Any

from control_plane.consumers.function import consume_messages
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES
from domains.finance import detector

telemetry = Telemetry("detector")


@cache
def database() -> Database:
    """One connection per environment."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database, endpoint_url=settings.cloud_endpoint_url, application_name="acp-detector", role="acp_detect"
    )


@function(telemetry, sample="events/detector.json")
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    return consume_messages(
        event,
        detector.consume,
        database=database(),
        subscription=detector.CONSUMER,
        event_types=EVENT_TYPES,
        telemetry=telemetry,
    )
