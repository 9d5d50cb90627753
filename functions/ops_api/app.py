"""OpsApiFunction: answers how the control plane is, and what became of an event."""

from functools import cache, partial
from typing import Any

from control_plane.api.events import show_timeline
from control_plane.api.health import report_health
from control_plane.api.http import Api, Route
from control_plane.api.tokens import BearerToken, token_text
from control_plane.platform.aws import read_secret
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import OpsApiSettings
from control_plane.platform.telemetry import Telemetry

PATIENCE_SECONDS = 3

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
        patience_seconds=PATIENCE_SECONDS,
    )


@cache
def token() -> BearerToken:
    """What guards all routes but /health."""
    read = partial(read_secret, endpoint_url=settings().cloud_endpoint_url)
    return BearerToken(lambda: token_text(settings().api_token, read))


api = Api(
    [
        Route(
            "GET",
            "/health",
            lambda _: report_health(database(), max_pending_age_seconds=settings().health_max_pending_age_seconds),
        ),
        Route(
            "GET",
            "/events/{event_id}",
            lambda parameters: show_timeline(database(), parameters["event_id"]),
            guard=lambda request: token().require(request),
        ),
    ],
    telemetry=telemetry,
)


@function(telemetry)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A request as API Gateway's REST proxy gives it. Returns the answer as it takes it."""
    return api.answer(event, context)
