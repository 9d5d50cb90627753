"""ActionFunction: executes released actions on the paper account, from the client.actions queue."""

from functools import cache
from typing import Any

from control_plane.consumers.function import consume_messages
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES
from domains.finance import paper_account

telemetry = Telemetry("action")


@cache
def database() -> Database:
    """Returns the environment's one connection."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database,
        endpoint_url=settings.cloud_endpoint_url,
        application_name="acp-action",
        role="acp_action",
        prepares=True,
    )


@function(telemetry, sample="events/actions.json")
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Consumes a batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    return consume_messages(
        event,
        paper_account.consume,
        database=database(),
        subscription=paper_account.CONSUMER,
        event_types=EVENT_TYPES,
        telemetry=telemetry,
    )
