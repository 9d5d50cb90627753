"""AgentFunction: calls agents, from the queue of calls that decisions have intended."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Final
from uuid import UUID

from control_plane.consumers.failures import FailureRecorder
from control_plane.consumers.messages import consume_batch, consume_record
from control_plane.decisions.agent_calls import CallReport, agents_by_name, run_call
from control_plane.decisions.models.model_agent import with_model
from control_plane.decisions.models.providers import connect_model
from control_plane.decisions.settings import AgentSettings
from control_plane.model.contract import Event, parse_payload
from control_plane.model.deciding import Agent
from control_plane.model.decision_events import AgentCallRequested
from control_plane.platform.aws import read_secret
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES, load_deciding

SUBSCRIPTION: Final = "agents"
SPARE_SECONDS: Final = 5.0
"""Seconds of an invocation that no call gets, so that a call's end is on record before Lambda ends the invocation."""

telemetry = Telemetry("agent")


@cache
def settings() -> AgentSettings:
    """Validated once per environment."""
    return AgentSettings.from_environ(environ())


@cache
def database() -> Database:
    """One connection per environment."""
    return open_database(
        settings().database,
        endpoint_url=settings().cloud_endpoint_url,
        application_name="acp-agent",
        role="acp_agent",
        prepares=True,
    )


@cache
def agents() -> Mapping[str, Agent]:
    """Every domain's agents by name, with the model that the settings name behind those that take one."""
    model = connect_model(
        settings().model,
        partial(read_secret, endpoint_url=settings().cloud_endpoint_url),
        failure_threshold=settings().breaker_failure_threshold,
        cool_down_seconds=settings().breaker_cool_down_seconds,
    )
    return agents_by_name(with_model(load_deciding(), model).values())


def consumer(context: LambdaContext) -> Callable[[Mapping[str, Any]], None]:
    """Runs the calls of one batch, one after the other. A call that was taken before is done already."""

    def consume(event: Event) -> bool:
        asked = parse_payload(AgentCallRequested, event.payload)
        report = run_call(
            database().same_connection,
            agents(),
            UUID(asked.call_id),
            claimant=context.log_stream_name,
            lease_seconds=settings().lease_seconds,
            request_sha256=asked.request_sha256,
            call_seconds=asked.seconds,
            most_seconds=context.get_remaining_time_in_millis() / 1000 - SPARE_SECONDS,
        )
        if report is not None:
            _tell(report)
        return report is not None

    recorder = FailureRecorder(database())
    return lambda record: consume_record(
        record,
        consume,
        subscription=SUBSCRIPTION,
        event_types=EVENT_TYPES,
        telemetry=telemetry,
        remember=recorder,
    )


def _tell(report: CallReport) -> None:
    """One line and the metrics of a call: ids, what it cost, why it failed; nothing of the request or the answer."""
    outcome = report.result.outcome if report.was_in_time else "late"
    telemetry.count("AgentCalls", 1)
    telemetry.count("AgentCallFailures", int(outcome != "answered"))
    telemetry.count("AgentCostMicros", report.result.cost_micros)
    telemetry.logger.info(
        "called",
        state=outcome,
        decision_id=str(report.call.decision_id),
        trace_id=str(report.call.trace_id),
        agent=report.call.agent,
        attempt=report.call.attempt,
        model=report.model,
        cost_micros=report.result.cost_micros,
        error=report.result.error,
    )


@function(telemetry, sample="events/agents.json")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    agents()  # settings that are wrong fail the batch as one, visibly
    database().connection()
    return consume_batch(event, consumer(context), subscription=SUBSCRIPTION, telemetry=telemetry)
