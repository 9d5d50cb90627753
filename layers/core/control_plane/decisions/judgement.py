"""Judges one proposal; writes nothing. gatekeeper.py puts what comes of it on record, and releases.

The order of checks: strict JSON, schema, then under the account's lock evidence, policy over the limits as they are,
approval, switches. The first that fails ends it, and whatever goes wrong on the way refuses.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

import psycopg
from pydantic import BaseModel, ValidationError

from control_plane.decisions import policy as policies
from control_plane.decisions.policy import Policy, PolicyUnusable
from control_plane.decisions.strict_json import NotStrictJson, parse, parse_object
from control_plane.model.deciding import Decision, Gate, Judged, Proposal, Record, Step, derived_id
from control_plane.model.ids import canonical_json
from control_plane.model.text import visible

PERMITTED: Final = "permitted"
NEEDS_APPROVAL: Final = "needs_approval"
REFUSED: Final = "refused"
_RESTED_ON: Final = frozenset({"evidence", "simulation"})


@dataclass(frozen=True, slots=True)
class AskedApproval:
    """What a person was asked about one action of a decision, and what the answer is."""

    approval_id: UUID
    stands: bool
    """Whether it was given, and has not expired."""


class Present(Protocol):
    """What a judgement depends on beside the record: the database as it is now."""

    @property
    def connection(self) -> Any:
        """What the gate reads from."""

    def now(self) -> datetime:
        """Returns the database's time; no other clock counts."""

    def lock_account(self, domain: str, account: str) -> None:
        """Waits until no other judgement counts what this account was released; holds it until the end."""

    def approval(self, decision_id: UUID, action_sha256: bytes) -> AskedApproval | None:
        """Returns what a person was asked about this action; None where nobody was."""

    def switched_off(self, decision_id: UUID, action_type: str) -> Sequence[str]:
        """Returns the scopes that are off, and holds them as they are until the end."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a judgement came to, and all that it was based on."""

    verdict: str
    reasons: tuple[str, ...]
    errors: tuple[str, ...] = ()
    judged: Judged | None = None
    action_sha256: bytes | None = None
    policy: Policy | None = None
    request: bytes | None = None
    approval_id: UUID | None = None
    """The approval that it rests on, or that is to be asked for."""
    shown: str | None = None
    """What the person is shown who is to be asked."""


class _Refused(Exception):
    """Ends a judgement. Raised by a check that failed."""

    def __init__(self, *reasons: str, errors: Sequence[str] = ()) -> None:
        self.reasons = reasons
        self.errors = tuple(errors)
        super().__init__(*reasons, *errors)


def approval_id(decision_id: UUID, proposal_seq: int, proposal: Proposal, action_sha256: bytes) -> UUID:
    """Returns the id of the approval of exactly this: a proposal's action, its type and its account."""
    return derived_id(
        "approval", decision_id, proposal_seq, proposal.action_type, proposal.account, action_sha256.hex()
    )


def read_body(kind: str, body: bytes) -> dict[str, Any]:
    """Returns a step's body. Raises NotStrictJson where it could be read in two ways, or tells nothing readable.

    What a proposal rests on is held to visible texts too; an answer that was refused may have had others.
    """
    value = parse(body, check_texts=kind in _RESTED_ON)
    if not isinstance(value, dict):
        raise NotStrictJson("is not a JSON object")
    return value


def examine(
    present: Present, gate: Gate | None, record: Record, step: Step, body: bytes, *, ambiguous: Sequence[str] = ()
) -> Finding:
    """Returns what is to become of a proposal. Raises psycopg.Error alone: the database failed, and nothing is known.

    ``body`` is the proposal as its ``step`` stores it; ``ambiguous`` says which of the record's other steps are not
    strict JSON, and why.
    """
    examination = _Examination(present, gate, record, step, body, ambiguous=ambiguous)
    try:
        verdict, reasons = examination.run()
    except psycopg.Error:
        raise
    except _Refused as refused:
        return examination.finding(REFUSED, refused.reasons, refused.errors)
    except Exception as error:  # noqa: BLE001 - a gate that fails lets nothing through, and says so
        return examination.finding(REFUSED, (), (f"{type(error).__name__}: {error}",))
    return examination.finding(verdict, reasons)


class _Examination:
    """One judgement under way: what is known of it so far."""

    def __init__(
        self, present: Present, gate: Gate | None, record: Record, step: Step, body: bytes, *, ambiguous: Sequence[str]
    ) -> None:
        self._present = present
        self._ambiguous = ambiguous
        self._given_gate = gate
        self._record = record
        self._step = step
        self._body = body
        self._judged: Judged | None = None
        self._action_sha256: bytes | None = None
        self._policy: Policy | None = None
        self._request: bytes | None = None
        self._approval_id: UUID | None = None
        self._shown: str | None = None

    def finding(self, verdict: str, reasons: Sequence[str], errors: Sequence[str] = ()) -> Finding:
        """Returns the result, with all that was found out until then."""
        return Finding(
            verdict,
            tuple(visible(reason)[:1000] for reason in reasons),
            tuple(visible(error)[:1000] for error in errors),
            self._judged,
            self._action_sha256,
            self._policy,
            self._request,
            self._approval_id,
            self._shown,
        )

    def run(self) -> tuple[str, Sequence[str]]:
        """Makes the checks in their order; returns the verdict and its reasons. Raises _Refused."""
        decision = self._record.decision
        if self._given_gate is None:
            raise _Refused(errors=[f"there is no gate for the domain {decision.domain}"])
        gate = self._given_gate
        if self._present.now() >= decision.deadline:
            raise _Refused("deadline: the decision's is over")
        self._check_record()
        judged, action_sha256 = read_proposal(gate, self._record, self._step, self._body)
        self._judged, self._action_sha256 = judged, action_sha256
        self._present.lock_account(decision.domain, judged.account)
        wrong = gate.check_evidence(self._present.connection, judged)
        if wrong:
            raise _Refused(*(f"evidence: {claim}" for claim in wrong))
        try:
            self._policy = policies.load_from(gate)
        except PolicyUnusable as error:
            raise _Refused(errors=[str(error)]) from None
        self._request = policies.as_recorded(gate.policy_request(self._present.connection, judged))
        is_approved = self._find_approval(judged, action_sha256)
        ruling = policies.rule(self._policy, policies.from_record(self._request), is_approved=is_approved)
        if ruling.verdict == REFUSED:
            raise _Refused(*(f"policy: {reason}" for reason in ruling.reasons), errors=ruling.errors)
        # Rendered before the switches are held: whoever sets one waits for no prose.
        shown = gate.render(judged) if ruling.verdict == NEEDS_APPROVAL else None
        off = self._present.switched_off(decision.decision_id, judged.action_type)
        if off:
            raise _Refused(f"switch: {', '.join(off)} is switched off")
        if ruling.verdict == NEEDS_APPROVAL:
            if decision.state == "approved":
                raise _Refused("approval: the one that was given does not stand, and no other is asked for")
            self._approval_id = approval_id(decision.decision_id, self._step.seq, judged.proposal, action_sha256)
            self._shown = shown
        return ruling.verdict, [f"policy: {reason}" for reason in ruling.reasons]

    def _check_record(self) -> None:
        """Raises _Refused for a record that could be read in two ways, or that takes back what it was opened for."""
        if self._ambiguous:
            raise _Refused(*(f"json: {what}" for what in self._ambiguous))
        superseded = next((step for step in self._record.all("joined") if step.body.get("supersedes")), None)
        if superseded is not None:
            raise _Refused(f"evidence: what the decision was opened for is superseded (step {superseded.seq})")

    def _find_approval(self, judged: Judged, action_sha256: bytes) -> bool:
        """Whether a person has approved this very proposal. Raises _Refused where one was asked in vain."""
        decision = self._record.decision
        asked = self._present.approval(decision.decision_id, action_sha256)
        if asked is None:
            return False
        if asked.approval_id != approval_id(decision.decision_id, self._step.seq, judged.proposal, action_sha256):
            raise _Refused("approval: a person was asked about this action in another proposal")
        if not asked.stands:
            raise _Refused("approval: a person was asked, and none stands: not answered, denied or expired")
        self._approval_id = asked.approval_id
        return True


def read_proposal(gate: Gate, record: Record, step: Step, body: bytes) -> tuple[Judged, bytes]:
    """Returns a proposal that is in its schemas, and its action's hash. Raises _Refused with what is wrong."""
    action_sha256 = step.output_sha256
    stored = record.artifacts.get(action_sha256) if action_sha256 is not None else None
    if action_sha256 is None or stored is None or hashlib.sha256(stored).digest() != action_sha256:
        raise _Refused("schema: the proposal has no action")
    content, stated = _parsed(body, "the proposal"), _parsed(stored, "the action")
    proposal = _validated(Proposal, content, "")
    schema = gate.action_types.get(proposal.action_type)
    if schema is None:
        raise _Refused(f"schema: {proposal.action_type} is no type of action; there are {', '.join(gate.action_types)}")
    action = _validated(schema, stated, "action.")
    claims = _validated(gate.claims_type, proposal.claims, "claims.")
    if canonical_json(stated, field="action") != stored:  # or one action had many hashes
        raise _Refused("schema: the action is not in its canonical form")
    return Judged(record.decision, proposal, action, claims, record), action_sha256


def _parsed(content: bytes, what: str) -> dict[str, Any]:
    try:
        return parse_object(content)
    except NotStrictJson as error:
        raise _Refused(f"json: {what} {error.reason}") from None


def _validated[M: BaseModel](model: type[M], content: dict[str, Any], prefix: str) -> M:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _Refused(
            *(
                f"schema: {prefix}{'.'.join(map(str, one['loc']))}: {one['msg']}"
                for one in error.errors(include_url=False, include_context=False, include_input=False)[:10]
            )
        ) from None


def is_open_to_judgement(decision: Decision) -> bool:
    """Whether a decision waits for a verdict: before, and after, nothing that is said about it counts."""
    return decision.state in {"proposed", "approved"}
