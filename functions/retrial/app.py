"""RetrialFunction: decides again what was decided, and tries policies on what was judged; it changes nothing."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from control_plane.decisions.retrial_answers import answer
from control_plane.model.deciding import Deciding
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry
from domains import load_deciding

RESERVE_SECONDS: Final = 8.0
"""With less time left than this, no further request is tried, so that what was tried is answered."""

telemetry = Telemetry("retrial")


@cache
def database() -> Database:
    """Returns the environment's one connection, of a role that only reads."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database,
        endpoint_url=settings.cloud_endpoint_url,
        application_name="acp-retrial",
        role="acp_reader",
    )


@cache
def deciding() -> Mapping[str, Deciding]:
    """Returns what each domain plugs into the decision engine."""
    return load_deciding()


@function(telemetry, sample="events/retrial.json")
def handler(event: dict[str, Any], context: LambdaContext) -> Mapping[str, Any]:
    """Answers a question of OpsApiFunction's: ``{"result": …}``, or ``{"refused": …, "detail": …}``."""
    said = answer(
        database().connection(),
        event,
        deciding(),
        is_over=lambda: context.get_remaining_time_in_millis() / 1000 < RESERVE_SECONDS,
    )
    result = said.get("result", {})
    telemetry.logger.info(
        "tried again",
        kind=event["kind"],
        decision_id=event.get("decision_id"),
        same=result.get("same"),
        tried=result.get("tried"),
        refused=said.get("refused"),
    )
    return said
