"""OpsApiFunction: answers what the control plane is doing; it changes nothing."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from control_plane.api.callers import Callers
from control_plane.api.dispatch import Api
from control_plane.api.health import HealthReporter
from control_plane.api.openapi import document
from control_plane.api.page import RELEASE_HEADER, Page
from control_plane.api.reads import read_routes
from control_plane.api.retrials import ANSWER_SECONDS, Ask
from control_plane.api.tokens import BearerToken, token_text
from control_plane.platform.aws import read_secret
from control_plane.platform.conninfo import database_url
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database, origin_of
from control_plane.platform.invocation import invoker
from control_plane.platform.settings import OpsApiSettings
from control_plane.platform.telemetry import Telemetry

PATIENCE_SECONDS = 3
HEALTH_PATIENCE_SECONDS = 1
SECRET_PATIENCE_SECONDS = 2

telemetry = Telemetry("ops_api")


@cache
def settings() -> OpsApiSettings:
    """Returns the settings, validated once per environment."""
    return OpsApiSettings.from_environ(environ())


@cache
def database() -> Database:
    """Returns the environment's one connection; it has a time limit, because callers wait for it."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-ops-api",
        role="acp_reader",
        patience_seconds=PATIENCE_SECONDS,
    )


@cache
def token() -> BearerToken:
    """Returns the secret's token, which may call every route."""
    return BearerToken(lambda: token_text(settings().api_token, read_soon))


def read_soon(arn: str) -> str:
    """Returns a secret's text within a time limit, because a caller waits for it."""
    return read_secret(arn, endpoint_url=settings().cloud_endpoint_url, patience_seconds=SECRET_PATIENCE_SECONDS)


@cache
def health() -> HealthReporter:
    """Returns the health reporter. It has its own connection, since it may have to abandon one."""
    return HealthReporter(
        open_for_health,
        max_pending_age_seconds=settings().health_max_pending_age_seconds,
        patience_seconds=HEALTH_PATIENCE_SECONDS,
    )


def open_for_health() -> Database:
    """Returns the database of /health, with its URL already read."""
    url = database_url(settings().database, read_soon)
    return Database(
        lambda: url,
        application_name="acp-health",
        origin=origin_of(settings().database),
        role="acp_reader",
        patience_seconds=HEALTH_PATIENCE_SECONDS,
    )


@cache
def retrial() -> Ask:
    """Returns what asks RetrialFunction. It is made for the first question: most environments get none."""
    return invoker(
        settings().retrial_function, endpoint_url=settings().cloud_endpoint_url, answer_seconds=ANSWER_SECONDS
    )


def try_again(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Has RetrialFunction decide something again, and returns its answer."""
    return retrial()(event)


page = Page.read(Path(__file__).parent / "ui")
api = Api(
    read_routes(database, lambda: health().answer(), document, lambda: page, try_again),
    guard=Callers(token, database),
    telemetry=telemetry,
    headers={RELEASE_HEADER: page.release},
)


@function(telemetry, sample="events/ops_api_health.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answers a request in the shape of API Gateway's REST proxy."""
    return api.answer(event, context)
