"""OpsApiFunction: answers how the control plane is, and what became of an event."""

from functools import cache
from typing import Any

from control_plane.api.events import show_timeline
from control_plane.api.health import HealthReporter
from control_plane.api.http import Api, Route
from control_plane.api.tokens import BearerToken, token_text
from control_plane.platform.aws import read_secret
from control_plane.platform.conninfo import database_url
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database, origin_of
from control_plane.platform.settings import OpsApiSettings
from control_plane.platform.telemetry import Telemetry

PATIENCE_SECONDS = 3
SECRET_PATIENCE_SECONDS = 2

telemetry = Telemetry("ops_api")


@cache
def settings() -> OpsApiSettings:
    """Validated once per environment."""
    return OpsApiSettings.from_environ(environ())


@cache
def database() -> Database:
    """One connection per environment, that keeps nobody waiting."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-ops-api",
        role="acp_reader",
        patience_seconds=PATIENCE_SECONDS,
    )


@cache
def token() -> BearerToken:
    """What guards all routes but /health."""
    return BearerToken(lambda: token_text(settings().api_token, read_soon))


def read_soon(arn: str) -> str:
    """A secret's text, for somebody who waits."""
    return read_secret(arn, endpoint_url=settings().cloud_endpoint_url, patience_seconds=SECRET_PATIENCE_SECONDS)


@cache
def health() -> HealthReporter:
    """Looks at the database by a connection of its own, which it may have to leave behind."""
    return HealthReporter(open_for_health, max_pending_age_seconds=settings().health_max_pending_age_seconds)


def open_for_health() -> Database:
    """The database of /health, its URL read."""
    url = database_url(settings().database, read_soon)
    return Database(
        lambda: url,
        application_name="acp-health",
        origin=origin_of(settings().database),
        role="acp_reader",
        patience_seconds=1,
    )


api = Api(
    [
        Route("GET", "/health", lambda _: health().answer(), is_open=True),
        Route("GET", "/events/{event_id}", lambda parameters: show_timeline(database(), parameters["event_id"])),
    ],
    guard=lambda request: token().require(request),
    telemetry=telemetry,
)


@function(telemetry, sample="events/ops_api_health.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A request as API Gateway's REST proxy gives it. Returns the answer as it takes it."""
    return api.answer(event, context)
