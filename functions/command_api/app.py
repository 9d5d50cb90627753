"""CommandApiFunction: makes the changes that people ask the API for, each once and on record."""

from functools import cache
from typing import Any

from control_plane.api.callers import Callers
from control_plane.api.commands import command_routes
from control_plane.api.dispatch import Api
from control_plane.api.tokens import BearerToken, token_text
from control_plane.platform.aws import read_secret, start_run
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import CommandApiSettings
from control_plane.platform.telemetry import Telemetry
from domains import load_kinds

PATIENCE_SECONDS = 8
SECRET_PATIENCE_SECONDS = 2

telemetry = Telemetry("command_api")


@cache
def settings() -> CommandApiSettings:
    """Returns the settings, validated once per environment."""
    return CommandApiSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection; it has a time limit, because callers wait for it."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-command-api",
        role="acp_command",
        patience_seconds=PATIENCE_SECONDS,
    )


@cache
def token() -> BearerToken:
    """Returns the secret's token, which may call every route."""
    return BearerToken(
        lambda: token_text(
            settings().api_token,
            lambda arn: read_secret(
                arn, endpoint_url=settings().cloud_endpoint_url, patience_seconds=SECRET_PATIENCE_SECONDS
            ),
        )
    )


def start(function_name: str) -> None:
    """Starts a run of another function."""
    start_run(function_name, endpoint_url=settings().cloud_endpoint_url)


api = Api(
    command_routes(
        database,
        {
            "ingestion": lambda: start(settings().ingestion_function),
            "relay": lambda: start(settings().relay_function),
            "operations": lambda: start(settings().operations_function),
        },
        load_kinds,
    ),
    guard=Callers(token, database),
    telemetry=telemetry,
)


@function(telemetry, sample="events/command_api.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answers a request in the shape of API Gateway's REST proxy."""
    return api.answer(event, context)
