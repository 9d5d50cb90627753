"""DecisionFunction: carries decisions on, from the queue of whatever moves one."""

from functools import cache, partial
from typing import Any, Final

from control_plane.consumers.function import consume_messages
from control_plane.decisions.engine import Engine
from control_plane.decisions.models.model_agent import with_model
from control_plane.decisions.models.providers import connect_model
from control_plane.decisions.settings import DecisionSettings
from control_plane.decisions.steps import EnginePolicy
from control_plane.platform.aws import read_secret
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES, load_deciding

SUBSCRIPTION: Final = "decisions"

telemetry = Telemetry("decision")


@cache
def settings() -> DecisionSettings:
    """Validated once per environment."""
    return DecisionSettings.from_environ(environ())


@cache
def database() -> Database:
    """One connection per environment."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-decision",
        role="acp_decide",
        prepares=True,
    )


@cache
def engine(name: str) -> Engine:
    """One engine per environment, named by its log stream, which leases then lead back to."""
    model = connect_model(settings().model, partial(read_secret, endpoint_url=settings().cloud_endpoint_url))
    return Engine(
        with_model(load_deciding(), model),
        policy=EnginePolicy(
            lease_seconds=settings().lease_seconds,
            daily_budget_micros=settings().daily_budget_micros,
            call_wait_seconds=settings().call_wait_seconds,
            shadow_playbooks=settings().shadow_playbooks,
        ),
        telemetry=telemetry,
        name=name,
    )


@function(telemetry, sample="events/decisions.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    return consume_messages(
        event,
        engine(context.log_stream_name).consume,
        database=database(),
        subscription=SUBSCRIPTION,
        event_types=EVENT_TYPES,
        telemetry=telemetry,
    )
