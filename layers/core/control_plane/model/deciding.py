"""What a domain plugs into the decision engine: playbooks, agents, action schemas and policies, and what they see.

A playbook is a pure function from a decision's record to the next command. The engine runs commands; whatever is slow,
or may fail, happens between two of its transactions, and its result is a step of the record.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Protocol, runtime_checkable
from uuid import UUID, uuid5

from pydantic import ConfigDict, Field

from control_plane.model.contract import Name
from control_plane.model.ids import canonical_instant
from control_plane.model.late import LateModel

DECISION_NAMESPACE = UUID("7c1f3c58-0f0e-4b57-9d5e-0d6f5f1b9a52")
"""The UUIDv5 namespace of decisions, calls, verdicts, approvals and actions; never changed."""

type JsonObject = Mapping[str, Any]

SHADOW_VERDICT = "shadow_verdict"
"""The kind of the step that says what policies in shadow would have decided."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A row of ``decisions`` at one moment."""

    decision_id: UUID
    domain: str
    playbook: str
    playbook_version: str
    pins_sha256: bytes
    anomaly_kind: str
    source: str
    entity_id: str
    series: str
    occurred_at: datetime
    trigger_event_id: UUID
    trace_id: UUID
    is_shadow: bool
    state: str
    deadline: datetime
    budget_micros: int
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a record."""

    seq: int
    parent: int | None
    kind: str
    author: str
    at: datetime
    body: JsonObject
    input_sha256: bytes | None = None
    output_sha256: bytes | None = None
    cost_micros: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """A decision and all its steps in order: everything that a playbook may look at."""

    decision: Decision
    steps: Sequence[Step]
    artifacts: Mapping[bytes, bytes] = field(default_factory=dict)
    """What the steps' inputs and outputs name, by SHA-256."""

    def last(self, kind: str) -> Step | None:
        """The newest step of a kind; None where there is none."""
        return next((step for step in reversed(self.steps) if step.kind == kind), None)

    def without_shadow(self) -> "Record":
        """The record without what was judged in shadow: nothing that is decided may rest on that."""
        kept = [step for step in self.steps if step.kind != SHADOW_VERDICT]
        return self if len(kept) == len(self.steps) else replace(self, steps=kept)

    def all(self, kind: str) -> Sequence[Step]:
        """Every step of a kind, in order."""
        return [step for step in self.steps if step.kind == kind]


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """One call of an agent: its name, and what it is told. The same request is stored once, by its hash."""

    agent: str
    request: JsonObject


# Commands


@dataclass(frozen=True, slots=True)
class Gather:
    """Collect the evidence: the engine calls the playbook's ``gather`` and records the result (state gathering)."""

    wait_until: datetime | None = None
    """How long the engine waits where the playbook is :class:`Patient` and says that something is still to come."""


@dataclass(frozen=True, slots=True)
class CallAgents:
    """Call agents side by side, and wait until each has answered or failed."""

    state: str
    """The state that the decision is in meanwhile: gathering, hypothesising, scoring or simulating."""
    calls: tuple[AgentRequest, ...]


@dataclass(frozen=True, slots=True)
class Simulate:
    """Simulate the options: the engine calls the playbook's ``simulate`` and records the result (simulating)."""

    spec: JsonObject


@dataclass(frozen=True, slots=True)
class Propose:
    """Propose an action, or none, to the gatekeeper, and wait for its verdict (state proposed)."""

    proposal: JsonObject
    """``{"action_type", "account", "action": {…}, "claims": {…}, "summary": …}``: docs/decision_engine.md."""


@dataclass(frozen=True, slots=True)
class AwaitApproval:
    """Wait for a person (state awaiting_approval), until the request expires."""


@dataclass(frozen=True, slots=True)
class ObserveAt:
    """Wait until the horizon is over (state observing): so many of the entity's own bars, or the ceiling."""

    bars: int
    ceiling: timedelta


@dataclass(frozen=True, slots=True)
class Close:
    """End the decision in a state that nothing follows: scored, abandoned or recorded."""

    state: str
    reason: str


type Command = Gather | CallAgents | Simulate | Propose | AwaitApproval | ObserveAt | Close


# Plug-ins


@dataclass(frozen=True, slots=True)
class PlaybookLimits:
    """What bounds each decision of a playbook."""

    deadline: timedelta
    """By when, after it was opened, it is released, refused or abandoned."""
    oldest: timedelta
    """An anomaly that is older is recorded and not acted on."""
    budget_micros: int
    call_seconds: float = 20.0
    """How long one attempt of an agent may take; less than its lease."""
    most_attempts: int = 2
    """Of one agent's call, those whose answer is unknown or invalid included."""


class Playbook(Protocol):
    """How a kind of anomaly is decided on. ``next`` is pure: the same record gives the same command, for ever."""

    name: str
    version: str
    limits: PlaybookLimits

    def handles(self, anomaly: JsonObject) -> bool:
        """Whether an ANOMALY_DETECTED payload is this playbook's to decide, by its kind and its detector.

        No two playbooks may take the same one. A withdrawal is never asked for: it goes where its anomaly went.
        """

    def next(self, record: Record) -> Command:
        """Returns what is to be done now. Pure."""

    def gather(self, connection: Any, record: Record) -> JsonObject:
        """Reads the evidence as role acp_decide, as it was known at the anomaly: nobody looks ahead."""

    def simulate(self, record: Record, spec: JsonObject) -> JsonObject:
        """Returns each option's simulated losses. Deterministic on every machine."""

    def observe(self, connection: Any, record: Record, bars: int, now: datetime) -> JsonObject | None:
        """Returns what came of it, ``{"state": "observed" | "unobservable", "forecasts": […], …}``; None: not yet."""

    def sources(self) -> Mapping[str, bytes]:
        """What is pinned when a decision opens: name → bytes (prompts, policies, schemas, settings, the version)."""


@runtime_checkable
class Patient(Protocol):
    """A playbook whose evidence may be worth a short wait."""

    def is_complete(self, connection: Any, record: Record) -> bool:
        """Whether all is there that evidence would have; read as role acp_decide, until ``Gather.wait_until``."""


class Answer(LateModel):
    """The base of every agent's typed answer."""

    model_config = ConfigDict(strict=True)


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What one attempt gave: an answer as JSON bytes, or the reason that there is none."""

    outcome: str
    """answered, invalid (it answered, and not in its schema), failed (it certainly did not answer), unknown."""
    answer: bytes | None = None
    error: str | None = None
    cost_micros: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    retry_after_seconds: int | None = None
    """Before the next attempt, where whoever is behind the agent needs the time."""


class Agent(Protocol):
    """A plug-in that answers a request. It sees the request alone; its answer is checked against ``answer_type``."""

    name: str
    version: str
    answer_type: type[Answer]
    model: str | None
    """The model behind it; None for a deterministic agent."""

    def most_micros(self, request: bytes) -> int:
        """The most that one attempt may cost, in millionths of a US dollar; 0 for a deterministic agent."""

    def call(self, request: bytes, *, attempt: int, seconds_left: float) -> AgentResult:
        """Answers within the given time. Raises nothing but what is a bug: that counts as unknown."""


@runtime_checkable
class ModelBacked(Protocol):
    """An agent with a model behind it."""

    @property
    def settings(self) -> JsonObject:
        """What is pinned of the model: its name, its price and its limit of tokens."""


class ActionSchema(LateModel):
    """The base of every type of action. Amounts are integers in millionths, never floats."""

    model_config = ConfigDict(strict=True)


class Proposal(LateModel):
    """The body of a step ``proposal``: what an action rests on, and what it claims. Extra fields are refused.

    The action itself is the step's output, so that its hash is over nothing else.
    """

    model_config = ConfigDict(strict=True)

    action_type: Name
    account: Name
    option: Name
    """The simulated option that the action is."""
    claims: dict[str, Any]
    """In the shape of the domain's claims; each is recomputed from evidence."""
    evidence_seq: Annotated[int, Field(ge=0)]
    simulation_seq: Annotated[int, Field(ge=0)]
    hypothesis: Name
    summary: Annotated[str, Field(min_length=1, max_length=4096)] | None
    """Prose, perhaps a model's; nothing follows from it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the gatekeeper hands to a domain: a proposal that is in its schema, and the record that it stands in."""

    decision: Decision
    proposal: Proposal
    action: ActionSchema
    claims: ActionSchema
    record: Record

    @property
    def action_type(self) -> str:
        """Its type of action."""
        return self.proposal.action_type

    @property
    def account(self) -> str:
        """The account that it is for."""
        return self.proposal.account


class Gate(Protocol):
    """A domain's part of the gatekeeper: action schemas, policies, and what our code computes for them."""

    action_types: Mapping[str, type[ActionSchema]]
    claims_type: type[ActionSchema]

    @property
    def policies(self) -> str:
        """Cedar policies, as text: docs/decisions/0025. Raises OSError where they cannot be read."""

    @property
    def schema(self) -> str:
        """The Cedar schema that policies and requests are validated against."""

    expires_after: timedelta
    """How long a released action may be executed."""
    approval_within: timedelta

    def check_evidence(self, connection: Any, judged: Judged) -> Sequence[str]:
        """Recomputes what the proposal cites from evidence; returns every claim that does not hold.

        It is asked under the account's lock: whatever was committed while that was waited for is seen.
        """

    def policy_request(self, connection: Any, judged: Judged) -> JsonObject:
        """Returns ``{"principal", "resource", "context", "entities"}``, read under the account's lock.

        ``context`` holds the sums of what was executed and of what is released and not yet executed. The gatekeeper
        adds the action: ``Release``, and ``ReleaseWithoutApproval``.
        """

    def render(self, judged: Judged) -> str:
        """What an approver is shown: action, loss, evidence, and then the model's prose, marked."""


type ReadPolicies = Callable[[], str]
"""Returns Cedar policies, as text. It may raise anything: policies in shadow that cannot be read change no verdict."""


@dataclass(frozen=True, slots=True)
class Deciding:
    """A domain's plug-ins of the decision engine; a ``Domain`` says where they are, so that the relay imports none."""

    playbooks: tuple[Playbook, ...]
    agents: tuple[Agent, ...]
    gate: Gate
    shadow_policies: ReadPolicies | None = None
    """Returns Cedar policies in the gate's schema that are asked beside the gate's, and release and refuse nothing."""
    shadow_playbooks: tuple[Playbook, ...] = ()
    """Versions that decide beside those above on the same anomalies, and of which nothing is ever released."""

    @property
    def versions(self) -> Sequence[Playbook]:
        """Every version of a playbook that a decision may be pinned to."""
        return (*self.playbooks, *self.shadow_playbooks)


type PlaybookVersion = tuple[str, str, str]
"""A domain, a playbook of it, and its version."""


def playbook_versions(deciding: Mapping[str, Deciding]) -> frozenset[PlaybookVersion]:
    """Returns every version of a playbook that this release can decide with."""
    return frozenset(
        (domain, playbook.name, playbook.version)
        for domain, plug_ins in deciding.items()
        for playbook in plug_ins.versions
    )


def derived_id(*parts: object) -> UUID:
    """Returns the UUIDv5 of these parts: whoever makes it again gets the same."""
    return uuid5(DECISION_NAMESPACE, "\n".join(str(part) for part in parts))


def decision_id(*, source: str, entity_id: str, series: str, occurred_at: str, kind: str, playbook: str) -> UUID:
    """Returns a decision's id: a revised bar's anomaly, and a newer version of the playbook, join the same decision."""
    return derived_id("decision", source, entity_id, series, occurred_at, kind, playbook)


def enforced_id(decision: Decision) -> UUID:
    """Returns the id of the decision that the enforced version of a decision's playbook takes on the same anomaly."""
    return decision_id(
        source=decision.source,
        entity_id=decision.entity_id,
        series=decision.series,
        occurred_at=canonical_instant(decision.occurred_at),
        kind=decision.anomaly_kind,
        playbook=decision.playbook,
    )
