"""DeadLetterFunction: moves what was given up on from the SQS dead-letter queues into the list of dead letters."""

from functools import cache
from typing import Any

from control_plane.consumers.letters import move_letters
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DeadLetterSettings
from control_plane.platform.telemetry import Telemetry

telemetry = Telemetry("dead_letter")


@cache
def settings() -> DeadLetterSettings:
    """Returns the settings, validated once per environment."""
    return DeadLetterSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-dead-letter",
        role="acp_maintain",
    )


@function(telemetry, sample="events/dead_letter.json")
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Stores a batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages that stay in their queue."""
    return move_letters(event, database().connection(), queues=settings().queues, telemetry=telemetry)
