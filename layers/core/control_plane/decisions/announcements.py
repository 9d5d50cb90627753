"""The events that steps of the engine are announced by, each with an id that a second run derives again."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from control_plane.decisions.emit import message
from control_plane.decisions.moves import Append, IntendedCall, call_id
from control_plane.model.contract import Payload
from control_plane.model.deciding import Decision, Record, Step
from control_plane.model.decision_events import (
    AgentCallRequested,
    ApprovalExpired,
    DecisionAbandoned,
    DecisionOpened,
    DecisionProposed,
    HypothesisProposed,
    ImpactSimulated,
    OutcomeObserved,
    VerdictRequested,
)
from control_plane.platform.messages import NewMessage

MOST_REASON: Final = 1024


def announce(record: Record, step: Append, seq: int, at: datetime) -> Sequence[NewMessage]:
    """Returns the events of a step that the engine appends as number ``seq``."""
    decision = record.decision
    return [
        message(
            payload,
            entity_id=decision.entity_id,
            series=f"{decision.decision_id}:{payload.event_type.lower()}:{seq}",
            at=at,
            trace_id=decision.trace_id,
        )
        for payload in _payloads(record, step, seq)
    ]


def opened(decision: Decision, at: datetime) -> NewMessage:
    """Says that an anomaly opened a decision."""
    return message(
        DecisionOpened(
            decision_id=str(decision.decision_id),
            playbook=decision.playbook,
            playbook_version=decision.playbook_version,
        ),
        entity_id=decision.entity_id,
        series=f"{decision.decision_id}:decision_opened:0",
        at=at,
        trace_id=decision.trace_id,
    )


def verdict_requested_again(record: Record, nth: int, at: datetime) -> NewMessage:
    """Asks for a verdict that did not come; whoever has given it meanwhile gives no other."""
    decision = record.decision
    return message(
        VerdictRequested(decision_id=str(decision.decision_id), proposal_seq=_seq(record.last("proposal")), nth=nth),
        entity_id=decision.entity_id,
        series=f"{decision.decision_id}:verdict_requested_again:{nth}",
        at=at,
        trace_id=decision.trace_id,
    )


def call_requested(record: Record, calls_seq: int, call: IntendedCall, at: datetime) -> NewMessage:
    """Asks for one attempt of an agent's call: ids and hashes, and how long it may take."""
    decision = record.decision
    return message(
        AgentCallRequested(
            decision_id=str(decision.decision_id),
            call_id=str(call_id(record, calls_seq, call)),
            agent=call.agent,
            request_sha256=call.request_sha256.hex(),
            seconds=call.seconds,
        ),
        entity_id=decision.entity_id,
        # Two agents of one step differ in their call's id, but an event has one row per series.
        series=f"{decision.decision_id}:call:{call_id(record, calls_seq, call)}",
        at=at,
        trace_id=decision.trace_id,
    )


def _payloads(record: Record, step: Append, seq: int) -> Sequence[Payload]:
    decision_id = str(record.decision.decision_id)
    said: list[Payload] = []
    match step.kind, step.state:
        case "simulation", _:
            said.append(ImpactSimulated(decision_id=decision_id, options=len(step.body.get("options", ()))))
        case "proposal", _:
            said.append(DecisionProposed(decision_id=decision_id, action_type=step.body["action_type"]))
            if step.body.get("hypothesis"):
                said.append(HypothesisProposed(decision_id=decision_id, hypothesis=step.body["hypothesis"]))
            said.append(VerdictRequested(decision_id=decision_id, proposal_seq=seq, nth=0))
        case "state", "approved":
            said.append(VerdictRequested(decision_id=decision_id, proposal_seq=_seq(record.last("proposal")), nth=1))
        case "state", "expired" if (asked := record.last("approval_asked")) is not None:
            said.append(ApprovalExpired(decision_id=decision_id, approval_id=asked.body["approval_id"]))
        case "outcome", _:
            said.append(OutcomeObserved(decision_id=decision_id, state=step.body["state"]))
        case "closed", "abandoned":
            said.append(DecisionAbandoned(decision_id=decision_id, reason=step.body["reason"][:MOST_REASON]))
    return said


def _seq(step: Step | None) -> int:
    assert step is not None, "a state that follows from a proposal without one"
    return step.seq
