"""The gatekeeper: puts verdicts on record, and alone releases actions. Each judgement is one transaction."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from control_plane.decisions.emit import emit, message
from control_plane.decisions.judgement import (
    NEEDS_APPROVAL,
    PERMITTED,
    AskedApproval,
    Finding,
    examine,
    is_open_to_judgement,
    read_body,
)
from control_plane.decisions.strict_json import NotStrictJson
from control_plane.model.contract import Payload
from control_plane.model.deciding import Decision, Gate, JsonObject, Record, Step, derived_id
from control_plane.model.decision_events import (
    ActionRefused,
    ActionReleased,
    ApprovalRequested,
)
from control_plane.model.errors import ContractViolation
from control_plane.platform.messages import NewMessage
from control_plane.platform.queries import load_queries

QUERIES: Final = load_queries(__package__)

LOCK_TIMEOUT: Final = "5s"
"""How long a judgement waits for a lock. Then it is rolled back, and its message comes again: nothing was released."""

TO_JUDGE_AGAIN: Final = timedelta(minutes=2)
"""Of a decision's time, what is kept after the last moment to approve: to judge again, or to see that nobody did."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a request for a verdict."""

    verdict_id: UUID
    verdict: str | None
    """permitted, needs_approval, refused; None where nothing was judged, and nothing changed."""
    is_released: bool = False
    reasons: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def judge(connection: Connection[Any], gate: Gate | None, decision_id: UUID, proposal_seq: int, nth: int) -> Verdict:
    """Judges a proposal once, in one transaction, as acp_gatekeeper; asked again for the same verdict, changes nothing.

    A decision that does not wait for a verdict gets none. Without a ``gate`` for its domain the proposal is refused.
    Raises ContractViolation where the step is no proposal, psycopg.Error where the database fails or a lock is not had
    in time: nothing is released then, and nothing recorded.
    """
    verdict_id = verdict_id_of(decision_id, proposal_seq, nth)
    with connection.transaction():
        connection.execute(QUERIES["limit_lock_waits"].sql, {"lock_timeout": LOCK_TIMEOUT})
        # The decision's row, then the account, then the switches: two orders would wait for each other in a circle.
        connection.execute(QUERIES["lock_decision"].sql, {"decision_id": decision_id})
        if _is_judged(connection, verdict_id):
            return Verdict(verdict_id, None)
        decision = read_decision(connection, decision_id)
        if not is_open_to_judgement(decision):
            return Verdict(verdict_id, None)
        record, bodies, ambiguous = _read_record(connection, decision, proposal_seq)
        step = next((one for one in record.steps if one.seq == proposal_seq), None)
        if step is None or step.kind != "proposal" or step != record.last("proposal"):
            raise ContractViolation("is not the decision's newest proposal", field="proposal_seq", value=proposal_seq)
        present = Database(connection)
        finding = examine(present, gate, record, step, bodies[proposal_seq], ambiguous=ambiguous)
        filing = _Filing(connection, gate, decision, step, finding, verdict_id, present.now())
        is_released = filing.store()
    return Verdict(verdict_id, finding.verdict, is_released, finding.reasons, finding.errors)


def verdict_id_of(decision_id: UUID, proposal_seq: int, nth: int) -> UUID:
    """Returns the id of a proposal's nth verdict: whoever is asked for it again finds it."""
    return derived_id("verdict", decision_id, proposal_seq, nth)


class Database:
    """The Present of a judgement, read from Postgres within its transaction."""

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection

    def now(self) -> datetime:
        """Returns the database's time."""
        (now,) = _one(self.connection, "clock", {})
        assert isinstance(now, datetime)
        return now

    def lock_account(self, domain: str, account: str) -> None:
        """Waits for other judgements of this account."""
        self.connection.execute(QUERIES["lock_account"].sql, {"account": json.dumps(["account", domain, account])})

    def approval(self, decision_id: UUID, action_sha256: bytes) -> AskedApproval | None:
        """Returns what a person was asked about this action."""
        row = self.connection.execute(
            QUERIES["approval_of_action"].sql, {"decision_id": decision_id, "action_sha256": action_sha256}
        ).fetchone()
        return None if row is None else AskedApproval(*row)

    def switched_off(self, decision_id: UUID, action_type: str) -> Sequence[str]:
        """Returns the scopes that are off; a change of a switch waits for this transaction."""
        (scopes,) = _one(self.connection, "switched_off", {"decision_id": decision_id, "action_type": action_type})
        return list(scopes)


def read_decision(connection: Connection[Any], decision_id: UUID) -> Decision:
    """Returns a decision as it is. Raises ContractViolation where there is none."""
    with connection.cursor(row_factory=class_row(Decision)) as cursor:
        decision = cursor.execute(QUERIES["judged_decision"].sql, {"decision_id": decision_id}).fetchone()
    if decision is None:
        raise ContractViolation("is no decision", field="decision_id", value=str(decision_id))
    return decision


def _read_record(
    connection: Connection[Any], decision: Decision, proposal_seq: int
) -> tuple[Record, Mapping[int, bytes], Sequence[str]]:
    """Returns a decision's record, its steps' bodies as they are stored, and what is wrong with these as JSON."""
    rows = connection.execute(QUERIES["judged_steps"].sql, {"decision_id": decision.decision_id}).fetchall()
    bodies = {row[0]: bytes(row[5]) for row in rows}
    read: dict[int, JsonObject] = {proposal_seq: {}}  # The proposal is read from its bytes.
    ambiguous = []
    for seq, _, kind, *_ in rows:
        if seq != proposal_seq:
            try:
                read[seq] = read_body(kind, bodies[seq])
            except NotStrictJson as error:
                read[seq] = {}
                ambiguous.append(f"step {seq}, {kind}, {error.reason}")
    steps = [
        Step(
            seq=seq,
            parent=parent,
            kind=kind,
            author=author,
            at=at,
            body=read[seq],
            input_sha256=None if used is None else bytes(used),
            output_sha256=None if made is None else bytes(made),
            cost_micros=cost,
        )
        for seq, parent, kind, author, at, _, used, made, cost in rows
    ]
    artifacts = connection.execute(QUERIES["judged_artifacts"].sql, {"decision_id": decision.decision_id}).fetchall()
    contents = {bytes(sha256): bytes(content) for sha256, content in artifacts}
    return Record(decision, steps, contents), bodies, ambiguous


@dataclass(frozen=True, slots=True)
class _Filing:
    """A judgement that is put on record, with what follows from it."""

    connection: Connection[Any]
    gate: Gate | None
    decision: Decision
    step: Step
    finding: Finding
    verdict_id: UUID
    now: datetime

    def store(self) -> bool:
        """Stores the verdict and what follows from it; returns whether an action was released."""
        finding, used = self.finding, self.finding.policy
        self.connection.execute(
            QUERIES["record_verdict"].sql,
            {
                "verdict_id": self.verdict_id,
                "decision_id": self.decision.decision_id,
                "proposal_seq": self.step.seq,
                "action_sha256": finding.action_sha256,
                "verdict": finding.verdict,
                "is_shadow": self.decision.is_shadow,
                "approval_id": finding.approval_id,
                "policy_sha256": keep_artifact(self.connection, "policy", used.text if used else None),
                "schema_sha256": keep_artifact(self.connection, "policy_schema", used.schema_text if used else None),
                "request_sha256": keep_artifact(self.connection, "policy_request", finding.request),
                "reasons": json.dumps(finding.reasons),
                "errors": json.dumps(finding.errors),
            },
        )
        if self.decision.is_shadow:
            self._tell_refused(f"in shadow, never released: {finding.verdict}")
        elif finding.verdict == PERMITTED:
            self._release()
            return True
        elif finding.verdict == NEEDS_APPROVAL:
            self._ask()
        else:
            self._tell_refused("; ".join((*finding.errors, *finding.reasons)) or "refused")
        return False

    def _release(self) -> None:
        """Releases the action with its message: the database refuses either without the other and their verdict."""
        judged, action_sha256, gate = self.finding.judged, self.finding.action_sha256, self.gate
        assert judged is not None
        assert action_sha256 is not None
        assert gate is not None
        action_id = derived_id("action", self.decision.decision_id)
        expires_at = self.now + gate.expires_after
        payload = ActionReleased(
            decision_id=str(self.decision.decision_id),
            action_id=str(action_id),
            action_type=judged.action_type,
            account=judged.account,
            action_sha256=action_sha256.hex(),
            expires_at=expires_at,
        )
        told = self._message(payload)
        self.connection.execute(
            QUERIES["release_action"].sql,
            {
                "action_id": action_id,
                "decision_id": self.decision.decision_id,
                "idempotency_key": str(action_id),
                "domain": self.decision.domain,
                "action_type": judged.action_type,
                "account": judged.account,
                "action_sha256": action_sha256,
                "verdict_id": self.verdict_id,
                "event_id": told.message["event_id"],
                "expires_at": expires_at,
            },
        )
        emit(self.connection, told)

    def _ask(self) -> None:
        """Asks a person, until the approval's time is over, or the decision's."""
        finding, gate = self.finding, self.gate
        assert finding.action_sha256 is not None
        assert gate is not None
        left = self.decision.deadline - self.now
        expires_at = self.now + min(gate.approval_within, left - min(TO_JUDGE_AGAIN, left / 2))
        self.connection.execute(
            QUERIES["ask_approval"].sql,
            {
                "approval_id": finding.approval_id,
                "decision_id": self.decision.decision_id,
                "action_sha256": finding.action_sha256,
                "expires_at": expires_at,
                "shown": finding.shown,
            },
        )
        payload = ApprovalRequested(
            decision_id=str(self.decision.decision_id),
            approval_id=str(finding.approval_id),
            action_sha256=finding.action_sha256.hex(),
            expires_at=expires_at,
        )
        emit(self.connection, self._message(payload))

    def _tell_refused(self, reason: str) -> None:
        payload = ActionRefused(
            decision_id=str(self.decision.decision_id), verdict_id=str(self.verdict_id), reason=reason[:1024]
        )
        emit(self.connection, self._message(payload))

    def _message(self, payload: Payload) -> NewMessage:
        return message(
            payload,
            entity_id=self.decision.entity_id,
            series=f"{self.decision.decision_id}:{payload.event_type.lower()}:{self.verdict_id}",
            at=self.now,
            trace_id=self.decision.trace_id,
        )


def keep_artifact(connection: Connection[Any], kind: str, content: bytes | None) -> bytes | None:
    """Stores an artifact, once; returns its hash. Raises psycopg.Error."""
    if content is None:
        return None
    sha256 = hashlib.sha256(content).digest()
    connection.execute(QUERIES["keep_artifact"].sql, {"sha256": sha256, "kind": kind, "bytes": content})
    return sha256


def _is_judged(connection: Connection[Any], verdict_id: UUID) -> bool:
    return connection.execute(QUERIES["verdict_exists"].sql, {"verdict_id": verdict_id}).fetchone() is not None


def _one(connection: Connection[Any], query: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    row = connection.execute(QUERIES[query].sql, dict(values)).fetchone()
    assert row is not None
    return tuple(row)
