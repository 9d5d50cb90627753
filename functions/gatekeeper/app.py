"""GatekeeperFunction: judges proposals, and alone releases actions, from the queue of requests for a verdict."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final
from uuid import UUID

from psycopg import Connection

from control_plane.consumers.function import consume_messages
from control_plane.decisions.gatekeeper import judge, read_decision
from control_plane.model.contract import Event, parse_payload
from control_plane.model.deciding import Gate
from control_plane.model.decision_events import VerdictRequested
from control_plane.platform.database import Database
from control_plane.platform.function import LambdaContext, environ, function, open_database
from control_plane.platform.settings import DatabaseFunctionSettings
from control_plane.platform.telemetry import Telemetry
from domains import EVENT_TYPES, load_deciding

SUBSCRIPTION: Final = "gatekeeper"

telemetry = Telemetry("gatekeeper")


@cache
def database() -> Database:
    """One connection per environment."""
    settings = DatabaseFunctionSettings.from_environ(environ())
    return open_database(
        settings.database,
        endpoint_url=settings.cloud_endpoint_url,
        application_name="acp-gatekeeper",
        role="acp_gatekeeper",
        prepares=True,
    )


@cache
def gates() -> Mapping[str, Gate]:
    """Each domain's gate."""
    return {name: deciding.gate for name, deciding in load_deciding().items()}


def give_verdict(connection: Connection[Any], event: Event) -> bool:
    """Judges the proposal that an event asks a verdict for; returns whether that changed anything."""
    if event.event_type != VerdictRequested.event_type:
        return False
    asked = parse_payload(VerdictRequested, event.payload)
    decision_id = UUID(asked.decision_id)
    domain = read_decision(connection, decision_id).domain
    verdict = judge(connection, gates().get(domain), decision_id, int(asked.proposal_seq), int(asked.nth))
    if verdict.verdict is None:
        return False
    match verdict.verdict:
        case "permitted":
            telemetry.count("VerdictsPermitted", 1)
        case "needs_approval":
            telemetry.count("ApprovalsRequested", 1)
        case _:
            telemetry.count("VerdictsRefused", 1)
    if verdict.is_released:
        telemetry.count("ActionsReleased", 1)
    if verdict.errors:
        telemetry.count("VerdictErrors", 1)
    log = telemetry.logger.error if verdict.errors else telemetry.logger.info
    log(
        "verdict",
        decision_id=str(decision_id),
        verdict_id=str(verdict.verdict_id),
        verdict=verdict.verdict,
        is_released=verdict.is_released,
        reasons=verdict.reasons,
        errors=verdict.errors,
        trace_id=str(event.trace_id),
    )
    return True


@function(telemetry, sample="events/gatekeeper.json")
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """A batch of SQS messages. Returns ``{"batchItemFailures": […]}``: the messages to deliver again."""
    return consume_messages(
        event,
        give_verdict,
        database=database(),
        subscription=SUBSCRIPTION,
        event_types=EVENT_TYPES,
        telemetry=telemetry,
    )
