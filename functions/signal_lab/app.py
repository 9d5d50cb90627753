"""SignalLabFunction: keeps the latest prices and bars, from the market.ticks queue."""

from functools import cache
from typing import Any

from control_plane.consumers.function import consume_replayable
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


@function(telemetry, sample="events/signal_lab.json")
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    return consume_replayable(
        event,
        signal_lab.consume,
        database=database(),
        subscription=signal_lab.CONSUMER,
        event_types=EVENT_TYPES,
        telemetry=telemetry,
    )
