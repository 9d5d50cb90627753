"""The events of deciding: each is a fact about one decision, and wakes whoever goes on with it."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from control_plane.model.contract import FiniteNumber, Instant, Name, Payload, Text, WholeNumber

DECISIONS_SOURCE: Final = "decisions"
DECISION_EVENTS: Final = "decisions.events"
"""Every fact, for whoever wants to follow decisions."""
DECISION_WORK: Final = "decisions.work"
"""Of DecisionFunction: whatever moves a decision on."""
AGENT_WORK: Final = "agents.work"
GATEKEEPER_WORK: Final = "gatekeeper.work"
CLIENT_ACTIONS: Final = "client.actions"

type Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
type Identifier = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class AnomalyDetected(Payload):
    """A detector found a bar unusual. ``series`` and the instant are those of the bar; ``score`` is what made it so."""

    event_type = "ANOMALY_DETECTED"
    schema_version = 1
    topic = DECISION_EVENTS
    also_topics = (DECISION_WORK,)

    kind: Name
    detector: Name
    domain: Name | None = None
    """The domain whose playbooks decide on it; every domain's are asked where the detector names none."""
    observed_source: Name
    """The source of the bars, for the event's own is ``decisions``."""
    series: Annotated[str, Field(max_length=128)]
    bar_event_id: Identifier
    bar_revision: WholeNumber
    score: FiniteNumber
    threshold: FiniteNumber
    is_withdrawn: bool = False
    """True where a corrected bar is no longer unusual."""
    details: dict[str, Any]


class AnomalyOverlooked(Payload):
    """Nobody has taken up an anomaly that was told a while ago: its message may be lost, or whoever got it died."""

    event_type = "ANOMALY_OVERLOOKED"
    schema_version = 1
    topic = DECISION_WORK

    anomaly_event_id: Identifier


class _OfDecision(Payload):
    """A fact about one decision."""

    schema_version = 1
    topic = DECISION_EVENTS

    decision_id: Identifier


class DecisionOpened(_OfDecision):
    """An anomaly opened a decision."""

    event_type = "DECISION_OPENED"
    playbook: Name
    playbook_version: Name


class AgentCallRequested(_OfDecision):
    """An agent is to be called: ids and hashes, and how long it may take."""

    event_type = "AGENT_CALL_REQUESTED"
    topic = AGENT_WORK
    call_id: Identifier
    agent: Name
    request_sha256: Sha256
    seconds: Annotated[FiniteNumber, Field(gt=0)]
    """How long the agent itself may take, without the time to put its answer on record."""


class AgentAnswered(_OfDecision):
    """An agent answered."""

    event_type = "AGENT_ANSWERED"
    also_topics = (DECISION_WORK,)
    call_id: Identifier
    agent: Name


class AgentFailed(_OfDecision):
    """An agent gave no answer that can be used."""

    event_type = "AGENT_FAILED"
    also_topics = (DECISION_WORK,)
    call_id: Identifier
    agent: Name
    outcome: Literal["invalid", "failed", "unknown"]
    reason: Text


class HypothesisProposed(_OfDecision):
    """The decision has an explanation of what happened."""

    event_type = "HYPOTHESIS_PROPOSED"
    hypothesis: Name


class ImpactSimulated(_OfDecision):
    """The options were simulated."""

    event_type = "IMPACT_SIMULATED"
    options: WholeNumber


class DecisionProposed(_OfDecision):
    """An action, or none, was proposed."""

    event_type = "DECISION_PROPOSED"
    action_type: Name


class VerdictRequested(_OfDecision):
    """The gatekeeper is asked for its verdict; again, where an approval was given."""

    event_type = "VERDICT_REQUESTED"
    topic = GATEKEEPER_WORK
    proposal_seq: WholeNumber
    nth: WholeNumber


class ActionRefused(_OfDecision):
    """The gatekeeper refused the proposal."""

    event_type = "ACTION_REFUSED"
    also_topics = (DECISION_WORK,)
    verdict_id: Identifier
    reason: Text


class ApprovalRequested(_OfDecision):
    """A person is asked."""

    event_type = "APPROVAL_REQUESTED"
    also_topics = (DECISION_WORK,)
    approval_id: Identifier
    action_sha256: Sha256
    expires_at: Instant


class ApprovalGiven(_OfDecision):
    """A person approved exactly one action."""

    event_type = "APPROVAL_GIVEN"
    also_topics = (DECISION_WORK,)
    approval_id: Identifier
    decided_by: Name


class ApprovalDenied(_OfDecision):
    """A person denied it."""

    event_type = "APPROVAL_DENIED"
    also_topics = (DECISION_WORK,)
    approval_id: Identifier
    decided_by: Name


class ApprovalExpired(_OfDecision):
    """Nobody answered in time, which is a no."""

    event_type = "APPROVAL_EXPIRED"
    approval_id: Identifier


class ActionReleased(_OfDecision):
    """An action was released to its client."""

    event_type = "ACTION_RELEASED"
    also_topics = (DECISION_WORK, CLIENT_ACTIONS)
    action_id: Identifier
    action_type: Name
    account: Name
    action_sha256: Sha256
    expires_at: Instant


class ActionExecuted(_OfDecision):
    """The client has done it."""

    event_type = "ACTION_EXECUTED"
    also_topics = (DECISION_WORK,)
    action_id: Identifier


class ActionFailed(_OfDecision):
    """The client has not done it, and will not."""

    event_type = "ACTION_FAILED"
    also_topics = (DECISION_WORK,)
    action_id: Identifier
    reason: Text


class OutcomeObserved(_OfDecision):
    """The horizon is over, and every forecast is scored."""

    event_type = "OUTCOME_OBSERVED"
    state: Literal["observed", "unobservable"]


class DecisionAbandoned(_OfDecision):
    """A decision ended before its release: by its deadline, its budget or a switch."""

    event_type = "DECISION_ABANDONED"
    reason: Text


class DecisionWoken(_OfDecision):
    """A timer is due, or a lease ran out."""

    event_type = "DECISION_WOKEN"
    topic = DECISION_WORK
    reason: Name


class SwitchSet(Payload):
    """Something was switched off, or on again: by a person, or a model that charged too much by the control plane."""

    event_type = "SWITCH_SET"
    schema_version = 1
    topic = DECISION_EVENTS

    scope: Name
    is_off: bool
    set_by: Name
    reason: Annotated[str, Field(max_length=1024)]


DECISION_PAYLOADS: Final[tuple[type[Payload], ...]] = (
    AnomalyDetected, DecisionOpened, AgentCallRequested, AgentAnswered, AgentFailed, HypothesisProposed,
    ImpactSimulated, DecisionProposed, VerdictRequested, ActionRefused, ApprovalRequested, ApprovalGiven,
    ApprovalDenied, ApprovalExpired,
    ActionReleased, ActionExecuted, ActionFailed, OutcomeObserved, DecisionAbandoned, DecisionWoken,
    SwitchSet, AnomalyOverlooked,
)  # fmt: skip
"""What deciding has to say, whatever the domain."""
