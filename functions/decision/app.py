"""DecisionFunction: carries decisions on, from the queue of whatever moves one."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from control_plane.consumers.messages import consume_batch, consume_record
from control_plane.decisions.engine import Engine
from control_plane.decisions.steps import EnginePolicy
from control_plane.model.contract import Event
from control_plane.model.errors import DatabaseUnavailable
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DecisionSettings
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
        settings().database, endpoint_url=settings().cloud_endpoint_url, application_name="acp-decision"
    )


@cache
def engine(name: str) -> Engine:
    """One engine per environment, named by its log stream, which leases then lead back to."""
    return Engine(
        load_deciding(),
        policy=EnginePolicy(
            lease_seconds=settings().lease_seconds,
            daily_budget_micros=settings().daily_budget_micros,
            call_wait_seconds=settings().call_wait_seconds,
            shadow_playbooks=settings().shadow_playbooks,
        ),
        telemetry=telemetry,
        name=name,
    )


def batch_consumer(name: str) -> Callable[[Mapping[str, Any]], None]:
    """Acts on the messages of one batch. What it raises sends that message back to its queue, in the end to its DLQ.

    Once Postgres cannot be reached, the batch's other messages fail without waiting for it again.
    """
    unavailable: DatabaseUnavailable | None = None

    def consume(event: Event) -> bool:
        nonlocal unavailable
        if unavailable is not None:
            raise unavailable
        try:
            connection = database().connection()
        except DatabaseUnavailable as error:
            unavailable = error
            raise
        return engine(name).consume(connection, event)

    return lambda record: consume_record(
        record, consume, subscription=SUBSCRIPTION, event_types=EVENT_TYPES, telemetry=telemetry
    )


@function(telemetry, sample="events/decisions.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    database().connection()  # without Postgres the batch fails as one, visibly
    return consume_batch(event, batch_consumer(context.log_stream_name), subscription=SUBSCRIPTION, telemetry=telemetry)
