"""GatekeeperFunction: judges proposals, and alone releases actions, from the queue of requests for a verdict."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection

from control_plane.consumers.function import consume_messages
from control_plane.decisions.gatekeeper import Verdict, judge, read_decision, verdict_id_of
from control_plane.decisions.shadow import judge_in_shadow
from control_plane.model.contract import Event, parse_payload
from control_plane.model.deciding import Deciding
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
def domains() -> Mapping[str, Deciding]:
    """Each domain's plug-ins: its gate, and policies in shadow."""
    return load_deciding()


def give_verdict(connection: Connection[Any], event: Event) -> bool:
    """Judges the proposal that an event asks a verdict for; returns whether that changed anything."""
    if event.event_type != VerdictRequested.event_type:
        return False
    asked = parse_payload(VerdictRequested, event.payload)
    decision_id = UUID(asked.decision_id)
    plug_ins = domains().get(read_decision(connection, decision_id).domain)
    gate = None if plug_ins is None else plug_ins.gate
    verdict = judge(connection, gate, decision_id, int(asked.proposal_seq), int(asked.nth))
    if verdict.verdict is not None:
        tell(event, decision_id, verdict)
    # Also where it was judged before: whoever did that may have been killed before it came to this.
    is_told = plug_ins is not None and ask_shadow(connection, plug_ins, asked, str(event.trace_id))
    return is_told or verdict.verdict is not None


def ask_shadow(connection: Connection[Any], plug_ins: Deciding, asked: VerdictRequested, trace_id: str) -> bool:
    """Has policies in shadow judge what was judged; returns whether they did. Whatever fails, the verdict stands."""
    if plug_ins.shadow_policies is None:
        return False
    verdict_id = verdict_id_of(UUID(asked.decision_id), int(asked.proposal_seq), int(asked.nth))
    try:
        said = judge_in_shadow(connection, plug_ins.gate, plug_ins.shadow_policies, verdict_id)
    except psycopg.OperationalError:
        raise  # the message comes again, and then this alone is done
    except Exception:
        telemetry.count("ShadowErrors", 1)
        telemetry.logger.exception("failed in shadow", decision_id=asked.decision_id)
        return False
    if said is None:
        return False
    telemetry.count("ShadowVerdicts", 1)
    if said.errors:
        telemetry.count("ShadowErrors", 1)
    elif said.differs:
        telemetry.count("ShadowDifferences", 1)
    log = telemetry.logger.warning if said.errors else telemetry.logger.info
    log(
        "verdict in shadow",
        decision_id=asked.decision_id,
        verdict=said.verdict,
        enforced=said.enforced,
        reasons=said.reasons,
        errors=said.errors,
        trace_id=trace_id,
    )
    return True


def tell(event: Event, decision_id: UUID, verdict: Verdict) -> None:
    """Counts and logs a verdict."""
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
